"""Benchmarks: what a computation costs beside its plain form.

    python tests/benchmarks/run.py                      all of them
    python tests/benchmarks/run.py network counting     those whose names begin so
    python tests/benchmarks/run.py --json results.json
    python tests/benchmarks/run.py training --rounds 1  once each, where time is short

Baselines are the first forms: the same computation written plainly, eager float32 where it is a network's.
Ratios hold on a machine that others use too, seconds on a quiet one.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from harness import SCRATCH, Case, machine_line, measure, peak_mb, show

from crossearth.components.runtime.version import git_revision

MODULES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py")))


def cases() -> Mapping[str, Case]:
    """All cases by name."""
    return {name: case for module in MODULES for name, case in import_module(module).CASES.items()}


def peak_of(form: str, case: Case) -> float:
    """Memory of this process once it has run a form."""
    case.forms[form].prepare()()
    return peak_mb()


def main() -> None:
    """Runs the chosen cases; exit code 2 for a name that is none."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a case, or the beginning of its name")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="timed calls of each form, not the case's own number"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the numbers too")
    parser.add_argument("--peak", nargs=2, metavar=("NAME", "FORM"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    sys.path.append(str(Path(__file__).parents[1]))  # what the tests draw
    torch.manual_seed(0)
    known = cases()
    if given.peak:
        name, form = given.peak
        print(peak_of(form, known[name]))
        return
    for name in given.names:
        if not any(each.startswith(name) for each in known):
            parser.error(f"no benchmark begins with {name!r}; there are {', '.join(known)}")
    chosen = {
        name: replace(case, rounds=given.rounds or case.rounds)
        for name, case in known.items()
        if not given.names or any(name.startswith(each) for each in given.names)
    }
    done = {}
    with TemporaryDirectory() as folder:
        os.environ[SCRATCH] = folder
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        for name, case in chosen.items():
            result = measure(name, case)
            show(name, case, result)
            done[name] = {"rounds": case.rounds, **asdict(result)}
    print(machine_line())
    if given.json:
        about = {
            "date": datetime.now(UTC).date().isoformat(),
            "revision": git_revision(),
            "machine": machine_line(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        given.json.write_text(json.dumps({**about, "cases": done}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
