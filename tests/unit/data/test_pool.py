"""Processes beside this one: what cannot be started is said, and none is left."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing import synchronize
from pathlib import Path

import pytest
from children import running_children
from own_domain import NAME, own_domain

from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.components.synthesize.step import SynthesizeConfig, synthesize
from crossearth.data.common.pool import PoolError, process_pool

pytestmark = pytest.mark.unit


def ingest_town(folder: Path) -> None:
    ingest([NAME], own_domain(folder), folder, folder / "domains", IngestConfig(workers=2))


def draw_two(folder: Path) -> None:
    synthesize(["loveda", "potsdam"], folder / "archives", SynthesizeConfig(workers=2), 0)


@pytest.mark.parametrize("step", [ingest_town, draw_two])
def test_a_step_without_a_place_for_semaphores(
    step: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synchronize.SemLock, "_make_name", staticmethod(lambda: "/no/such/folder"))
    said = r"(?s)/dev/shm: cannot start 2 processes: .*(ingest|synthesize)\.workers to 1"
    with pytest.raises(PoolError, match=said):
        step(tmp_path)


def end_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_was_ended_is_said_and_none_is_left() -> None:
    said = r"(?s)draw: one of 2 processes was ended.*, lower n"
    with pytest.raises(PoolError, match=said), process_pool(2, "draw", "lower n") as pool:
        pool.submit(end_itself).result()
    assert not running_children()


def test_a_stop_waits_for_no_task() -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), process_pool(2, "draw", "lower n") as pool:
        pool.submit(time.sleep, 60)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 30
    assert not running_children()
