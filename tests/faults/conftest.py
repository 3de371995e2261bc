"""One undisturbed run of every step, for all faults to start from."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from disks import mounted
from steps import Undisturbed, run_undisturbed


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Undisturbed]:
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed") / "user")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    with mounted(tmp_path / "disk") as path:
        yield path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As many as the processes that the tests start have: sums are the same to the last digit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def heard_interrupts() -> Iterator[None]:
    """Also where the tests run in the background of a shell, whose children ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
