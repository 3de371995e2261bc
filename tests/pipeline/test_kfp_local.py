"""The graphs on this machine, each step a process: the numbers of `dvc repro`, and failures that are seen."""

import inspect
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from graphs import CANARY, RECIPES, ROOT, call, run_pipeline
from mlflow.tracking import MlflowClient

from crossearth.components.evaluate.component import evaluate
from crossearth.components.plan import items as plan_items
from crossearth.components.pods import items as pipeline_items
from crossearth.components.pods import workspace
from crossearth.components.pods.archives import fetch_archives
from crossearth.components.report.component import report
from crossearth.components.stylize.component import stylize
from crossearth.components.train.component import train
from crossearth.components.validate.component import validate
from crossearth.data.common.errors import InputError


def test_the_graph_gives_the_table_of_dvc_to_the_last_digit(with_dvc: Path, with_kubeflow: Path) -> None:
    table = (with_kubeflow / "artifacts/report/scores.csv").read_text()
    assert table == (with_dvc / "artifacts/report/scores.csv").read_text()
    assert all(recipe in table for recipe in RECIPES)


def test_no_secret_of_the_environment_is_in_what_the_graphs_wrote(
    with_dvc: Path, with_kubeflow: Path
) -> None:
    files = [path for folder in (with_dvc, with_kubeflow) for path in folder.rglob("*") if path.is_file()]
    assert {"mlflow.db", "scores.csv", "model.json", "executor_output.json"} <= {path.name for path in files}
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


def test_the_graph_shows_tables_matrices_and_pages(with_kubeflow: Path) -> None:
    outputs = {
        path.parent.name: json.loads(path.read_text())["artifacts"]
        for path in (with_kubeflow / "artifacts/run/kfp").rglob("executor_output.json")
        if "artifacts" in json.loads(path.read_text())
    }
    evaluated = outputs["evaluate"]
    matrix = evaluated["confusion"]["artifacts"][0]["metadata"]["confusionMatrix"]
    assert {row["displayName"] for row in matrix["annotationSpecs"]}
    assert any("IoU" in key for key in evaluated["metrics"]["artifacts"][0]["metadata"])
    report = outputs["report"]
    assert "<html" in Path(report["page"]["artifacts"][0]["uri"]).read_text()[:200].lower()
    assert "|" in Path(report["table"]["artifacts"][0]["uri"]).read_text()
    assert "champion" in Path(report["decisions"]["artifacts"][0]["uri"]).read_text()


def test_stylized_tiles_are_written_in_shards(with_kubeflow: Path) -> None:
    assert {path.name for path in (with_kubeflow / "artifacts/stylized").iterdir()} >= {"deepglobe"}


@pytest.mark.parametrize("name", ["inference", "monitoring"])
def test_scenes_are_mapped_in_shards(name: str, with_kubeflow: Path, tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (3, 200, 150), dtype=np.uint8)
        with rasterio.open(
            scenes / f"scene-{number}.tif", "w", driver="GTiff", width=150, height=200, count=3, dtype="uint8"
        ) as file:
            file.write(pixels)
    model = with_kubeflow / "artifacts/models/deepglobe"
    chosen = (f"scenes={scenes}", f"model={model}", "shards=2")
    done = run_pipeline(name, tmp_path, *(word for value in chosen for word in ("--set", value)))
    if name == "monitoring":  # noise is like nothing that the model has seen
        assert done.returncode == 1
        assert "step watch failed" in done.stderr and "the scenes drift" in done.stderr
    else:
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    maps = sorted((tmp_path / "workspace/artifacts/maps").glob("*.tif"))
    assert [path.name for path in maps] == [f"scene-{number}.tif" for number in range(3)]


def test_a_step_refuses_what_another_run_has_left_in_the_workspace(
    with_kubeflow: Path, tmp_path: Path, pods_process: None
) -> None:
    """Kubeflow may have taken the earlier step's result from its cache, but not the bytes."""
    workspace.enter(str(with_kubeflow))
    params, catalog = workspace.inputs()
    (dataset, *_) = plan_items.dataset_items(catalog, params, RECIPES[:1], {}, "code")
    styles = workspace.content_digest(workspace.ARTIFACTS / "styles")
    (planned,) = plan_items.recipe_items(catalog, params, RECIPES[:1], "code")
    recipe = pipeline_items.with_digests(planned, styles)
    coverage = workspace.content_digest(workspace.ARTIFACTS / "coverage")
    other = recipe | {"tiles": "other"}
    (shard,) = pipeline_items.stylize_items([recipe], 1, "key")
    stale: list[tuple[Any, dict[str, Any]]] = [
        (validate, {"items": [dataset], "datasets": ["other"]}),
        (validate, {"items": [], "datasets": [], "styles": "other"}),
        (stylize, {"item": shard | {"tiles": "other"}}),
        (stylize, {"item": shard | {"styles": "other"}}),
        (train, {"item": other}),
        (train, {"item": recipe | {"styles": "other"}}),
        (evaluate, {"item": other}),
        (evaluate, {"item": recipe, "model": "other"}),
        (report, {"recipes": [recipe], "coverage": "other"}),
        (report, {"recipes": [recipe], "coverage": coverage, "scores": ["other"]}),
    ]

    def refused(step: Any, given: dict[str, Any], words: str) -> None:
        arguments = dict.fromkeys(inspect.signature(step.python_func).parameters) | given
        with pytest.raises(InputError, match=words):
            step.python_func(**arguments | {"workspace": str(with_kubeflow)})

    for step, given in stale:
        refused(step, given, r"(?s)another run has been here since.*--no-cache")
    moved = tmp_path / "styles"
    (workspace.ARTIFACTS / "styles").rename(moved)
    gone = r"(?s)what this run's step styles made is gone.*--no-cache, which runs styles"
    refused(stylize, {"item": shard}, gone)
    shutil.move(moved, workspace.ARTIFACTS / "styles")
    shutil.rmtree(workspace.FAILURES)


def test_a_step_that_fails_fails_the_pipeline_by_name_and_the_exit_handler_tells_mlflow(
    tmp_path: Path,
) -> None:
    done = run_pipeline("training", tmp_path, "--recipe", "deepglobe", "--preset", "paper")
    assert done.returncode == 1
    assert "step archives failed" in done.stderr
    assert "no archives" in done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/workspace/artifacts/mlflow/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'crossearth'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == run.data.tags["pipeline_state"] == "FAILED"
    assert run.data.tags["failed_step"] == "archives"
    assert "no archives" in run.data.tags["failure"]


def test_archives_come_from_a_git_revision_that_versions_them_with_dvc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    repository, archives = tmp_path / "repository", tmp_path / "archives"
    (repository / "archives/deepglobe").mkdir(parents=True)

    def run(*command: str) -> str:
        done = call(*command, cwd=repository)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(file: str) -> str:
        (repository / "archives/deepglobe" / file).write_text(file)
        run("dvc", "add", "--quiet", "archives")
        run("git", "add", ".")
        run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", file)
        return run("git", "rev-parse", "HEAD")

    run("git", "init", "--quiet")
    run("dvc", "init", "--quiet")
    first, second = commit("road.zip"), commit("more.zip")
    old = fetch_archives(archives, str(repository), first, "archives", ["deepglobe"])
    assert [path.name for path in (archives / "deepglobe").iterdir()] == ["road.zip"]
    new = fetch_archives(archives, str(repository), second, "archives", ["deepglobe"])
    assert new != old
    assert sorted(path.name for path in (archives / "deepglobe").iterdir()) == ["more.zip", "road.zip"]
    (repository / ".dvc").rename(repository / "gone")
    again = fetch_archives(archives, str(repository), second, "archives", ["deepglobe"])
    assert again == new, "nothing is fetched twice"
    with pytest.raises(InputError, match=r"(?s)dvc cannot bring the archives.*look at the revision"):
        fetch_archives(archives, str(repository), "nowhere", "archives", ["deepglobe"])
    with pytest.raises(InputError, match="no archives of loveda"):
        fetch_archives(archives, "", "", "", ["deepglobe", "loveda"])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--recipe", "deepglob"), "deepglobe"),
        (("--set", "recipe=3"), "a String"),
        (("--preset", "papper"), "paper"),
    ],
)
def test_wrong_arguments_are_refused(more: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = run_pipeline("training", tmp_path, *more)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_dvc_and_the_graph_know_the_same_recipes(with_kubeflow: Path) -> None:
    assert set(RECIPES) <= set(yaml.safe_load((ROOT / "params.yaml").read_text())["dvc"]["recipes"])
    assert {path.name for path in (with_kubeflow / "artifacts/models").iterdir()} >= set(RECIPES)
