"""`make demo` as a stranger types it, with short trainings: 32 scored settings, MLflow runs, DVC metrics."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).parents[2]
VENV = Path(sys.prefix)


def call(checkout: Path, *command: str) -> str:
    environment = {**os.environ, "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "crossearth"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("iterations: 80", "iterations: 2", 1))
    return folder


def test_the_demo_scores_all_settings_once(checkout: Path) -> None:
    # this interpreter's environment stands for the one that `make install` makes
    demo = ("make", "demo", f"VENV={VENV}", "-o", f"{VENV}/installed")
    first = call(checkout, *demo)
    with (checkout / "artifacts/report/scores.csv").open(newline="") as file:
        scored = {row["setting"] for row in csv.DictReader(file)}
    assert len(scored) == 32
    assert all(abbr in first for abbr in scored)

    client = MlflowClient(f"sqlite:///{checkout}/artifacts/mlflow/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'crossearth'")
    names = [run.info.run_name for run in client.search_runs([experiment.experiment_id])]
    assert sorted(names) == sorted({*names}), "one run per recipe, and the benchmark's"
    assert len(names) == 15

    assert "Running stage" not in call(checkout, *demo), "the second time there is nothing to do"

    metrics = json.loads(call(checkout, "dvc", "metrics", "show", "--json"))
    (values,) = (each["data"] for each in metrics[""]["data"].values())
    assert sum(name.startswith("miou/") for name in values) == 32
    page = call(checkout, "dvc", "plots", "show")
    assert re.search(r"index\.html", page)
