"""An ablation study: trains and scores every combination of a grid, and writes the table.

What is done already is not done again, and an interrupted training goes on where it stopped: the same command
again. Other values under `grid` make other folders; with other ones under `train` all is trained anew.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path

import torch

from crossearth.components.ablate.grid import Job, jobs, read_grid
from crossearth.components.ablate.table import Outcome, collect, markdown
from crossearth.components.evaluate.results import metric_name
from crossearth.components.evaluate.step import EvaluateConfig, evaluate
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.places import ABLATIONS, DOMAINS, EARTH_STYLES
from crossearth.components.runtime.shell import quieten
from crossearth.components.runtime.tracking import start_run
from crossearth.components.train.step import train
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.errors import InputError, PartlyDoneError
from crossearth.data.common.files import digest, write_text

log = logging.getLogger(__name__)


def run(params: Params, catalog: Catalog, grid: Path, processes: int = 1) -> tuple[Path, Outcome]:
    """Trains and scores what the grid names, then writes and logs `artifacts/ablations/<grid>/table.md`.

    Beside it lies a folder per combination and seed, with `models` and `scores`.

    Args:
        params: parameters that the grid leaves out.
        grid: YAML, see `GridConfig`.
        processes: trainings at a time, each with its share of the machine's threads; their messages go to
            `log.txt` beside their models. One = in this process, with its progress bar.

    Returns:
        The table's file, and what stands in it.

    Raises:
        InputError: not a grid, an unknown recipe, a combination that is no configuration: nothing is trained.
        PartlyDoneError: some trainings were refused; all others are done and stand in the table.
    """
    config, out_dir = read_grid(grid), ABLATIONS / grid.stem
    if not config.recipes:
        raise InputError("recipes: none", where=grid, expected="recipes: [NAME, ...]")
    carried = partial(carry_out, catalog=catalog, scoring=params.config(EvaluateConfig, "evaluate"))
    wanted = jobs(config, params, catalog, out_dir, grid)
    log.info("%d trainings of %d combinations", len(wanted), len({job.cell.folder for job in wanted}))
    errors, finished = [], []
    for number, (job, error) in enumerate(_carried_out(wanted, carried, processes), 1):
        told = "refused" if error else "done"
        print(f"{number}/{len(wanted)} {told}: {job.label}", file=sys.stderr, flush=True)
        errors += [error] if error else []
        finished += [] if error else [job]
    outcome = collect(wanted, finished)
    if not outcome.results:
        raise errors[0]
    path = out_dir / "table.md"
    write_text(path, markdown(outcome, grid.stem))
    _track(outcome, wanted, grid.stem, path)
    if errors:
        raise PartlyDoneError(f"{len(errors)} of {len(wanted)} trainings were refused", errors, [path])
    return path, outcome


def carry_out(job: Job, catalog: Catalog, scoring: EvaluateConfig) -> None:
    """Trains and scores, unless that is done."""
    recipe = catalog.recipe(job.recipe)
    job.folder.mkdir(parents=True, exist_ok=True)
    train(recipe, catalog, DOMAINS, job.model, job.config, EARTH_STYLES)
    evaluate(recipe, catalog, DOMAINS, job.model, job.scores, scoring)


def _carried_out(
    wanted: list[Job], work: Callable[[Job], None], processes: int
) -> Iterator[tuple[Job, InputError | None]]:
    """The jobs as they end, with what was wrong with each."""
    if processes == 1:
        for job in wanted:
            try:
                work(job)
                yield job, None
            except InputError as error:
                yield job, error
        return
    threads = max(1, (os.cpu_count() or 1) // processes)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        futures: dict[Future[None], Job] = {
            pool.submit(_in_process, job, work, threads): job for job in wanted
        }
        try:
            for future in as_completed(futures):
                failure = future.exception()
                if failure is not None and not isinstance(failure, InputError):
                    raise failure
                yield futures[future], failure
        except BrokenProcessPool as error:
            raise InputError(
                "a training's process was ended",
                where="--jobs",
                next_step="if the system ran out of memory, give fewer --jobs; the same command goes on",
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in active_children():  # each saves its training's state
                child.terminate()
            raise


def _in_process(job: Job, work: Callable[[Job], None], threads: int) -> None:
    """The job in a process of its own, whose progress bar would overwrite those of the others."""
    torch.set_num_threads(threads)
    quieten()
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "log.txt").open("a", buffering=1) as stream, redirect_stderr(stream):
        logging.basicConfig(stream=stream, level=logging.INFO, force=True)
        try:
            work(job)
        except (KeyboardInterrupt, SystemExit):  # a result like others for the pool, which begins the next
            os._exit(1)


def _track(outcome: Outcome, wanted: list[Job], name: str, path: Path) -> None:
    """One MLflow run for the table, with the trainings' runs below it."""
    keys = [result.recipe_hash for result in outcome.results]
    tags = {"step": "ablate", "trainings": f"{len(keys)} of {len(wanted)}"}
    grid = {job.cell.folder: dict(job.cell.values) for job in wanted}
    with start_run(f"ablation {name}", key=digest([name, grid, sorted(keys)]), tags=tags) as run:
        run.log_metrics({metric_name(each.cell.label, each.setting): each.mean for each in outcome.scores})
        run.describe(path.read_text(encoding="utf-8"))
        run.log_artifact(path)
        run.adopt(keys)
