"""The graphs on this machine, as a user starts them: dvc, and Kubeflow's as processes or containers."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ["data", "model", "components", "dvc.yaml"]
PARAMS = ROOT / "params.yaml"
RECIPES = ["deepglobe", "vaihingen-irrg"]
DATASETS = ["deepglobe", "massachusetts", "vaihingen", "potsdam"]  # what these train on and are scored on
CANARY = "canary5f3"
# set wherever a graph runs: a test looks for the value in every byte that the graph wrote
SECRETS = dict.fromkeys(
    (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "MLFLOW_TRACKING_PASSWORD",
        "CROSSEARTH_KFP_TOKEN",
        "CROSSEARTH_HUB_TOKEN",
    ),
    CANARY,
)

Done = subprocess.CompletedProcess[str]


def environment() -> dict[str, str]:
    """Of whoever starts a graph."""
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    inherited["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"
    # as many threads in every kind of run: sums are the same to the last digit
    inherited["OMP_NUM_THREADS"] = "1"
    return inherited | SECRETS


def call(*command: str, cwd: Path, timeout_s: float = 1500, **variables: str) -> Done:
    """Runs a command of this interpreter's environment, also where its folder is not on the path."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert CANARY not in done.stdout + done.stderr
    return done


def run_pipeline(name: str, folder: Path, *more: str, params: Path = PARAMS, **environment: str) -> Done:
    """`crossearth pipeline run NAME` with its workspace in `folder`."""
    command = ["crossearth", "pipeline", "run", name, "--workspace", str(folder / "workspace")]
    return call(*command, "--params", str(params), *more, cwd=folder, **environment)


def with_datasets(params: str, datasets: Sequence[str]) -> str:
    """The text of params.yaml, of whose datasets dvc makes some."""
    text, found = re.subn(r"^  datasets: \[.*\]$", f"  datasets: [{', '.join(datasets)}]", params, flags=re.M)
    assert found == 1
    return text


def run_dvc(folder: Path, params: Path) -> None:
    """Makes `folder` a checkout in which dvc has scored `RECIPES`; its report has these alone."""
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    (folder / "params.yaml").write_text(with_datasets(params.read_text(), DATASETS))
    for command in (
        ("dvc", "init", "--no-scm", "--quiet"),
        ("dvc", "repro", *(f"evaluate@{recipe}" for recipe in RECIPES)),
        # the other recipes' scores, which dvc's own stage waits for, are not there
        ("crossearth", "report"),
    ):
        done = call(*command, cwd=folder)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr
