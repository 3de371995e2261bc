"""The parity check itself: on the recordings of the released model, on other sizes, and that it can fail."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    folder = tmp_path / "recorded"
    assert run("record.py", folder, 3).returncode == 0
    return folder


def change(folder: Path, file: str, **arrays: np.ndarray) -> None:
    with np.load(folder / file) as held:
        np.savez(folder / file, **(dict(held) | arrays))


def test_released_model(parity_dir: Path) -> None:
    result = run("check.py", parity_dir)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert "0 differ" in result.stdout
    assert "0 unchecked" in result.stdout


@pytest.mark.parametrize("seed", [2, 7, 9])
def test_other_sizes(tmp_path: Path, seed: int) -> None:
    """Non-square inputs, odd grids, other depth, heads, taps, classes, tokens and windows."""
    assert run("record.py", tmp_path / "recorded", seed).returncode == 0
    result = run("check.py", tmp_path / "recorded")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


def test_a_changed_number_fails(recorded: Path) -> None:
    with np.load(recorded / "io.npz") as held:
        memory = held["memory1"].copy()
    memory.flat[5] += 1e-2
    change(recorded, "io.npz", memory1=memory)
    result = run("check.py", recorded)
    assert result.returncode == 1
    assert "differs: memory1" in result.stdout


def test_an_array_that_nothing_reads_fails(recorded: Path) -> None:
    change(recorded, "state.npz", surplus=np.zeros(3, np.float32))
    result = run("check.py", recorded)
    assert result.returncode == 1
    assert "surplus" in result.stdout + result.stderr


def test_a_file_that_nothing_reads_fails(recorded: Path) -> None:
    (recorded / "more.json").write_text("{}")
    np.savez(recorded / "more.npz", something=np.zeros(2))
    result = run("check.py", recorded)
    assert result.returncode == 1
    assert "unchecked: more.json" in result.stdout
    assert "unchecked: more:something" in result.stdout


def test_a_missing_array_fails(recorded: Path) -> None:
    with np.load(recorded / "io.npz") as held:
        np.savez(recorded / "io.npz", **{name: held[name] for name in held if name != "queries"})
    result = run("check.py", recorded)
    assert result.returncode == 1
    assert "queries" in result.stdout + result.stderr


def test_sizes_that_contradict_each_other_fail(recorded: Path) -> None:
    meta = json.loads((recorded / "meta.json").read_text())
    meta["model_cfg"]["decode_head"]["num_classes"] += 1
    (recorded / "meta.json").write_text(json.dumps(meta))
    result = run("check.py", recorded)
    assert result.returncode == 1
    assert "num_classes" in result.stdout + result.stderr


@pytest.mark.parametrize("arguments", [[], ["nowhere"]])
def test_usage(arguments: list[str]) -> None:
    assert run("check.py", *arguments).returncode == 2
