"""Benchmarks: what a computation costs beside its plain form.

    python tests/benchmarks/run.py                      all of them
    python tests/benchmarks/run.py network counting     those whose names begin so
    python tests/benchmarks/run.py --json results.json
    python tests/benchmarks/run.py predict --once       each form once, cold: where time is short

Baselines are the first forms: the same computation written plainly, eager float32 where it is a network's.
Ratios hold on a machine that others use too, seconds on a quiet one.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from harness import DEVICE, SCRATCH, Case, machine_line, measure, once, peak_mb, show, timed

from crossearth.components.runtime.version import git_revision

MODULES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py")))


def cases() -> Mapping[str, Case]:
    """All cases by name."""
    return {name: case for module in MODULES for name, case in import_module(module).CASES.items()}


def main() -> None:
    """Runs the chosen cases; exit code 2 for a name that is none."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a case, or the beginning of its name")
    parser.add_argument("--once", action="store_true", help="run each form once, in a process of its own")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="of network, training and style; cpu by default"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the numbers too")
    parser.add_argument("--apart", nargs=2, metavar=("NAME", "FORM"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    if given.device:
        os.environ[DEVICE] = given.device  # before the cases: some have forms for a GPU alone
    sys.path.append(str(Path(__file__).parents[1]))  # what the tests draw
    torch.manual_seed(0)
    known = cases()
    if given.apart:
        name, form = given.apart
        print(*timed(known[name].forms[form].prepare()), peak_mb())
        return
    for name in given.names:
        if not any(each.startswith(name) for each in known):
            parser.error(f"no benchmark begins with {name!r}; there are {', '.join(known)}")
    chosen = {
        name: case
        for name, case in known.items()
        if not given.names or any(name.startswith(each) for each in given.names)
    }
    lacking = {name: case.needs for name, case in chosen.items() if not all(map(find_spec, case.needs))}
    if given.names and lacking:
        listed = "; ".join(f"{name!r} needs {', '.join(needs)}" for name, needs in lacking.items())
        parser.error(f"{listed}: the first lines of tests/benchmarks/bench_peers.py say how to install them")
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "revision": git_revision(),
        "machine": machine_line(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    done = {}
    with TemporaryDirectory() as folder:
        os.environ[SCRATCH] = folder
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        for name, case in chosen.items():
            if name in lacking:
                print(f"{name}: left out, it needs {', '.join(lacking[name])}")
                continue
            result = once(name, case) if given.once else measure(name, case)
            show(name, result)
            done[name] = asdict(result)
            if given.json:  # after each case: what is measured stays if a later one fails
                given.json.write_text(json.dumps({**about, "cases": done}, indent=2) + "\n", encoding="utf-8")
    print(machine_line())


if __name__ == "__main__":
    main()
