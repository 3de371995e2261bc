"""`make demo` as a stranger types it, with short trainings: 32 scored settings, MLflow runs, DVC metrics."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from mlflow.tracking import MlflowClient
from services import free_port, wait_for

from crossearth.components.runtime.params import load_params

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


EXPERIMENT = "api/2.0/mlflow/experiments/get-by-name?experiment_name=crossearth"
# this interpreter's environment stands for the one that `make install` makes
DEMO = ("make", "demo", f"VENV={VENV}", "-o", f"{VENV}/installed")


@pytest.fixture(scope="module")
def said(checkout: Path) -> str:
    """What the demo prints the first time."""
    return call(checkout, *DEMO)


def test_the_demo_scores_all_settings_once(checkout: Path, said: str) -> None:
    with (checkout / "artifacts/report/scores.csv").open(newline="") as file:
        scored = {row["setting"] for row in csv.DictReader(file)}
    assert len(scored) == 32
    assert all(abbr in said for abbr in scored)

    client = MlflowClient(f"sqlite:///{checkout}/artifacts/mlflow/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'crossearth'")
    names = [run.info.run_name for run in client.search_runs([experiment.experiment_id])]
    assert sorted(names) == sorted({*names}), "one run per recipe, and the benchmark's"
    assert len(names) == 15

    assert "Running stage" not in call(checkout, *DEMO), "the second time there is nothing to do"

    metrics = json.loads(call(checkout, "dvc", "metrics", "show", "--json"))
    (values,) = (each["data"] for each in metrics[""]["data"].values())
    assert values.keys() == {"all/unseen-mean", "all/unseen-worst", "all/in-domain"}
    assert "index.html" in call(checkout, "dvc", "plots", "show")
    page = checkout / "dvc_plots/index.html"
    pictures = re.findall('<img src="(.*?)"', page.read_text())
    assert len(pictures) == 2 and all((page.parent / picture).is_file() for picture in pictures)
    assert "http" not in page.read_text(), "it needs no network"


def test_the_drawn_archives_are_small(checkout: Path, said: str) -> None:
    files = (path for path in (checkout / "artifacts/archives").rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in files) < 60 * 2**20


def test_one_recipe_is_shown_in_full(checkout: Path, said: str) -> None:
    shown = call(checkout, "crossearth", "show", "potsdam-rgb")
    assert all(word in shown for word in ("potsdam-rgb", "vaihingen-irrg", "low vegetation"))


def test_mlflow_shows_the_runs(checkout: Path, said: str) -> None:
    """The README's address of the store, as a user opens it."""
    (command,) = re.findall(r"`(mlflow ui [^`]+)`", (ROOT / "README.md").read_text())
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [VENV / "bin" / "mlflow", *shlex.split(command)[1:], "--port", str(port), "--workers", "1"],
        cwd=checkout,
        # its job runner, which no page here needs, is eight more processes
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            wait_for(lambda: urlopen(address, timeout=5).close(), str)
            page = urlopen(address).read().decode()
            found = json.load(urlopen(f"{address}/{EXPERIMENT}"))
        finally:
            server.terminate()
    assert "MLflow" in page
    assert found["experiment"]["name"] == "crossearth"


def test_archives_that_lie_elsewhere_and_the_papers_numbers(checkout: Path, said: str) -> None:
    """The README's command for the real datasets; of its stages one, because a ViT-L is trained on GPUs."""
    (command,) = re.findall(r"^dvc exp run .*$", (ROOT / "README.md").read_text(), re.M)
    words = shlex.split(command)
    assert words.pop() == "report"
    archives = checkout / next(word for word in words if word.startswith("archives=")).partition("=")[2]
    shutil.copytree(checkout / "artifacts/archives", archives)
    printed = call(checkout, *words, "ingest@deepglobe")
    assert "crossearth ingest deepglobe" in printed
    params = load_params(checkout / "params.yaml")
    assert (params.preset, params.archives) == ("paper", Path("datasets/archives"))
