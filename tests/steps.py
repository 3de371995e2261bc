"""The steps of a user's small domain, and what an undisturbed run of each leaves."""

import os
import pty
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from forks import Fork
from own_domain import NAME, draw, own_domain, save
from pseudo_terminal import shown_on
from training_folder import NUMBERS, environment

from crossearth.pipelines.cli import main

CATALOG = "--catalog catalog.yaml"
# a command and what of it is a function of its inputs: not durations, and not what a registry numbers
STEPS = {
    "ingest": (f"ingest {NAME} {CATALOG}", ["artifacts/domains/town/town"]),
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


AS_USERS = "ingest"  # is started as users start it, imports and all; it has processes of its own as well


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


def start(folder: Path, name: str, stderr: int | None = None) -> "Fork | subprocess.Popen[str]":
    """The command in a process group of its own, as a terminal starts it.

    Args:
        stderr: where its words go to [default: to `communicate`].
    """
    command = ["crossearth", *STEPS[name][0].split()]
    if name != AS_USERS:
        return Fork(command, folder, variables(folder), stderr)
    return subprocess.Popen(
        command,
        cwd=folder,
        env=variables(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if stderr is None else stderr,
        text=True,
        start_new_session=True,
    )


def variables(folder: Path) -> dict[str, str]:
    """The environment of a user whose archives lie in `folder`."""
    return {**environment(), "CROSSEARTH_DATA": str(folder), "TERM": "xterm"}


def run_here(
    command: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: str = ".",
) -> tuple[int, str]:
    """Exit code and standard error of a command, in this process: no second import of torch.

    Args:
        data: where the archives lie, relative to `folder`.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CROSSEARTH_DATA", data)
    # mlflow puts there what it is told: not for the next test
    monkeypatch.setenv("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI", ""))
    monkeypatch.setattr(sys, "argv", ["crossearth", *command.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0), capsys.readouterr().err


def written(folder: Path, name: str) -> dict[str, bytes]:
    try:
        return _written(folder, name)
    except FileNotFoundError:  # a folder was replaced by a new one while it was read
        return _written(folder, name)


def _written(folder: Path, name: str) -> dict[str, bytes]:
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
    """What stands behind a dot; not MLflow's lock: a step that is killed at its very end leaves it, free."""
    return {path.relative_to(folder) for path in folder.rglob(".*") if path.name != ".first-use.lock"}


def run_undisturbed(folder: Path) -> dict[str, Undisturbed]:
    """Runs all steps in `folder`, one after the other."""
    own_domain(folder, num=12, side=200)
    catalog = yaml.safe_load((folder / "catalog.yaml").read_text())
    catalog["settings"] = {"T2T": {"source": NAME, "target": NAME, "gap": "in-domain"}}
    (folder / "catalog.yaml").write_text(yaml.safe_dump(catalog))
    preset = {"train": {**NUMBERS, "ablation": "rein"}, "stylize": {"style": {"block_px": 16}}}
    (folder / "params.yaml").write_text(yaml.safe_dump({"preset": "test", "presets": {"test": preset}}))
    save(folder / "scene.tif", draw(99, side=500)[0])
    steps = {}
    for name in STEPS:
        before = folder.parent / name
        shutil.copytree(folder, before)
        began = time.monotonic()
        terminal, stderr = pty.openpty()
        process = start(folder, name, stderr)
        os.close(stderr)
        shown = shown_on(terminal)
        assert process.wait(timeout=120) == 0, shown
        seconds = time.monotonic() - began
        steps[name] = Undisturbed(before, seconds, written(folder, name), hidden(folder))
        assert bool(steps[name].files) == bool(STEPS[name][1])
    return steps
