"""What is in MLflow, PostgreSQL and S3 after the benchmark ran in containers, and after one failed."""

import csv
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from graphs import RECIPES, run_pipeline
from kfp.dsl import Metrics
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from crossearth.components.evaluate.results import metric_name
from crossearth.components.ingest.component import ingest
from crossearth.components.pods import workspace
from crossearth.components.pods.items import count_tiles
from crossearth.components.register.registry import CHAMPION
from crossearth.data.common.files import sha256_file
from crossearth.data.tiles.store import StoreConfig, pull

psycopg2 = pytest.importorskip("psycopg2")


@pytest.fixture
def mlflow(scored: Path, services: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowClient]:
    for name, value in services.items():
        monkeypatch.setenv(name, value)
    return MlflowClient(services["MLFLOW_TRACKING_URI"])


def runs(client: MlflowClient, experiment: str = "crossearth") -> dict[str, Run]:
    found = client.get_experiment_by_name(experiment)
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


def test_the_numbers_of_the_table_are_in_mlflow(mlflow: MlflowClient, scored: Path) -> None:
    found = runs(mlflow)
    assert {*RECIPES, "benchmark"} <= set(found)
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    with (scored / "artifacts/report/scores.csv").open(newline="") as file:
        means = {
            metric_name("miou" if row["metric"] == "mIoU" else "iou", row["setting"]): float(row["iou"])
            for row in csv.DictReader(file)
            if row["metric"] != "IoU"
        }
    metrics = found["benchmark"].data.metrics
    assert len(means) > 1
    assert {name: metrics[name] for name in means} == pytest.approx(means, abs=1e-4)
    for recipe in RECIPES:
        assert found[recipe].data.tags["recipe"] == recipe
        assert found[recipe].data.params["iterations"] == "8"
        assert found[recipe].data.tags["mlflow.parentRunId"] == found["benchmark"].info.run_id


def test_postgresql_holds_the_runs(mlflow: MlflowClient, database: dict[str, str]) -> None:
    connection = psycopg2.connect(**database)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT name FROM runs")
        names = {name for (name,) in cursor.fetchall()}
    connection.close()
    assert {*RECIPES, "benchmark"} <= names


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_model_is_in_the_object_store_and_in_the_registry(
    recipe: str, mlflow: MlflowClient, scored: Path, tmp_path: Path
) -> None:
    run_id = runs(mlflow)[recipe].info.run_id
    champion = mlflow.get_model_version_by_alias(f"crossearth-{recipe}", CHAMPION)
    assert champion.run_id == run_id
    downloaded = Path(mlflow.download_artifacts(run_id, "model", str(tmp_path)))
    (weights,) = downloaded.glob("*.safetensors")
    assert sha256_file(weights) == sha256_file(scored / "artifacts/models" / recipe / weights.name)
    objects = boto3.client("s3").list_objects_v2(Bucket="crossearth", Prefix="mlflow/")["Contents"]
    (stored,) = (each for each in objects if each["Key"].endswith(f"{run_id}/artifacts/model/{weights.name}"))
    assert stored["Size"] == weights.stat().st_size


def test_ingested_domains_are_in_the_object_store_and_their_version_takes_the_place_of_archives(
    mlflow: MlflowClient, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.chdir(scored)
    ingested = count_tiles(["deepglobe"])
    store = StoreConfig("s3://crossearth/domains")
    version = pull("deepglobe", store, tmp_path / "elsewhere").version
    monkeypatch.chdir(tmp_path)
    workspace.begin((scored / "params.yaml").read_text(), "[]")
    item = {"name": "deepglobe", "domains": ["deepglobe"], "versions": {"deepglobe": version}}
    ingest.python_func(workspace=str(tmp_path), item=item, archives="", store=store.url, metrics=Metrics())
    assert count_tiles(["deepglobe"]) == ingested


def test_a_container_that_fails_fails_the_pipeline_by_name_and_mlflow_knows(
    image: str, mlflow: MlflowClient, services: dict[str, str], tmp_path: Path
) -> None:
    done = run_pipeline(
        *("training", tmp_path, "--docker", "--image", image, "--preset", "paper"), **services
    )
    assert done.returncode == 1
    assert "step archives failed" in done.stderr
    assert "no archives" in done.stderr
    (run,) = (run for name, run in runs(mlflow).items() if name.startswith("pipeline crossearth-training"))
    assert run.data.tags["pipeline_state"] == "FAILED"
    assert run.data.tags["failed_step"] == "archives"
    assert "no archives" in run.data.tags["failure"]
    assert run.data.metrics["failed_steps"] == 1
    assert services["AWS_SECRET_ACCESS_KEY"] not in "".join(run.data.tags.values())
