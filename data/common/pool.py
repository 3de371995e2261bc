"""Processes beside this one: forked, deaf to a terminal's Ctrl-C, gone when this one is."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from crossearth.data.common.errors import InputError

SEMAPHORES = "/dev/shm"  # noqa: S108, where Linux keeps them


class PoolError(InputError):
    """The system gives no processes, or ended one: the input is not to blame."""


def start_processes(
    workers: int, fewer: str, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> tuple[ProcessPoolExecutor, list[BaseProcess]]:
    """A pool and its processes, all of them running.

    Args:
        fewer: how the user does with none: "set train.workers to 0 in params.yaml".
        initializer: called with `initargs` in each process.

    Raises:
        PoolError: the system gives no semaphores, or no processes.
    """
    before = multiprocessing.active_children()
    try:
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("fork"), _begin, (initializer, initargs)
        )
    except OSError as error:
        raise PoolError(
            f"cannot start {workers} processes: {error.strerror}",
            where=SEMAPHORES,
            expected="a folder that may be written to, with room for a few semaphores",
            next_step=f"give the container such a one (--shm-size), or {fewer}",
        ) from error
    try:
        pool.submit(int)  # the first task starts them all
    except OSError as error:
        pool.shutdown(wait=False, cancel_futures=True)
        raise PoolError(f"cannot start {workers} processes: {error.strerror}", next_step=fewer) from error
    return pool, [each for each in multiprocessing.active_children() if each not in before]


@contextmanager
def process_pool(workers: int, what: str, fewer: str) -> Iterator[ProcessPoolExecutor]:
    """Yields a pool; no process of it outlives the `with`.

    An error waits for the tasks at hand, a stop (Ctrl-C, SIGTERM, a generator that is closed) ends them.

    Args:
        what: is done by it, for errors.
        fewer: see `start_processes`.

    Raises:
        PoolError: see `start_processes`; a process was ended from outside.
    """
    pool, processes = start_processes(workers, fewer)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise PoolError(
            f"one of {workers} processes was ended",
            where=what,
            next_step=f"if the system ran out of memory, {fewer} (the result stays the same); "
            "then run the command again",
        ) from error
    except Exception:
        raise
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    """In each process, first of all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    if initializer is not None:
        initializer(*initargs)


def end_with_parent() -> None:
    """Ends this process as soon as the one that started it is gone: an orphan would keep locks and memory."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
