"""The states of a training on disk: which are kept, which are read, and when a full disk is too much."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from crossearth.components.train import state as training_state
from crossearth.components.train.state import BEST_NAME, Checkpoints
from crossearth.data.common.errors import InputError

TENSORS = {"w": torch.arange(3.0)}


def state(folder: Path, iteration: int) -> Path:
    return folder / f"step_{iteration:08d}.safetensors"


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


@pytest.fixture
def spoilt(tmp_path: Path) -> Checkpoints:
    """Keeps one state; of 4 and 6, which are there, the newer one was cut off."""
    for iteration in (4, 6):
        Checkpoints(tmp_path, 2, {}).save(iteration, TENSORS, {})
    damage(state(tmp_path, 6))
    checkpoints = Checkpoints(tmp_path, 1, {})
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.about["iteration"] == 4
    return checkpoints


def test_a_damaged_newer_state_takes_no_good_ones_place(tmp_path: Path, spoilt: Checkpoints) -> None:
    spoilt.save(5, TENSORS, {})
    assert not state(tmp_path, 4).exists()
    found = Checkpoints(tmp_path, 1, {}).latest()
    assert found is not None
    assert found.about["iteration"] == 5


def test_a_damaged_state_that_was_written_anew_counts_again(tmp_path: Path, spoilt: Checkpoints) -> None:
    spoilt.save(6, TENSORS, {})
    assert list(tmp_path.iterdir()) == [state(tmp_path, 6)]
    spoilt.save(7, TENSORS, {})
    assert list(tmp_path.iterdir()) == [state(tmp_path, 7)]


@pytest.fixture
def disk_without_room_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    atomic_path = training_state.atomic_path

    def fill(prefix: str) -> None:
        @contextlib.contextmanager
        def full(path: Path) -> Iterator[Path]:
            if path.name.startswith(prefix):
                raise OSError(errno.ENOSPC, "No space left on device")
            with atomic_path(path) as partial:
                yield partial

        monkeypatch.setattr(training_state, "atomic_path", full)

    return fill


@pytest.mark.parametrize("prefix", ["step", "best"])
def test_states_and_best_parameters_fail_apart(
    prefix: str, tmp_path: Path, disk_without_room_for: Callable[[str], None]
) -> None:
    disk_without_room_for(prefix)
    checkpoints = Checkpoints(tmp_path, 2, {})
    with pytest.raises(InputError, match="3 times in a row"):
        for iteration in range(1, 4):
            checkpoints.save(iteration, TENSORS, {})
            checkpoints.save_best(iteration, TENSORS, iteration / 10)
    assert iteration == 3


def test_best_parameters_of_other_inputs_are_none(tmp_path: Path) -> None:
    Checkpoints(tmp_path, 2, {"lr": 1}).save_best(5, TENSORS, 0.9)
    assert (tmp_path / BEST_NAME).is_file()
    assert Checkpoints(tmp_path, 2, {"lr": 1}).best() is not None
    assert Checkpoints(tmp_path, 2, {"lr": 2}).best() is None
