"""Crops that other processes read and augment beside the training.

What they read comes through pipes: tensors in shared memory would want a large /dev/shm, and sockets with
short names in TMPDIR; a reader that lacks them would leave the training waiting.
"""

import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from crossearth.data.common.pool import start_processes
from crossearth.data.tiles.dataset import Batch, TrainingStream

AHEAD = 4  # batches under way a reader
PATIENCE_S = 5.0  # for a batch of a training that was told to stop, and for readers at the end

Arrays = dict[str, NDArray[Any]]


class StuckError(Exception):
    """A reader gives no batch, and the training was told to stop."""


@contextmanager
def reading(
    stream: TrainingStream,
    positions: Iterable[list[int]],
    workers: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Iterator[Batch]]:
    """Yields batches of the samples at these positions of `stream`, in order.

    Args:
        positions: of the samples of each batch.
        workers: processes that read; 0 = this one does, when a batch is asked for.
        stopped: whether the training was told to stop: then a batch is waited for `PATIENCE_S` seconds.

    Raises:
        InputError: from a batch, what a reader refuses.
        PoolError: no process can be started.
        BrokenProcessPool: from a batch, a reader was ended.
        StuckError: from a batch, it did not come and `stopped`.
    """
    if not workers:
        yield (_tensors(_read(each, stream)) for each in positions)
        return
    fewer = "set train.workers to 0 in params.yaml"
    pool, readers = start_processes(workers, fewer, _start_reader, (stream,))
    left = iter(positions)
    waiting = deque(pool.submit(_read, each) for each in islice(left, AHEAD * workers))
    try:
        yield _in_order(pool, waiting, left, stopped)
    except BrokenProcessPool:
        for reader in readers:
            reader.kill()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        _end(readers)


def _in_order(
    pool: ProcessPoolExecutor,
    waiting: deque[Future[Arrays]],
    left: Iterator[list[int]],
    stopped: Callable[[], bool],
) -> Iterator[Batch]:
    while waiting:
        arrays = _result(waiting.popleft(), stopped)
        waiting.extend(pool.submit(_read, each) for each in islice(left, 1))
        yield _tensors(arrays)


def _result(future: Future[Arrays], stopped: Callable[[], bool]) -> Arrays:
    patience = PATIENCE_S
    while True:
        asked = time.monotonic()
        try:
            return future.result(timeout=0.5)
        except TimeoutError:
            if future.done():
                raise  # the reader's own
        if stopped():
            patience -= time.monotonic() - asked
            if patience <= 0:
                raise StuckError


def _end(readers: list[BaseProcess]) -> None:
    """Waits for the readers' end, and ends those that do not: they hear no other signal."""
    until, running = time.monotonic() + PATIENCE_S, {each.sentinel: each for each in readers}
    while running and (ended := wait(list(running), until - time.monotonic())):
        for sentinel in ended:
            del running[cast(int, sentinel)]
    for reader in running.values():
        reader.kill()
        reader.join(1.0)  # not for ever: a disk that answers no more holds it


_own_stream: TrainingStream  # of a reader


def _start_reader(stream: TrainingStream) -> None:
    """A terminal's Ctrl-C reaches the readers too, but the training still needs the batch at hand."""
    global _own_stream
    _own_stream = stream
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


def _read(positions: list[int], stream: TrainingStream | None = None) -> Arrays:
    items = [(stream or _own_stream)[position] for position in positions]
    return {key: np.stack([np.asarray(item[key]) for item in items]) for key in items[0]}  # type: ignore[literal-required]


def _tensors(arrays: Arrays) -> Batch:
    return cast(Batch, {key: torch.from_numpy(array) for key, array in arrays.items()})
