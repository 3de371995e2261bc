"""Two processes of one training: what they share, and what may not differ between them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from services import free_port
from training_folder import environment, write_folder

SCRIPT = Path(__file__).parents[2] / "two_processes.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process says."""
    folder = tmp_path_factory.mktemp("two")
    write_folder(folder)
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, os.fspath(SCRIPT), os.fspath(folder)]
    processes = [
        subprocess.Popen(
            command, env=environment() | group | {"RANK": rank}, stdout=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    try:
        return [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_initial_weights_that_differ_are_refused(found: list[dict[str, Any]]) -> None:
    assert all("the initial weights differs between the processes" in each["weights"] for each in found)


def test_states_that_differ_are_refused_though_their_iterations_are_equal(
    found: list[dict[str, Any]],
) -> None:
    assert all("the state to resume from differs between the processes" in each["states"] for each in found)


def test_trained_parameters_are_shared_and_a_frozen_backbone_is_not(found: list[dict[str, Any]]) -> None:
    first, second = found
    (before, after), (other, taken) = first["trained"], second["trained"]
    assert other == pytest.approx(before + 1)
    assert (after, taken) == (before, before)
    assert (first["frozen"], second["frozen"]) == (0, 1)


def test_gradients_are_shared(found: list[dict[str, Any]]) -> None:
    assert found[0]["gradients"] == found[1]["gradients"]
    assert not any(each["without"] for each in found)
