"""What is said of a run on a cluster: its progress in one line, and how it ended and why."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter

from rich.console import Console

from crossearth.components.pods.reason import LOGS_READ, Reason, explain
from crossearth.components.pods.state import (
    CACHED,
    ENDED,
    FAILED,
    FINISHED,
    KILLED,
    OMITTED,
    PENDING,
    RUNNING,
    UNKNOWN,
    RunState,
    Step,
    read_run,
)
from crossearth.data.common.errors import InputError
from crossearth.pipelines.api import Api, UnreachableError

PATIENCE_S = 300.0  # how long `watch` waits for a host that does not answer
# as the API calls them; a run that was stopped stands there as FAILED
SHOWN = {FINISHED: "SUCCEEDED", KILLED: "CANCELED"}
RESULTS = {
    "report": "the table is the workspace's artifacts/report (index.html, scores.md) and on the step's page; "
    "with register_models MLflow's model registry has the models, and the page why each was promoted or not",
    "predict": "the maps are in the folder that the parameter `out` names",
}


def read(api: Api, run_id: str, most: int = LOGS_READ) -> tuple[RunState, list[Reason]]:
    """How a run goes or went, and why its failed steps failed.

    Args:
        most: logs of failed pods to read.

    Raises:
        InputError: no such run; the host does not answer.
    """
    run = read_run(api.run(run_id), api.workflow(run_id))
    if run.state == FAILED and not run.complete and _stopped(api, run_id, run):
        run = replace(run, state=KILLED, stopped=True)
    return explain(run, lambda step: api.log(run_id, step.node, step.pod), most=most)


def _stopped(api: Api, run_id: str, run: RunState) -> bool:
    """Whether the exit handler, which has read Argo's record, says that a person stopped the run."""
    ends = [step for step in run.steps if step.name == "finish" and step.node]
    return any('"pipeline_state": "KILLED"' in (api.log(run_id, step.node, step.pod) or "") for step in ends)


def watch(api: Api, run_id: str, console: Console, poll_s: float = 10.0) -> tuple[RunState, list[Reason]]:
    """Waits for a run's end, also through short times in which the host does not answer.

    Args:
        console: gets the progress: a line that is kept up to date on a terminal, else a line at changes.

    Returns:
        The run and the reasons of what failed.

    Raises:
        InputError: the login is not taken any more; the host does not answer for long.
    """
    answered, told = time.monotonic(), ""
    with console.status("waiting") as status:
        while True:
            try:
                run = read_run(api.run(run_id), api.workflow(run_id))
                if run.state in ENDED:
                    return read(api, run_id)
                answered = time.monotonic()
                status.update(progress(run, datetime.now(UTC)))
                line = progress(run, None)
                if line != told and not console.is_terminal:
                    console.print(line)
                told = line
            except UnreachableError:
                if time.monotonic() - answered > PATIENCE_S:
                    raise
            except InputError as error:
                raise InputError(
                    f"the run goes on, only the watching ends\n  {error}",
                    where=f"run {run_id}",
                    next_step=f"crossearth pipeline why {run_id}",
                ) from error
            time.sleep(poll_s)


def progress(run: RunState, now: datetime | None) -> str:
    """In one line what runs since when, and how far the loops are; with `now` also for how long."""
    going = sorted(run.of(RUNNING, PENDING), key=attrgetter("name"))
    parts = [_running(name, list(steps), now) for name, steps in groupby(going, attrgetter("name"))]
    if not parts and run.state == RUNNING:
        parts = ["between two steps" if run.steps else "no step has begun yet"]
    elif not parts and run.state in (PENDING, UNKNOWN):
        since = f" since {_clock(run.began)}" if run.began else ""
        parts = [f"waiting: the cluster has not said anything of it yet{since}"]
    parts += [f"{loop.name} {loop.done} of {loop.total} done" for loop in run.loops]
    failed = run.of(FAILED)
    if failed:
        parts.append(f"failed: {', '.join(map(str, failed))}")
    return "; ".join(["is being stopped", *parts] if run.stopped and run.state == RUNNING else parts)


def _running(name: str, steps: Sequence[Step], now: datetime | None) -> str:
    items = ", ".join(str(step).removeprefix(name).strip() for step in steps)
    text = f"{name} {items}".strip()
    began = min((step.began for step in steps if step.began), default=None)
    if began:
        text += f" since {_clock(began)}" + (f" ({_length(began, now)})" if now else "")
    message = next((step.message for step in steps if step.message), "")
    return f"{text} ({message})" if message else text


def story(run: RunState, reasons: Sequence[Reason]) -> str:
    """A run in full: how it stands or ended, why steps failed, what was cached or not reached."""
    took = f" after {_length(run.began, run.ended)}" if run.began and run.ended else ""
    lines = [f"{run.name}: {SHOWN.get(run.state, run.state)}{took if run.state in ENDED else ''}"]
    killed = run.of(KILLED)
    if run.state == KILLED:
        where = f" in {', '.join(_listed(killed))}" if killed else ""
        lines.append(f"stopped by a person{where}")
    if run.state not in ENDED:
        lines.append(progress(run, datetime.now(UTC)))
    for reason in reasons:
        lines += [str(reason), *(f"  | {line}" for line in reason.tail)]
    if run.state == FAILED and not reasons:
        lines.append("why is not known: the server names no step that failed")
    if run.state == UNKNOWN:
        lines.append("the server gives no state of it")
    ended_well = {step.name for step in run.of(FINISHED, CACHED)}
    if run.state == FINISHED:
        lines += [words for name, words in RESULTS.items() if name in ended_well]
    if cached := run.of(CACHED):
        lines.append(f"from Kubeflow's cache: {', '.join(_listed(cached))}")
    if omitted := list(dict.fromkeys(step.name for step in run.of(OMITTED))):
        lines.append(f"not reached: {', '.join(omitted)}")
    return "\n".join(lines)


def _listed(steps: Iterable[Step]) -> list[str]:
    """The names, with the number of items where there are many."""
    counted: dict[str, list[Step]] = {}
    for step in steps:
        counted.setdefault(step.name, []).append(step)
    return [
        str(same[0]) if len(same) == 1 else f"{name} ({len(same)} items)" for name, same in counted.items()
    ]


def _clock(moment: datetime | None) -> str:
    return f"{moment.astimezone(UTC):%H:%M:%S} UTC" if moment else ""


def _length(began: datetime, ended: datetime) -> str:
    """A time as people say it: the two largest units."""
    seconds = max(0, round((ended - began).total_seconds()))
    minutes, hours = seconds // 60, seconds // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"
