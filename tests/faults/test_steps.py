"""Every step killed, interrupted and started twice: the files of an undisturbed run, and never half of one.

How often a step is killed: $CROSSEARTH_KILLS [default: 3].
"""

import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from own_domain import NAME, draw, own_domain, save
from training_folder import NUMBERS, environment

KILLS = int(os.environ.get("CROSSEARTH_KILLS", "3"))
CATALOG = "--catalog catalog.yaml"
EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143}
# a command and what of it is a function of its inputs: not durations, and not what a registry numbers
STEPS = {
    "ingest": (f"ingest {NAME} {CATALOG}", ["artifacts/domains/town"]),
    "styles fit": ("styles fit images", ["artifacts/styles"]),
    "stylize": (f"stylize {NAME} {CATALOG}", ["artifacts/stylized/town"]),
    "train": (f"train {NAME} {CATALOG}", ["artifacts/models/town"]),
    "evaluate": (
        f"evaluate {NAME} {CATALOG}",
        ["artifacts/scores/town/scores.csv", "artifacts/scores/town/tiles", "artifacts/scores/town/panels"],
    ),
    "report": (f"report {CATALOG}", ["artifacts/report/scores.csv", "artifacts/report/scores.md"]),
    "register": (f"register {NAME} {CATALOG}", []),
    "predict": (
        "predict scene.tif --model artifacts/models/town --out map.tif",
        ["map.tif", "map.png", "map.json", "map.tif.aux.xml"],
    ),
}


@dataclass(frozen=True)
class Undisturbed:
    """A step of a run that nobody disturbed.

    Attributes:
        before: the user's folder as the step finds it.
        seconds: that the step took.
        files: what it wrote, by path below the folder.
        hidden: paths of what else it left behind a dot.
    """

    before: Path
    seconds: float
    files: dict[str, bytes]
    hidden: set[Path]


def start(folder: Path, name: str) -> "subprocess.Popen[str]":
    """The command in a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        ["crossearth", *STEPS[name][0].split()],
        cwd=folder,
        env={**environment(), "CROSSEARTH_DATA": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path, name: str) -> None:
    process = start(folder, name)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said


def written(folder: Path, name: str) -> dict[str, bytes]:
    found = {}
    for place in STEPS[name][1]:
        path = folder / place
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                found[file.relative_to(folder).as_posix()] = file.read_bytes()
    return found


def readable(folder: Path, name: str) -> dict[str, bytes]:
    """What is there under the names that readers look for: not what hides behind a dot until it is whole."""
    files = written(folder, name)
    return {path: content for path, content in files.items() if "/." not in f"/{path}"}


def hidden(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob(".*")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Undisturbed]:
    folder = tmp_path_factory.mktemp("undisturbed") / "user"
    own_domain(folder, num=12, side=200)
    catalog = yaml.safe_load((folder / "catalog.yaml").read_text())
    catalog["settings"] = {"T2T": {"source": NAME, "target": NAME, "gap": "in-domain"}}
    (folder / "catalog.yaml").write_text(yaml.safe_dump(catalog))
    preset = {"train": {**NUMBERS, "ablation": "rein"}}
    (folder / "params.yaml").write_text(yaml.safe_dump({"preset": "test", "presets": {"test": preset}}))
    save(folder / "scene.tif", draw(99, side=700)[0])
    steps = {}
    for name in STEPS:
        before = folder.parent / name
        shutil.copytree(folder, before)
        began = time.monotonic()
        finish(folder, name)
        seconds = time.monotonic() - began
        steps[name] = Undisturbed(before, seconds, written(folder, name), hidden(folder))
        assert bool(steps[name].files) == bool(STEPS[name][1])
    return steps


@pytest.fixture(params=STEPS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(name: str, undisturbed: dict[str, Undisturbed], tmp_path: Path) -> Path:
    return Path(shutil.copytree(undisturbed[name].before, tmp_path / "user"))


def is_registered(folder: Path) -> None:
    """Its champion can be used."""
    command = ["predict", "scene.tif", "--model", f"models:/crossearth-{NAME}@champion", "--out", "from.tif"]
    subprocess.run(["crossearth", *command], cwd=folder, env=environment(), check=True, capture_output=True)


def test_killed_again_and_again(name: str, folder: Path, undisturbed: dict[str, Undisturbed]) -> None:
    step, moments = undisturbed[name], random.Random(name)
    for _ in range(KILLS):
        process = start(folder, name)
        end = time.monotonic() + step.seconds * moments.random()
        while time.monotonic() < end and process.poll() is None:
            assert readable(folder, name).items() <= step.files.items()
            time.sleep(0.02)
        with suppress(ProcessLookupError):  # it was done already
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert readable(folder, name).items() <= step.files.items()
    finish(folder, name)
    assert readable(folder, name) == step.files
    assert hidden(folder) <= step.hidden
    if name == "register":
        is_registered(folder)


@pytest.mark.parametrize("number", EXIT, ids=lambda number: number.name)
def test_a_signal_is_obeyed_and_the_way_on_is_said(
    name: str, folder: Path, undisturbed: dict[str, Undisturbed], number: signal.Signals
) -> None:
    process = start(folder, name)
    time.sleep(undisturbed[name].seconds * 0.6)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    began = time.monotonic()
    said = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < 5
    files = undisturbed[name].files
    done = process.returncode == 0 or (files and readable(folder, name) == files)
    if not done:
        assert process.returncode == EXIT[number], said
        assert f"go on with: crossearth {STEPS[name][0]}" in said
        assert "Traceback" not in said
    finish(folder, name)
    assert readable(folder, name) == undisturbed[name].files


def test_two_at_once(name: str, folder: Path, undisturbed: dict[str, Undisturbed]) -> None:
    processes = [start(folder, name) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes in ([0, 0], [0, 2]), said
    assert readable(folder, name) == undisturbed[name].files
    if name == "register":
        is_registered(folder)
