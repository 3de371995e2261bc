"""Which step an edit makes stale: those that import the edited file, and no others."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from crossearth.components.runtime import code
from crossearth.components.steps import STEPS as ROWS

ROOT = Path(__file__).parents[2]
LAYERS = ("data", "model", "components")
DATA = {"ingest", "validate", "styles", "styles.coverage", "stylize", "train", "evaluate", "report"}
STEPS = ("synthesize", *sorted(DATA))
# one file of every folder whose code some step runs
STALE = {
    "data/common/config.py": {*STEPS},
    "data/common/errors.py": set(),
    "data/catalog/domains.py": {*DATA} - {"styles"},
    "data/catalog/catalog.yaml": set(),
    "data/annotations/coco.py": {"ingest"},
    "data/raster/archives.py": DATA - {"report"},
    "data/tiles/store.py": {"train"},
    "data/tiles/augment.py": {"train"},
    "data/style/spectral.py": {"styles", "styles.coverage", "stylize", "train"},
    "model/crossearth.py": {"train", "evaluate"},
    "model/layers/rein.py": {"train", "evaluate"},
    "model/training/losses.py": {"train"},
    "model/weights/checkpoint.py": {"train", "evaluate"},
    "components/ablate/step.py": set(),
    "components/cli/data_commands.py": set(),
    "components/convert/step.py": set(),
    "components/evaluate/scoring.py": {"evaluate"},
    "components/export/step.py": set(),
    "components/init/step.py": set(),
    "components/ingest/scene.py": {"ingest"},
    "components/plan/step.py": set(),
    "components/predict/maps.py": {"evaluate"},
    "components/register/promotion.py": set(),
    "components/report/template.html": {"report"},
    "components/report/page.py": {"report"},
    "components/runtime/device.py": {"styles", "styles.coverage", "stylize", "train", "evaluate"},
    "components/runtime/page.css": {"report"},
    "components/runtime/params.py": set(),
    "components/runtime/processes.py": {"train", "evaluate"},
    "components/runtime/tracking.py": set(),
    "components/styles/step.py": {"styles"},
    "components/stylize/step.py": {"stylize"},
    "components/synthesize/synthetic.yaml": {"synthesize"},
    "components/train/component.py": set(),
    "components/train/loop.py": {"train"},
    "components/tune/step.py": set(),
    "components/validate/expectations.py": {"validate"},
    "components/validate/index.html": set(),
    "components/watch/reference.py": {"train"},
    "components/watch/step.py": set(),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tree")
    for layer in LAYERS:
        shutil.copytree(ROOT / layer, folder / layer, ignore=shutil.ignore_patterns("__pycache__"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code, "ROOT", folder)
        code._sources.cache_clear()
        yield folder
    code._sources.cache_clear()
    code.code_digest.cache_clear()


PLANNED = {step.name: step.module for step in ROWS.values() if step.planned}


def digests() -> dict[str, str]:
    code.code_digest.cache_clear()
    return {step: code.code_digest(step) for step in {*STEPS, *PLANNED.values()}}


@pytest.fixture(scope="module")
def before(tree: Path) -> dict[str, str]:
    return digests()


@pytest.mark.parametrize("edited", STALE)
def test_an_edit_makes_stale_what_runs_the_edited_code(
    edited: str, tree: Path, before: dict[str, str]
) -> None:
    path = tree / edited
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n# edited\n")
    after = digests()
    path.write_bytes(whole)
    assert {step for step in STEPS if after[step] != before[step]} == STALE[edited]


@pytest.mark.parametrize("name", [name for name, module in PLANNED.items() if module == f"{name}.step"])
def test_an_edit_of_a_steps_own_file_makes_stale_this_step_alone(
    name: str, tree: Path, before: dict[str, str]
) -> None:
    path = tree / "components" / name / "step.py"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n# edited\n")
    after = digests()
    path.write_bytes(whole)
    assert {step for step, module in PLANNED.items() if after[module] != before[module]} == {name}


def test_every_folder_is_edited_once() -> None:
    folders = {path.parent for layer in LAYERS for path in (ROOT / layer).rglob("*.py")}
    rooms = {folder.relative_to(ROOT).as_posix() for folder in folders} - {*LAYERS}
    edited = {str(Path(name).parent) for name in STALE} | {f"components/{name}" for name in PLANNED}
    assert rooms - edited <= {"components/api", "components/pods"}
