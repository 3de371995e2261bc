"""Side by side: every form of a computation in turn, round after round, medians and ratios to the first form.

The forms of a case are timed in one process, A B A B, so that whatever else the machine does falls on all of
them alike. Memory is taken apart, in a process of each form's own, from its start on.
"""

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

Action = Callable[[], object]
SCRATCH = "CROSSEARTH_BENCHMARK_FOLDER"  # in the environment: a folder that all processes of a run share
_calls = count()
DEVICE = "CROSSEARTH_BENCHMARK_DEVICE"  # likewise: where networks compute


@dataclass(frozen=True)
class Form:
    """One way to do a computation.

    prepare: sets up, untimed, and returns what is timed. items: that one call handles, in the case's unit.
    """

    prepare: Callable[[], Action]
    items: float = 1


@dataclass(frozen=True)
class Case:
    """Forms of one computation; the first is the baseline.

    unit: of the items. rounds: timed calls of each form. compare: says how far the results of the forms, by
    name, are apart. needs: modules that are no part of the project's own installation.
    """

    forms: Mapping[str, Form]
    unit: str = "call"
    rounds: int = 5
    compare: Callable[[Mapping[str, object]], str] | None = None
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cost:
    """Of one form: medians over the rounds, per call.

    seconds, cpu_seconds: wall, and of all threads. spread: half the interquartile range of the wall seconds,
    as a share of their median. speed: items per second. ratio, cpu_ratio: of the baseline's seconds an item
    to this form's, median over the rounds: above 1 is faster; in a case of growth, below 1 is more than in
    proportion. peak_mb: most memory of a process that does nothing else, MiB; on a GPU what a call takes
    beyond what it finds there.
    """

    seconds: float
    cpu_seconds: float
    spread: float
    speed: float
    ratio: float
    cpu_ratio: float
    peak_mb: float


@dataclass(frozen=True)
class Result:
    """Of a case: its unit, calls timed, costs by form, and what `compare` says."""

    unit: str
    rounds: int
    costs: Mapping[str, Cost]
    difference: str


def measure(name: str, case: Case) -> Result:
    """Runs a case: warm-up, rounds, then each form once more in a process of its own."""
    actions = {form: each.prepare() for form, each in case.forms.items()}
    results = {form: action() for form, action in actions.items()}
    difference = case.compare(results) if case.compare else ""
    del results
    runs: dict[str, list[tuple[float, float]]] = {form: [] for form in actions}
    for _ in range(case.rounds):
        for form, action in actions.items():
            runs[form].append(timed(action))
    # to compile in a process of each form's own would take minutes
    peaks = {form: _gpu_peak_mb(action) for form, action in actions.items()} if device() != "cpu" else {}
    del actions
    return _result(case, runs, peaks or {form: _apart(name, form)[2] for form in case.forms}, difference)


def once(name: str, case: Case) -> Result:
    """Runs each form once, without a warm-up, in a process of its own."""
    apart = {form: _apart(name, form) for form in case.forms}
    runs = {form: [(seconds, cpu_seconds)] for form, (seconds, cpu_seconds, _) in apart.items()}
    return _result(case, runs, {form: peak for form, (_, _, peak) in apart.items()}, "")


def timed(action: Action) -> tuple[float, float]:
    """Wall and CPU seconds of an action."""
    started, cpu_started = time.perf_counter(), _cpu_seconds()
    action()
    if device() != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started, _cpu_seconds() - cpu_started


def _result(
    case: Case, runs: Mapping[str, list[tuple[float, float]]], peaks: Mapping[str, float], difference: str
) -> Result:
    baseline = next(iter(case.forms))
    costs = {}
    for form, each in case.forms.items():
        wall, cpu = (list(column) for column in zip(*runs[form], strict=True))
        quartiles = statistics.quantiles(wall, n=4) if len(wall) > 1 else [wall[0]] * 3
        middle = statistics.median(wall)
        share = each.items / case.forms[baseline].items
        pairs = list(zip(runs[baseline], runs[form], strict=True))
        ratio, cpu_ratio = (statistics.median(a[k] / b[k] * share for a, b in pairs) for k in (0, 1))
        costs[form] = Cost(
            seconds=middle,
            cpu_seconds=statistics.median(cpu),
            spread=(quartiles[2] - quartiles[0]) / 2 / middle,
            speed=each.items / middle,
            ratio=ratio,
            cpu_ratio=cpu_ratio,
            peak_mb=peaks[form],
        )
    return Result(case.unit, len(runs[baseline]), costs, difference)


def show(name: str, result: Result) -> None:
    """Prints a case as a table."""
    table = Table(title=f"{name} (rounds: {result.rounds})", title_justify="left", title_style="bold")
    table.add_column("form")
    for column in ("wall s", "spread", "CPU s", f"{result.unit}s / s", "ratio", "CPU ratio", "peak MiB"):
        table.add_column(column, justify="right")
    for form, cost in result.costs.items():
        table.add_row(
            form,
            f"{cost.seconds:.4g}",
            f"{cost.spread:.0%}",
            f"{cost.cpu_seconds:.4g}",
            f"{cost.speed:.4g}",
            f"{cost.ratio:.2f}",
            f"{cost.cpu_ratio:.3f}",
            f"{cost.peak_mb:.0f}",
        )
    console = Console(width=110)
    console.print(table)
    if result.difference:
        console.print(result.difference)


def scratch(name: str) -> Path:
    """A place of that name for what a case prepares once for all its processes; gone in the end."""
    return Path(os.environ[SCRATCH]) / name


def fresh(name: str) -> Path:
    """A place that no other call has, of any process."""
    return scratch(f"{name}-{os.getpid()}-{next(_calls)}")


def device() -> str:
    """Where the networks of this run compute: "cpu" or "cuda"."""
    return os.environ.get(DEVICE, "cpu")


def on_gpu(name: str, form: Form) -> dict[str, Form]:
    """A form where there is a GPU: to compile a network for a CPU takes longer than it saves here."""
    return {name: form} if device() != "cpu" else {}


def _gpu_peak_mb(action: Action) -> float:
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    action()
    return (torch.cuda.max_memory_allocated() - held) / 2**20


def peak_mb() -> float:
    """Most memory that this process held at a time, MiB."""
    # not ru_maxrss, which a child takes over from the process that starts it
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def machine_line() -> str:
    """Processor, cores that this process may use, memory, Python."""
    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in described.splitlines() if "model name" in line]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = models[0] if models else platform.processor() or platform.machine()
    if device() != "cpu":
        processor = f"{torch.cuda.get_device_name()}, {processor}"
    return (
        f"{processor}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"Python {platform.python_version()}, {platform.system()}"
    )


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _apart(name: str, form: str) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak memory in MiB of one call in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("run.py")), "--apart", name, form]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, cpu_seconds, peak = map(float, done.stdout.split()[-3:])
    return seconds, cpu_seconds, peak
