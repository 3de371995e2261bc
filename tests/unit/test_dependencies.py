"""What an audit of constraints.txt sees is all that an installation brings."""

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from crossearth.data.common import torchvision_ops
from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.weights.checkpoint import save

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"


def pins() -> list[Requirement]:
    lines = CONSTRAINTS.read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def needed_by(requirement: Requirement, seen: set[Requirement]) -> Iterator[str]:
    """Names of what a requirement brings, itself included, as far as it is installed here."""
    seen.add(requirement)
    try:
        wanted = [Requirement(line) for line in requires(requirement.name) or []]
    except PackageNotFoundError:
        return
    yield canonicalize_name(requirement.name)
    for dependency in wanted:
        marker = dependency.marker
        asked_for = marker is None or any(
            marker.evaluate({"extra": extra}) for extra in requirement.extras or {""}
        )
        if asked_for and dependency not in seen:
            yield from needed_by(dependency, seen)


# imports, by the extra that brings them; what comes with another library stands after it
EXTRAS = {
    "train": "boto3 botocore cachetools great_expectations matplotlib mlflow pandas plotly psutil"
    " torchmetrics",
    "pipelines": "docker dvc kfp kubernetes",
    "cluster": "kubeflow model_registry psycopg2",
}
META = {"classes": ["a", "b"], "palette": ["#000000", "#ffffff"], "provenance": "own"}
COMMANDS = {
    "predict": "predict scene.png --model model --out map.tif",
    "train": "plan",
    "pipelines": "pipeline compile benchmark -o graph.yaml",
}
WITHOUT = """
import contextlib, gc, io, json, sys

gc.disable()  # half a second of imports
libraries, *commands = sys.argv[1:]
for name in libraries.split():
    sys.modules[name] = None  # as if it were not installed
from crossearth.pipelines.cli import main

ended = []
for command in commands:
    sys.argv = ["crossearth", *command.split()]
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            ended.append((end.code or 0, said.getvalue()))
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def without_extras(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, str]]]:
    """A folder in which COMMANDS were run with the core alone; exit code and words of each."""
    folder = tmp_path_factory.mktemp("core")
    save(crossearth_tiny(num_classes=2, image_px=64), folder / "model", META)
    Image.new("RGB", (80, 70)).save(folder / "scene.png")
    shutil.copy(ROOT / "params.yaml", folder)
    command = [sys.executable, "-c", WITHOUT, " ".join(EXTRAS.values()), *COMMANDS.values()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, dict(zip(COMMANDS, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("extra", ["train", "pipelines"])
def test_a_missing_extra_is_named(
    extra: str, without_extras: tuple[Path, dict[str, tuple[int, str]]]
) -> None:
    code, said = without_extras[1][extra]
    assert code == 2, said
    assert f"pip install 'crossearth[{extra}]'" in said
    assert "Traceback" not in said


def test_mapping_needs_no_extra(without_extras: tuple[Path, dict[str, tuple[int, str]]]) -> None:
    """Whoever only maps installs the core."""
    folder, ended = without_extras
    assert ended["predict"][0] == 0, ended["predict"]
    assert Image.open(folder / "map.tif").size == (80, 70)


def test_every_dependency_is_pinned() -> None:
    installed = set(needed_by(Requirement("crossearth[dev,cluster,services]"), set()))
    assert len(installed) > 100
    assert installed - {canonicalize_name(pin.name) for pin in pins()} == {"crossearth"}


def test_every_pin_is_one_public_version() -> None:
    """No range, no address, no local version such as `+cpu`: an audit could not look it up."""
    for pin in pins():
        (clause,) = pin.specifier
        assert clause.operator == "==" and "*" not in clause.version and "+" not in clause.version, str(pin)
        assert not pin.url and not pin.extras and not pin.marker, str(pin)


@pytest.mark.parametrize(("loads", "defined"), [(True, []), (False, ["nms", "qnms"])])
def test_torchvisions_operators_are_defined_only_where_its_own_do_not_load(
    loads: bool, defined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def load(path: Path) -> None:
        assert path.parts[-2:] == ("torchvision", "_C.so") and path.exists()
        if not loads:
            raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(torch.ops, "load_library", load)
    monkeypatch.setattr(torch.library.Library, "define", lambda _, schema: found.append(schema.split("(")[0]))
    runpy.run_path(torchvision_ops.__file__)
    assert found == defined


@pytest.mark.parametrize("captured", [False, True])
def test_imports_leave_the_processs_warnings_alone(captured: bool) -> None:
    """Who uses the package as a library has set up what becomes of warnings, and knows why."""
    code = f"""
import gc, logging, warnings
gc.disable()  # half a second of imports
logging.captureWarnings({captured})
shown = warnings.showwarning
import crossearth.components.validate.expectations, crossearth.data.tiles.scenes
assert warnings.showwarning is shown
assert not any("geotransform" in str(each[1]) for each in warnings.filters)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
