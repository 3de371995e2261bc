"""The graphs on this machine, each step a process: the numbers of `dvc repro`, and failures that are seen."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).parents[2]
RECIPES = ["deepglobe", "vaihingen-irrg"]
SOURCES = ["data", "model", "components", "dvc.yaml", "params.yaml"]


def call(*command: str, cwd: Path, timeout_s: float = 1500) -> "subprocess.CompletedProcess[str]":
    # the environment of this interpreter, also where its folder is not on the path
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "2",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def pipeline(name: str, folder: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    command = ["crossearth", "pipeline", "run", name, "--workspace", str(folder / "workspace")]
    return call(*command, "--params", str(ROOT / "params.yaml"), *more, cwd=folder)


@pytest.fixture(scope="module")
def with_dvc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout in which dvc has scored the two recipes."""
    folder = tmp_path_factory.mktemp("dvc")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    done = call("dvc", "init", "--no-scm", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = call("dvc", "repro", *(f"evaluate@{recipe}" for recipe in RECIPES), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    # the table of these two: the other recipes' scores, which dvc knows of, are not there
    done = call("crossearth", "report", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def with_kubeflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the benchmark's graph has scored the two recipes."""
    folder = tmp_path_factory.mktemp("kubeflow")
    recipes = [part for recipe in RECIPES for part in ("--recipe", recipe)]
    done = pipeline("benchmark", folder, *recipes, "--set", "stylize_shards=1")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    return folder / "workspace"


def test_the_graph_gives_the_table_of_dvc_to_the_last_digit(with_dvc: Path, with_kubeflow: Path) -> None:
    table = (with_kubeflow / "artifacts/report/scores.csv").read_text()
    assert table == (with_dvc / "artifacts/report/scores.csv").read_text()
    assert all(recipe in table for recipe in RECIPES)


def test_the_graph_shows_tables_matrices_and_pages(with_kubeflow: Path) -> None:
    outputs = {
        path.parent.name: json.loads(path.read_text())["artifacts"]
        for path in (with_kubeflow / "artifacts/run/kfp").rglob("executor_output.json")
        if "artifacts" in json.loads(path.read_text())
    }
    evaluated = outputs["evaluate"]
    matrix = evaluated["confusion"]["artifacts"][0]["metadata"]["confusionMatrix"]
    assert {row["displayName"] for row in matrix["annotationSpecs"]}
    assert any("mIoU" in key for key in evaluated["metrics"]["artifacts"][0]["metadata"])
    report = outputs["report"]
    assert "<html" in Path(report["page"]["artifacts"][0]["uri"]).read_text()[:200].lower()
    assert "|" in Path(report["table"]["artifacts"][0]["uri"]).read_text()
    assert "champion" in Path(outputs["register"]["decisions"]["artifacts"][0]["uri"]).read_text()


def test_stylized_tiles_are_written_in_shards(with_kubeflow: Path) -> None:
    assert {path.name for path in (with_kubeflow / "artifacts/stylized").iterdir()} >= {"deepglobe"}


def test_scenes_are_mapped_in_shards(with_kubeflow: Path, tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (3, 200, 150), dtype=np.uint8)
        with rasterio.open(
            scenes / f"scene-{number}.tif", "w", driver="GTiff", width=150, height=200, count=3, dtype="uint8"
        ) as file:
            file.write(pixels)
    model = with_kubeflow / "artifacts/models/deepglobe"
    done = pipeline(
        "inference", tmp_path, "--set", f"scenes={scenes}", "--set", f"model={model}", "--set", "shards=2"
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    maps = sorted((tmp_path / "workspace/artifacts/maps").glob("*.tif"))
    assert [path.name for path in maps] == [f"scene-{number}.tif" for number in range(3)]


def test_a_step_that_fails_fails_the_pipeline_by_name_and_the_exit_handler_tells_mlflow(
    tmp_path: Path,
) -> None:
    done = pipeline("training", tmp_path, "--recipe", "deepglobe", "--preset", "paper")
    assert done.returncode == 1
    assert "step fetch failed" in done.stderr
    assert "no archives" in done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/workspace/artifacts/mlflow/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'crossearth'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["pipeline_state"] == "FAILED"
    assert run.data.tags["failed_step"] == "fetch"
    assert "no archives" in run.data.tags["failure"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--recipe", "deepglob"), "deepglobe"),
        (("--set", "recipe=3"), "a String"),
        (("--preset", "papper"), "paper"),
    ],
)
def test_wrong_arguments_are_refused(more: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = pipeline("training", tmp_path, *more)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_dvc_and_the_graph_know_the_same_recipes(with_kubeflow: Path) -> None:
    variables = yaml.safe_load((ROOT / "dvc.yaml").read_text())["vars"]
    assert set(RECIPES) <= set(next(each["recipes"] for each in variables if "recipes" in each))
    assert {path.name for path in (with_kubeflow / "artifacts/models").iterdir()} >= set(RECIPES)
