"""`crossearth train` killed and interrupted at any moment: the same command goes on, to the same bytes."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from forks import Fork
from safetensors import safe_open
from training_folder import RECIPE, environment, write_folder

MODEL = f"artifacts/models/{RECIPE}"
KILLS = 4
NUMBERS = {"iterations": 40, "workers": 1, "checkpoint_every": 3}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    write_folder(folder, **NUMBERS)
    subprocess.run(["crossearth", "train", RECIPE], cwd=folder, env=environment(), timeout=120, check=True)
    return written(folder)


def start(folder: Path) -> Fork:
    """The command in a process group of its own, as a terminal starts it."""
    return Fork(["crossearth", "train", RECIPE], folder, environment())


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / MODEL).iterdir())}


def states(folder: Path) -> list[Path]:
    return sorted((folder / f"{MODEL}.checkpoints").glob("step_*"))


def test_killed_again_and_again(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    write_folder(tmp_path, **NUMBERS)
    moments = random.Random(0)
    for _ in range(KILLS):
        training = start(tmp_path)
        before, end = states(tmp_path)[-1:], time.monotonic() + 60
        while states(tmp_path)[-1:] == before and training.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(moments.random() / 10)
        os.killpg(training.pid, signal.SIGKILL)
        training.communicate()
        for state in states(tmp_path):  # no reader ever sees half of one
            with safe_open(state, framework="np") as file:
                assert file.metadata()
    training = start(tmp_path)
    _, words = training.communicate()
    assert training.returncode == 0, words
    assert written(tmp_path) == undisturbed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(
    number: signal.Signals, code: int, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    write_folder(tmp_path, **NUMBERS)
    training = start(tmp_path)
    end = time.monotonic() + 60
    while not states(tmp_path) and training.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(training.pid, number)  # a terminal's Ctrl-C reaches the readers too
    _, words = training.communicate(timeout=20)
    assert training.returncode == code, words
    assert "Traceback" not in words
    assert f"crossearth train {RECIPE}" in words, "says how to go on"
    training = start(tmp_path)
    _, words = training.communicate()
    assert training.returncode == 0, words
    assert written(tmp_path) == undisturbed
