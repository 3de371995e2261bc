"""Every step killed, interrupted and started twice: the files of an undisturbed run, and never half of one.

How often a step is killed: $CROSSEARTH_KILLS [default: 3].
"""

import os
import random
import re
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from own_domain import NAME
from steps import STEPS, Undisturbed, hidden, readable, run_here, start

KILLS = int(os.environ.get("CROSSEARTH_KILLS", "3"))
Run = Callable[[str], None]
EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143}
FROM_REGISTRY = f"predict scene.tif --model models:/crossearth-{NAME}@champion --out from.tif"


@pytest.fixture(params=STEPS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(name: str, undisturbed: dict[str, Undisturbed], tmp_path: Path) -> Path:
    return Path(shutil.copytree(undisturbed[name].before, tmp_path / "user"))


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in the folder; it must succeed, and MLflow take all its records."""

    def run(command: str) -> None:
        with warnings.catch_warnings(action="error", category=RuntimeWarning):
            code, said = run_here(command, folder, monkeypatch, capsys)
        assert code == 0, said

    return run


def test_killed_again_and_again(
    name: str, folder: Path, undisturbed: dict[str, Undisturbed], run: Run
) -> None:
    step, moments = undisturbed[name], random.Random(name)
    for _ in range(KILLS):
        process = start(folder, name)
        end = time.monotonic() + step.seconds * moments.random()
        while time.monotonic() < end and process.poll() is None:
            assert readable(folder, name).items() <= step.files.items()
            time.sleep(0.05)
        with suppress(ProcessLookupError):  # it was done already
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert readable(folder, name).items() <= step.files.items()
    run(STEPS[name][0])
    assert readable(folder, name) == step.files
    assert hidden(folder) <= step.hidden
    if name == "register":
        run(FROM_REGISTRY)


def listens(pid: int) -> bool:
    """Whether a process has a handler of its own for SIGTERM, or has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)$", status, re.M)
    return bool(int(caught, 16) & 1 << signal.SIGTERM - 1)


@pytest.mark.parametrize("number", EXIT, ids=lambda number: number.name)
def test_a_signal_is_obeyed_and_the_way_on_is_said(
    name: str, folder: Path, undisturbed: dict[str, Undisturbed], number: signal.Signals, run: Run
) -> None:
    process = start(folder, name)
    time.sleep(undisturbed[name].seconds * 0.6)
    while process.poll() is None and not listens(process.pid):  # Python is still starting
        time.sleep(0.02)
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
    run(STEPS[name][0])
    assert readable(folder, name) == undisturbed[name].files


def test_two_at_once(name: str, folder: Path, undisturbed: dict[str, Undisturbed], run: Run) -> None:
    processes = [start(folder, name) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes in ([0, 0], [0, 2]), said
    assert readable(folder, name) == undisturbed[name].files
    if name == "register":
        run(FROM_REGISTRY)
