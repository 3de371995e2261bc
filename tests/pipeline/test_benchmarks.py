"""The README's command for the benchmarks, as it is typed."""

import json
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).parents[1] / "benchmarks" / "run.py"


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(RUN), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_case_is_printed_and_written(tmp_path: Path) -> None:
    done = run("counting 1024 px, blocks", "--json", tmp_path / "numbers.json")
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["machine"] in done.stdout
    (costs,) = (case["costs"] for case in numbers["cases"].values())
    assert len(costs) == 2
    assert all(cost[figure] > 0 for cost in costs.values() for figure in ("seconds", "ratio", "peak_mb"))


def test_an_unknown_case_is_refused_with_those_that_there_are() -> None:
    done = run("cuonting")
    assert done.returncode == 2
    assert "no benchmark begins with 'cuonting'" in done.stderr
    assert "counting 1024 px" in done.stderr
