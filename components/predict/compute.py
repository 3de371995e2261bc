"""What of a map is missing, computed into its parts: in this process, or in several that share the scene."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
import torch

from crossearth.components.predict.outputs import Kept, keep
from crossearth.components.predict.parts import Parts
from crossearth.components.predict.sliding import Loaded, Plan, blocks
from crossearth.components.predict.strips import View, open_view
from crossearth.data.common.pool import end_with_parent

TASKS_PER_JOB = 4  # a corner without data is done at once: none waits long for the last
LEAST_STRIPS = 4  # a task: the windows above its first strip are computed twice
LOOK_EVERY_S = 0.2

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Task:
    """Strips of a panel of a scene, to be computed into its parts."""

    plan: Plan
    parts: Parts
    kept: tuple[str, ...]  # `PredictConfig.kept`
    panel: int
    strips: range


class StoppedError(RuntimeError):
    """The process that gave the task wants no more of it."""


def missing(plan: Plan, parts: Parts, kept: tuple[str, ...], most: int) -> list[Task]:
    """Tasks of at most `most` strips each that make a map's parts complete."""
    tasks = []
    for panel in range(len(plan.panels)):
        absent = [strip for strip in range(len(plan.strips)) if not parts.has(strip, panel)]
        while absent:
            length = 1
            while length < min(len(absent), most) and absent[length] == absent[0] + length:
                length += 1
            strips = range(absent[0], absent[0] + length)
            tasks.append(Task(plan, parts, kept, panel, strips))
            absent = absent[length:]
    return tasks


def run(task: Task, loaded: Loaded, view: View, advance: Advance) -> None:
    """Computes a task and stores its parts, each as soon as it is whole."""
    begun: list[Kept] = []
    rows = 0
    for strip, block in blocks(loaded, view, task.plan, task.panel, task.strips, advance):
        begun.append(keep(block, task.kept))
        rows += len(block.valid)
        top, bottom = task.plan.strips[strip]
        if rows == bottom - top:
            joined = {name: np.concatenate([each[name] for each in begun], axis=1) for name in begun[0]}
            task.parts.save(strip, task.panel, joined)
            begun, rows = [], 0


def compute(
    plan: Plan,
    parts: Parts,
    kept: tuple[str, ...],
    loaded: Loaded,
    team: "Team | None",
    advance: Advance,
) -> None:
    """Makes a map's parts complete.

    Args:
        kept: names of what is kept, `PredictConfig.kept`.
        team: other processes that do it; None = this one does.
        advance: called with numbers of windows that are done; what it raises stops all.
    """
    if team is None:
        with open_view(plan.scene) as view:
            for task in missing(plan, parts, kept, len(plan.strips)):
                run(task, loaded, view, advance)
        return
    strips = len(plan.strips) * len(plan.panels)
    most = max(LEAST_STRIPS, -(-strips // (TASKS_PER_JOB * team.jobs)))
    team.run(missing(plan, parts, kept, most), advance)


class Team:
    """Processes that each have the model and take tasks, until they are told to stop."""

    def __init__(self, pool: ProcessPoolExecutor, jobs: int, stop: Event, done: Any) -> None:
        self.jobs = jobs
        self._pool, self._stop, self._done, self._told = pool, stop, done, 0

    @classmethod
    @contextmanager
    def start(cls, jobs: int, load: Callable[[str], Loaded], devices: list[str]) -> Iterator["Team"]:
        """Starts the processes; leaving this ends them, after the pass of the network that they are in.

        Args:
            load: gives the model on a device; it is sent to the processes, and so a function of a module.
            devices: which they take in turn.
        """
        context = multiprocessing.get_context("spawn")  # CUDA allows no fork
        stop, done, ranks = context.Event(), context.Value("q", 0), context.Value("i", 0)
        threads = max(1, torch.get_num_threads() // jobs)
        with ProcessPoolExecutor(jobs, context, _begin, (load, devices, threads, stop, done, ranks)) as pool:
            try:
                yield cls(pool, jobs, stop, done)
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)

    def run(self, tasks: list[Task], advance: Advance) -> None:
        """Runs tasks; raises what the first that fails raised."""
        waiting = {self._pool.submit(_run, task) for task in tasks}
        while waiting:
            finished, waiting = wait(waiting, LOOK_EVERY_S, FIRST_COMPLETED)
            for future in finished:
                future.result()
            count = self._done.value
            advance(count - self._told)
            self._told = count


class _Member:
    """What a process of a team has."""

    loaded: Loaded
    stop: Event
    done: Any


def _begin(
    load: Callable[[str], Loaded], devices: list[str], threads: int, stop: Event, done: Any, ranks: Any
) -> None:
    end_with_parent()
    with ranks.get_lock():
        rank = ranks.value
        ranks.value += 1
    torch.set_num_threads(threads)
    _Member.loaded, _Member.stop, _Member.done = load(devices[rank % len(devices)]), stop, done


def _run(task: Task) -> None:
    def advance(windows: int) -> None:
        if _Member.stop.is_set():
            raise StoppedError
        with _Member.done.get_lock():
            _Member.done.value += windows

    with open_view(task.plan.scene) as view:
        run(task, _Member.loaded, view, advance)
