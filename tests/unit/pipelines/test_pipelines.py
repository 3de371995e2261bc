"""Compiled pipelines, values files and the talk with Kubeflow's API, without a cluster."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import http_server
import pytest
import rasterio.shutil
import yaml
from google.protobuf import json_format
from graphs import SECRETS
from http_server import Handler
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes_pb2
from kfp.pipeline_spec import pipeline_spec_pb2
from own_domain import draw, save
from typer.testing import CliRunner

from crossearth.components.plan import component as planning
from crossearth.components.plan import items as plan_items
from crossearth.components.plan.step import plan
from crossearth.components.pods import archives as pod_archives
from crossearth.components.pods import prerequisites, workspace
from crossearth.components.pods.prerequisites import check_prerequisites
from crossearth.components.pods.train_job import TrainJobConfig
from crossearth.components.predict import scenes
from crossearth.components.predict.strips import open_scene
from crossearth.components.runtime.params import Params, load_params
from crossearth.components.runtime.places import PLAN
from crossearth.components.steps import PODS, STEPS
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.config import load_config
from crossearth.data.common.errors import InputError, print_uncaught
from crossearth.data.common.files import digest, write_json
from crossearth.data.raster.reader import open_raster
from crossearth.pipelines import submit as kubeflow
from crossearth.pipelines.benchmark import read_inputs
from crossearth.pipelines.cli import app
from crossearth.pipelines.graphs import PIPELINES, arguments, build, compile_pipeline, parameter
from crossearth.pipelines.local_run import run_local
from crossearth.pipelines.resources import (
    LOCAL,
    Resources,
    Trainer,
    Values,
    load_values,
)

ROOT = Path(__file__).parents[3]
# what the graph has besides dvc.yaml's stages, and why
KUBEFLOW_ONLY = {
    "shards": "deals out what stylize does",
    "stylize": "a dataset of its own, no part of the table",
    "archives": "synthesizes them, or brings those that lie there for dvc",
    "finish": "dvc ends by itself",
}
CANARY = "canary-4f9c2"


@pytest.fixture(scope="module")
def values() -> Values:
    return load_values(ROOT / "infra" / "values.yaml")


def compiled(tmp_path: Path, name: str, values: Values) -> list[Any]:
    inputs = read_inputs(ROOT / "params.yaml", stylize_shards=0 if name in ("inference", "monitoring") else 2)
    out = compile_pipeline(name, inputs, values, tmp_path / f"{name}.yaml")
    return list(yaml.safe_load_all(out.read_text()))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory, values: Values) -> dict[str, list[Any]]:
    """The documents of every pipeline's YAML."""
    folder = tmp_path_factory.mktemp("compiled")
    return {name: compiled(folder, name, values) for name in PIPELINES}


@pytest.fixture(scope="module")
def documents(graphs: dict[str, list[Any]]) -> list[Any]:
    return graphs["benchmark"]


@pytest.fixture(scope="module")
def executors(documents: list[Any]) -> dict[str, Any]:
    """Step -> its container, of the parsed PipelineSpec."""
    spec = json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
    config = json_format.ParseDict(
        json_format.MessageToDict(spec.deployment_spec), pipeline_spec_pb2.PipelineDeploymentConfig()
    )
    return {name.removeprefix("exec-"): each.container for name, each in config.executors.items()}


@pytest.fixture(scope="module")
def pods(documents: list[Any]) -> dict[str, Any]:
    """Step -> its KubernetesExecutorConfig."""
    configs = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {
        name.removeprefix("exec-"): json_format.ParseDict(each, kubernetes_pb2.KubernetesExecutorConfig())
        for name, each in configs.items()
    }


@pytest.fixture(scope="module")
def tasks(documents: list[Any]) -> dict[str, Any]:
    """Step -> its task in whichever part of the graph it stands."""
    spec = json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
    graphs = [spec.root.dag, *(each.dag for each in spec.components.values())]
    return {name: task for graph in graphs for name, task in graph.tasks.items()}


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_compiling_gives_the_same_bytes_without_secrets_or_paths_of_this_machine(
    name: str, tmp_path: Path, values: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = read_inputs(ROOT / "params.yaml")
    first = compile_pipeline(name, inputs, values, tmp_path / "first.yaml").read_bytes()
    for variable in SECRETS:
        monkeypatch.setenv(variable, CANARY)
    monkeypatch.chdir(tmp_path)
    again = compile_pipeline(name, inputs, values, tmp_path / "again.yaml").read_bytes()
    assert first == again
    for word in (CANARY, str(ROOT), str(tmp_path), str(Path.home())):
        assert word.encode() not in first


def test_steps_are_the_stages_of_dvc(executors: dict[str, Any]) -> None:
    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    # one component ingests archives and own folders; seeds side by side are dvc's alone
    stages -= {"ingest-own", "train-seeds", "evaluate-seeds"}
    shown = {stage for stage in stages if STEPS[stage].own_pod}
    assert set(executors) - set(KUBEFLOW_ONLY) == shown
    assert set(KUBEFLOW_ONLY) <= set(executors)


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_every_step_has_a_place_in_the_values_file(name: str, graphs: dict[str, list[Any]]) -> None:
    spec = graphs[name][0]
    assert {each.removeprefix("exec-") for each in spec["deploymentSpec"]["executors"]} <= set(PODS)


def test_recipes_datasets_and_settings_are_those_of_dvc_and_of_the_catalog(
    documents: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, params = load_catalog(), load_params(ROOT / "params.yaml")
    recipes = documents[0]["root"]["inputDefinitions"]["parameters"]["recipes"]["defaultValue"]
    assert set(recipes) == set(params.dvc.recipes) == set(catalog.recipes())
    monkeypatch.chdir(tmp_path)
    plan(catalog, params, Path("artifacts/plan"))
    items = plan_items.recipe_items(catalog, params, recipes, "code")
    assert {item["name"]: item["source"] for item in items} == {
        name: recipe.source for name, recipe in catalog.recipes().items()
    }
    assert {abbr for item in items for abbr in item["settings"]} == set(catalog.settings)
    datasets = plan_items.dataset_items(catalog, params, recipes, {}, "code")
    assert {item["name"] for item in datasets} == set(params.dvc.datasets)


def test_a_recipe_needs_the_datasets_of_its_source_and_targets_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, params = load_catalog(), load_params(ROOT / "params.yaml")
    monkeypatch.chdir(tmp_path)
    plan(catalog, params, Path("artifacts/plan"))
    items = plan_items.dataset_items(catalog, params, ["deepglobe"], {}, "code")
    assert [item["name"] for item in items] == ["deepglobe", "massachusetts"]
    pulled = plan_items.dataset_items(catalog, params, ["deepglobe"], {"massachusetts": "a" * 64}, "code")
    assert pulled[1]["versions"] == {"massachusetts": "a" * 64}
    with pytest.raises(InputError, match="massachusets"):
        plan_items.dataset_items(catalog, params, ["deepglobe"], {"massachusets": "a"}, "code")
    with pytest.raises(InputError, match=r"(?s)massachusetts: latest moves on.*`crossearth push`"):
        plan_items.dataset_items(catalog, params, ["deepglobe"], {"massachusetts": "latest"}, "code")


OWN = """
domains:
  town: {images: town/images, masks: town/masks, class_set: road, labels: {0: background, 1: road}}
  city: {images: city/images, masks: city/masks, class_set: road, labels: {0: background, 1: road}}
settings:
  Town2City: {source: town, target: city, gap: region}
"""


def test_new_images_of_ones_own_are_another_input_of_ingest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(OWN)
    for domain, folder in itertools.product(("town", "city"), ("images", "masks")):
        Path("data", domain, folder).mkdir(parents=True)
    catalog, params = load_catalog([Path("own.yaml")], Path("data")), load_params(ROOT / "params.yaml")
    plan(catalog, params, Path("artifacts/plan"))

    def keys() -> dict[str, str]:
        items = plan_items.dataset_items(catalog, params, ["town"], {}, "code")
        return {item["name"]: item["key"] for item in items}

    before = keys()
    Path("data/town/masks/a.png").write_bytes(b"a")
    after = keys()
    assert after["town"] != before["town"]
    assert after["city"] == before["city"]


def test_archives_are_wanted_where_something_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(OWN)
    catalog, params = load_catalog([Path("own.yaml")], Path("data")), load_params(ROOT / "params.yaml")
    sections = params.presets["mini"]
    recipes = {"town": {"ablation": "rein"}, "whu-aerial": {"ablation": "rein"}}
    params = replace(params, presets={"mini": {**sections, "recipes": recipes}})
    plan(catalog, params, Path("artifacts/plan"))

    def needed(recipe: str, shards: int = 0, **versions: str) -> list[str]:
        datasets = plan_items.dataset_items(catalog, params, [recipe], versions, "code")
        return plan_items.archives_needed(catalog, params, datasets, [recipe], shards)

    assert needed("town") == []
    assert needed("town", shards=2) == ["million-aid"]
    assert needed("whu-aerial") == ["whu"]
    assert needed("deepglobe") == ["deepglobe", "massachusetts", "million-aid"]
    assert needed("deepglobe", deepglobe="a") == ["massachusetts", "million-aid"]
    nowhere = tmp_path / "archives"
    assert pod_archives.fetch_archives(nowhere, "", "", "", []) == digest([])
    with pytest.raises(InputError, match="no archives of whu"):
        pod_archives.fetch_archives(nowhere, "", "", "", ["whu"])


def test_scenes_of_one_name_in_two_folders_are_not_mapped_over_each_other(tmp_path: Path) -> None:
    for name in ("2023/scene.tif", "2024/scene.tif", "other.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"2024/scene.tif: two scenes would give .*one and .*2023/scene.tif"):
        scenes.deal_scenes(str(tmp_path), 2)
    (tmp_path / "2024/scene.tif").replace(tmp_path / "2024/other.probabilities.png")
    with pytest.raises(InputError, match=r"two scenes would give other\.probabilities\.tif"):
        scenes.deal_scenes(str(tmp_path), 2)
    (tmp_path / "2024/other.probabilities.png").unlink()
    assert len(scenes.deal_scenes(str(tmp_path), 2)) == 2


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for s3://bucket."""
    folder = tmp_path / "bucket"
    folder.mkdir()

    def local(url: str) -> Path:
        return folder / url.removeprefix("s3://bucket/")

    def list_objects(url: str) -> list[str]:
        found = [f"s3://bucket/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()]
        return sorted(address for address in found if address.startswith(url))

    def mirror(url: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(local(url), path)

    monkeypatch.setattr(scenes, "list_objects", list_objects)
    monkeypatch.setattr(scenes, "mirror", mirror)
    monkeypatch.setattr(scenes, "read_object", lambda url: local(url).read_bytes())
    monkeypatch.setattr(scenes, "SCENES", tmp_path / "here")
    return folder


def test_scenes_of_a_store_are_those_of_a_folder(bucket: Path) -> None:
    report = '{"scene": "a.tif", "model": {}, "classes": []}'
    names = ("in/a.tif", "in/deep/b.jp2", "in/deep/b_preview.jpg", "in/._c.tif", "in/a.tfw", "inner/d.tif")
    for name in (*names, "in/m.tif", "in/m.png", "in/m.tif.aux.xml"):
        (bucket / name).parent.mkdir(parents=True, exist_ok=True)
        (bucket / name).touch()
    (bucket / "in/m.json").write_text(report)
    (item,) = scenes.deal_scenes("s3://bucket/in", 1)
    assert scenes.read_shard(item) == ["s3://bucket/in/a.tif", "s3://bucket/in/deep/b.jp2"]
    (local,) = scenes.deal_scenes(str(bucket / "in"), 1)
    assert scenes.read_shard(local) == [str(bucket / "in/a.tif"), str(bucket / "in/deep/b.jp2")]


def test_a_pointer_in_a_store_is_refused(bucket: Path) -> None:
    save(bucket / "own.tif", draw(0)[0])
    rasterio.shutil.copy(bucket / "own.tif", bucket / "scene.vrt", driver="VRT")
    with pytest.raises(InputError, match=r"s3://bucket/scene\.vrt: a raster of a kind that may point"):
        scenes.deal_scenes("s3://bucket/", 1)
    (bucket / "scene.vrt").rename(bucket / "scene.tif")
    here = scenes.fetch_scene("s3://bucket/scene.tif")
    with pytest.raises(InputError, match=r"scene\.tif: not an image"), open_raster(here, own=False):
        pass


def test_a_scene_of_a_store_comes_with_its_place(bucket: Path) -> None:
    save(bucket / "a" / "scene.tif", draw(0)[0])
    (bucket / "a" / "scene.tfw").write_text("0.5\n0\n0\n-0.5\n100.25\n199.75\n")
    (bucket / "a" / "scene.tif.aux.xml").write_text(
        "<PAMDataset><SRS>EPSG:32633</SRS><Metadata domain='OVERVIEWS'>"
        "<MDI key='OVERVIEW_FILE'>/etc/passwd</MDI></Metadata></PAMDataset>"
    )
    (bucket / "a" / "scene.txt").touch()
    here = scenes.fetch_scene("s3://bucket/a/scene.tif")
    assert sorted(path.name for path in here.parent.iterdir()) == [
        "scene.tfw",
        "scene.tif",
        "scene.tif.aux.xml",
    ]
    assert "passwd" not in here.with_name("scene.tif.aux.xml").read_text()
    with open_raster(here, own=False) as raster:
        assert (raster.dataset.crs, raster.dataset.transform.c) == ("EPSG:32633", 100)


def test_a_scene_that_is_fetched_again_is_the_scene_that_was_here(bucket: Path) -> None:
    save(bucket / "scene.tif", draw(0)[0])
    world = bucket / "scene.tfw"
    world.write_text("0.5\n0\n0\n-0.5\n100.25\n199.75\n")

    def state() -> str:
        return open_scene(scenes.fetch_scene("s3://bucket/scene.tif")).state

    first = state()
    assert state() == first, "parts of its map would be dropped"
    world.write_text("0.5\n0\n0\n-0.5\n100.75\n199.75\n")
    assert state() != first
    world.unlink()
    here = scenes.fetch_scene("s3://bucket/scene.tif")
    assert not here.with_suffix(".tfw").exists(), "a place that the store no longer gives it"


def test_an_item_changes_with_what_its_step_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, params = load_catalog(), load_params(ROOT / "params.yaml")
    monkeypatch.chdir(tmp_path)
    names = ["deepglobe", "vaihingen-irrg"]

    def keys(params: Any, code: str = "code") -> list[tuple[str, str]]:
        plan(catalog, params, Path("artifacts/plan"))
        items = plan_items.recipe_items(catalog, params, names, code)
        return [(item["train_key"], item["evaluate_key"]) for item in items]

    before = keys(params)
    sections = {**params.presets["mini"], "recipes": {"deepglobe": {"iterations": 1}}}
    (road, road_scores), other = keys(replace(params, presets={**params.presets, "mini": sections}))
    assert road != before[0][0]
    assert (road_scores, other) == (before[0][1], before[1])
    assert keys(params, "other code")[1] != before[1]


KEYED = {
    "archives": "synthesize",
    "validate": "validate",
    "styles": "styles",
    "shards": "stylize",
    "report": "report",
}


@pytest.mark.parametrize("step", KEYED)
def test_a_steps_key_changes_with_its_numbers_and_with_the_catalogs(
    step: str, tasks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubeflow's cache looks at a step's inputs alone: new numbers must not get the old ones' results."""
    section = KEYED[step]
    channel = tasks[step].inputs.parameters["key"]
    assert section in (
        channel.task_output_parameter.output_parameter_key,
        channel.component_input_parameter.removeprefix("pipelinechannel--plan-"),
    )
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("{}")
    params = replace(load_params(ROOT / "params.yaml"), catalogs=(Path("own.yaml"),))
    mini = params.presets["mini"]
    changed = {**params.presets, "mini": {**mini, section: {"a": 1}}}
    other = next(name for name in KEYED.values() if name != section)
    elsewhere = {**params.presets, "mini": {**mini, other: {"a": 1}}}

    def key(given: Params = params, workspace: str = "one") -> str:
        for each in KEYED.values():  # as the step `plan` does, which refuses such numbers
            write_json(PLAN / f"{each}.json", given.values(each))
        return plan_items.digest_of_step(given, section, workspace)

    before = key()
    assert key(replace(params, presets=changed)) != before
    assert key(replace(params, presets=elsewhere)) == before
    assert key(replace(params, seed=1)) != before
    assert key(workspace="another") != before
    Path("own.yaml").write_text("{settings: {}}")
    assert key() != before


def test_keys_change_with_what_is_validated_and_with_the_workspace(
    tmp_path: Path, pods_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    monkeypatch.setattr(prerequisites, "examine", lambda *_: [])
    outputs = ("items", "synthesize", "validate", "styles", "stylize", "report", "archives")

    def keys(numbers: dict[str, Any]) -> dict[str, str]:
        params["presets"]["mini"]["validate"] = numbers
        datasets = planning.plan.python_func(
            workspace=str(tmp_path),
            params=json.dumps(params),
            catalogs="[]",
            recipes=["deepglobe"],
            versions={},
            stylize_shards=0,
            wanted={"secrets": {}, "gpus": {}, "training_runtime": "", "namespace": ""},
            **{name: str(tmp_path / name) for name in outputs},
        )
        (recipe,) = json.loads((tmp_path / "items").read_text())
        planned = {name: (tmp_path / name).read_text() for name in outputs[1:-1]}
        own = {f"ingest {item['name']}": item["key"] for item in datasets}
        return {**planned, **own, "train": recipe["train_key"], "evaluate": recipe["evaluate_key"]}

    before = keys({})
    assert keys({}) == before
    assert keys({"near_duplicate_bits": 1})["report"] != before["report"]
    # Kubeflow's cache knows nothing of the folder: in an emptied one every key is another
    workspace.IDENTITY.unlink()
    after = keys({})
    assert [name for name, key in before.items() if after[name] == key] == []
    assert keys({}) == after


def test_commands_hold_the_function_and_no_installation(executors: dict[str, Any]) -> None:
    for step, container in executors.items():
        command = "\n".join(container.command)
        assert f"def {step}(" in command
        assert "pip install" not in command
        assert "--function_to_execute" in list(container.args)


def test_containers_follow_the_values_file(executors: dict[str, Any], values: Values) -> None:
    for step, container in executors.items():
        wanted = values.resources(step)
        assert container.image == values.image
        assert (
            container.resources.resource_cpu_limit == container.resources.resource_cpu_request == wanted.cpu
        )
        assert container.resources.resource_memory_limit == wanted.memory
        assert container.resources.accelerator.resource_count == (str(wanted.gpus) if wanted.gpus else "")
        assert container.resources.accelerator.resource_type == (wanted.gpu_type if wanted.gpus else "")
        assert {each.name: each.value for each in container.env} == values.environment | wanted.threads()


def test_pods_follow_the_values_file(pods: dict[str, Any], executors: dict[str, Any], values: Values) -> None:
    assert set(pods) == set(executors)
    for step, pod in pods.items():
        wanted = values.resources(step)
        assert [(mount.constant, mount.mount_path) for mount in pod.pvc_mount] == [
            (values.workspace.claim, values.workspace.mount)
        ]
        mounts = {mount.mount_path: (mount.medium, mount.size_limit) for mount in pod.empty_dir_mounts}
        assert mounts.pop("/tmp") == ("", values.workspace.scratch)
        assert mounts == ({"/dev/shm": ("Memory", wanted.shm)} if wanted.shm else {})
        assert {
            (secret.secret_name, pair.secret_key, pair.env_var)
            for secret in pod.secret_as_env
            for pair in secret.key_to_env
        } == {
            (secret.name, key, variable)
            for secret in values.secrets.values()
            for key, variable in secret.env.items()
        }
        assert all(secret.optional for secret in pod.secret_as_env)
        assert [(each.key, each.operator, each.effect) for each in pod.tolerations] == [
            (each.key, each.operator, each.effect) for each in wanted.tolerations
        ]
        assert dict(pod.node_selector.labels) == wanted.node_selector
        assert pod.active_deadline_seconds == (wanted.timeout_s or 0)
        # the image is no root's; Kubeflow Pipelines 2.15 refuses what says so here
        assert not pod.HasField("security_context")


def test_retries_and_caching_follow_what_a_step_touches(tasks: dict[str, Any], values: Values) -> None:
    for step in set(PODS) & set(tasks):
        task = tasks[step]
        assert task.caching_options.enable_cache == STEPS[step].cached, step
        assert task.retry_policy.max_retry_count == (values.retry.attempts if STEPS[step].network else 0), (
            step
        )
        if STEPS[step].network:
            assert task.retry_policy.backoff_duration.seconds == values.retry.backoff_s
            assert task.retry_policy.backoff_factor == values.retry.factor


def test_loops_are_bounded_and_the_exit_handler_runs_in_any_case(
    tasks: dict[str, Any], values: Values
) -> None:
    limits = {
        name: task.iterator_policy.parallelism_limit
        for name, task in tasks.items()
        if task.WhichOneof("iterator")
    }
    assert sorted(limits.values()) == sorted(
        (values.parallel.ingest, values.parallel.stylize, values.parallel.recipes)
    )
    strategy = pipeline_spec_pb2.PipelineTaskSpec.TriggerPolicy.TriggerStrategy
    assert tasks["finish"].trigger_policy.strategy == strategy.ALL_UPSTREAM_TASKS_COMPLETED


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_nothing_runs_before_the_prerequisites(name: str, graphs: dict[str, list[Any]]) -> None:
    graph = graphs[name][0]["components"]["comp-exit-handler-1"]["dag"]["tasks"]

    def needed(task: str) -> set[str]:
        direct = set(graph[task].get("dependentTasks", []))
        return direct.union(*map(needed, direct))

    first = "scenes" if name in ("inference", "monitoring") else "plan"
    assert [task for task in graph if first not in needed(task)] == [first]
    commands = graphs[name][0]["deploymentSpec"]["executors"][f"exec-{first}"]["container"]["command"]
    assert "look(**wanted)" in "\n".join(commands)


def test_many_nodes_become_a_train_job_with_the_same_resources(values: Values) -> None:
    many = replace(values, trainer=Trainer(nodes=2, runtime="crossearth-torch"))
    job = many.train_job()
    assert (job["nodes"], job["runtime"], job["image"]) == (2, "crossearth-torch", values.image)
    assert job["resources"] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": 1}
    volumes = {each.pop("name"): each for each in job["pod"]["volumes"]}
    assert volumes == {
        "workspace": {"persistentVolumeClaim": {"claimName": "crossearth-workspace"}},
        "scratch": {"emptyDir": {"sizeLimit": "20Gi"}},
        "shm": {"emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
        "secret-0": {
            "secret": {
                "secretName": "crossearth-s3",
                "optional": True,
                "items": [
                    {"key": key, "path": variable} for key, variable in values.secrets["s3"].env.items()
                ],
            }
        },
    }
    assert {each["name"]: each["mountPath"] for each in job["mounts"]} == {
        "workspace": "/workspace",
        "scratch": "/tmp",
        "shm": "/dev/shm",
        "secret-0": "/var/run/crossearth/crossearth-s3",
    }
    assert job["environment"] == values.environment | {"OMP_NUM_THREADS": "8", "GDAL_NUM_THREADS": "8"}
    assert job["processes"] == 1
    assert job["pod"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    # Kubeflow sends numbers as floats
    config = load_config(TrainJobConfig, json.loads(json.dumps(job), parse_int=float), "trainer")
    assert (config.nodes, config.resources["nvidia.com/gpu"]) == (2, 1)
    assert values.train_job() == {}


def test_a_pod_that_follows_a_train_job_takes_none_of_its_gpus(
    tmp_path: Path, values: Values, executors: dict[str, Any]
) -> None:
    many = replace(values, trainer=Trainer(nodes=2, runtime="crossearth-torch"))
    document = compiled(tmp_path, "training", many)[0]
    follower = document["deploymentSpec"]["executors"]["exec-train"]["container"]
    assert "crossearth-torch" in json.dumps(document)
    assert "accelerator" not in follower["resources"]
    assert executors["train"].resources.accelerator.resource_count == "1"


def test_a_batch_that_the_processes_cannot_share_is_refused_before_anything_runs(values: Values) -> None:
    four = replace(values, steps={"train": Resources(gpus=4)})
    paper = read_inputs(ROOT / "params.yaml", preset="paper")
    for name in ("benchmark", "training"):
        with pytest.raises(InputError, match=r"(?s)batch_size: 1 crops .* 4 processes.*a multiple of 4"):
            build(name, paper, four)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "image"),
        ("image: ''", "names no image"),
        ("image: a b", "names no image"),
        ("image: x\nworkspce: {}", "workspace"),
        ("image: x\nsteps: {trian: {gpus: 1}}", "'train'"),
        ("image: x\nsteps: {train: {gpu: 1}}", "gpus"),
        ("image: x\nsteps: {train: {gpus: -1}}", r"gpus: .*greater than or equal to 0, found -1"),
        ("image: x\nsteps: {train: {memory: lots}}", "number of bytes"),
        ("image: x\nsteps: {train: {memory: 1.5Gi}}", "number of bytes"),
        ("image: x\nsteps: {train: {memory: 500m}}", "number of bytes"),
        ("image: x\nsteps: {train: {cpu: 2Gi}}", "number of cores"),
        ("image: x\nretry: {factor: 1.5}", "retry.factor"),
        ("image: x\nretry: {attempts: -1}", "retry.attempts"),
        ("image: x\nparallel: {recipes: 0}", "parallel.recipes"),
        ("image: x\ndefault: {tolerations: [{key: a, operator: Is}]}", "operator"),
        ("image: x\nsteps: {train: {tolerations: [{kee: a}]}}", "key"),
        ("image: x\nenvironment: {AWS_SECRET_ACCESS_KEY: abc}", "looks like a secret"),
        ("image: x\nenvironment: {DB_PASSWD: abc}", "looks like a secret"),
        ("image: x\nenvironment: {MLFLOW_TRACKING_URI: 'http://u:abc@h:5000'}", "looks like a secret"),
        ("image: x\nworkspace: {mount: workspace}", "not absolute"),
        ("image: x\ntrainer: {nodes: 0}", r"trainer\.nodes: .*greater than 0, found 0"),
        ("image: x\nsecrets: {s3: {name: a}}", "env"),
        ("- a", "dictionary"),
        ("image: [", "not valid YAML"),
    ],
)
def test_a_wrong_values_file_is_refused_with_the_key(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as refused:
        load_values(path)
    assert "abc" not in str(refused.value)


def test_a_step_has_what_the_default_has_and_it_does_not_name(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("image: x\ndefault: {cpu: '3', memory: 9Gi}\nsteps: {train: {gpus: 1, memory: 64Gi}}")
    assert load_values(path).resources("train") == Resources(cpu="3", memory="64Gi", gpus=1)


def test_wrong_parameters_are_refused() -> None:
    pipeline = build("inference", read_inputs(ROOT / "params.yaml"), LOCAL)
    with pytest.raises(InputError, match="'shards'"):
        arguments(pipeline, {"shard": 3})
    with pytest.raises(InputError, match="no value for scenes"):
        arguments(pipeline, {"model": "m"})
    with pytest.raises(InputError, match="'benchmark'"):
        build("bench", read_inputs(ROOT / "params.yaml"), LOCAL)
    assert parameter("shards=3") == ("shards", 3)
    with pytest.raises(InputError, match="name=value"):
        parameter("shards")
    for value in ("2026-13-45", "9" * 5000, "[" * 5000):
        with pytest.raises(InputError, match="--set shards: not valid YAML"):
            parameter(f"shards={value}")


def test_a_checkout_is_no_workspace() -> None:
    with pytest.raises(InputError, match="--workspace FOLDER"):
        run_local("benchmark", read_inputs(ROOT / "params.yaml"), {"workspace": "/a"}, Path("b"))
    with pytest.raises(InputError, match="checkout"):
        run_local("benchmark", read_inputs(ROOT / "params.yaml"), {}, ROOT)
    with pytest.raises(InputError, match="checkout"):
        workspace.enter(str(ROOT))
    with pytest.raises(InputError, match="cannot make the workspace"):
        run_local("benchmark", read_inputs(ROOT / "params.yaml"), {}, Path("/proc/nowhere"))


def test_a_claim_that_is_roots_still_is_said_with_the_job_that_gives_it_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match=r"(?s)may not write here.*Job crossearth-workspace.*apply -k"):
        workspace.enter(str(tmp_path))


def test_missing_secrets_are_named_with_the_command_that_creates_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CANARY)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    secrets = {"crossearth-s3": {"id": "AWS_ACCESS_KEY_ID", "key": "AWS_SECRET_ACCESS_KEY"}}
    with pytest.raises(InputError) as missing:
        check_prerequisites(load_params(ROOT / "params.yaml"), secrets, {}, "", "")
    message = str(missing.value)
    assert (
        "kubectl create secret generic crossearth-s3 --from-literal=id=... --from-literal=key=..." in message
    )
    assert "127.0.0.1:9" in message
    assert CANARY not in message


class Kubernetes(Handler):
    """A cluster of two nodes, one with 2 GPUs, of one training runtime, and of this step's pod."""

    absent = 404
    launcher = "ghcr.io/kubeflow/kfp-launcher:2.17.0"
    trainer: str | None = "v2.3.0"
    trainers = "kubeflow"  # namespace of Trainer

    def do_GET(self) -> None:
        body: Any = {"items": [{"status": {"allocatable": each}} for each in ({}, {"nvidia.com/gpu": "2"})]}
        if self.path.endswith("/namespaces/default/pods/the-steps-pod"):
            containers = [{"name": "main", "image": "x"}]
            body = {
                "spec": {"containers": containers, "initContainers": [{"name": "k", "image": self.launcher}]}
            }
        elif "/configmaps/" in self.path:
            here = self.path.endswith(f"/namespaces/{self.trainers}/configmaps/kubeflow-trainer-public")
            body = {"data": {"kubeflow_trainer_version": self.trainer}} if here and self.trainer else None
        if "trainingruntimes" in self.path:
            body = {} if self.path.endswith("/clustertrainingruntimes/torch-distributed") else None
        self.answer(self.absent if body is None else 200, body)


@pytest.fixture
def in_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import kubernetes

    with http_server.Server(Kubernetes) as running:
        configured = kubernetes.client.Configuration(host=running.address)
        monkeypatch.setattr(kubernetes.client.Configuration, "_default", configured)
        monkeypatch.setattr(kubernetes.config, "load_incluster_config", lambda: None)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KFP_POD_NAME", "the-steps-pod")
        yield


def test_a_cluster_without_enough_gpus_or_the_runtime_is_said_with_what_to_do(in_cluster: None) -> None:
    params = load_params(ROOT / "params.yaml")
    found = check_prerequisites(params, {}, {"nvidia.com/gpu": 2}, "torch-distributed", "crossearth")
    assert any(each.found == "clustertrainingruntimes/torch-distributed" for each in found)
    with pytest.raises(InputError) as missing:
        check_prerequisites(params, {}, {"nvidia.com/gpu": 4, "amd.com/gpu": 1}, "other", "crossearth")
    message = str(missing.value)
    assert "asks for 4, no node has more than 2; add a GPU node" in message
    assert "asks for 1, no node has more than 0" in message
    assert "neither in namespace crossearth nor in the cluster: other; install Kubeflow Trainer" in message


@pytest.mark.parametrize("trainers", ["kubeflow-system", "kubeflow"])
@pytest.mark.parametrize(
    ("launcher", "trainer", "verdicts"),
    [
        ("ghcr.io/kubeflow/kfp-launcher:2.17.0", "v2.3.0", ("fine", "fine")),
        ("10.0.0.1:5000/kfp-launcher:2.15.0-rc1", "2.2.0", ("fine", "fine")),
        ("ghcr.io/kubeflow/kfp-launcher:2.5.0", "v2.1.0", ("missing", "missing")),
        ("mirror:5000/kfp-launcher@sha256:00", None, ("note", "note")),
        ("a-mirror/kfp-launcher:latest", "dev", ("note", "note")),
    ],
)
def test_releases_that_are_too_old_are_said_with_what_to_install(
    launcher: str,
    trainer: str | None,
    verdicts: tuple[str, str],
    trainers: str,
    in_cluster: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Kubernetes, "launcher", launcher)
    monkeypatch.setattr(Kubernetes, "trainer", trainer)
    monkeypatch.setattr(Kubernetes, "trainers", trainers)
    findings = prerequisites._cluster({}, "torch-distributed", "crossearth")
    found = {each.check: each for each in findings}
    assert (found["Kubeflow Pipelines"].verdict, found["Kubeflow Trainer"].verdict) == verdicts
    for name, oldest in (("Kubeflow Pipelines", "2.15"), ("Kubeflow Trainer", "2.2")):
        if found[name].verdict != "fine":
            assert f"{oldest} or newer" in found[name].advice


def test_a_runtime_that_may_not_be_looked_up_is_no_missing_one(
    in_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kubernetes, "absent", 403)
    params = load_params(ROOT / "params.yaml")
    found = check_prerequisites(params, {}, {}, "other", "crossearth")
    assert any(
        (each.verdict, each.found) == ("note", "other cannot be looked up: forbidden") for each in found
    )


def test_a_failed_step_leaves_a_note_until_it_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(InputError), workspace.step(str(tmp_path), "train", "a/b"):
        raise InputError("no tiles")
    (note,) = workspace.failures()
    assert (note["step"], note["item"], note["message"]) == ("train", "a/b", "no tiles")
    with workspace.step(str(tmp_path), "train", "a/b"):
        pass
    assert not workspace.failures()
    assert sys.excepthook is print_uncaught
    (workspace.FAILURES / "train.json").write_text("[]")
    with pytest.raises(InputError, match=r"train\.json: JSON of a list"):
        workspace.failures()


def test_wrong_input_of_a_pod_is_said_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = InputError("no tiles at s3://me:secret@x", where="town", next_step="crossearth ingest town")
    print_uncaught(InputError, wrong, None)
    assert capsys.readouterr().err == "error: town: no tiles at s3://***@x\n  next: crossearth ingest town\n"
    print_uncaught(RuntimeError, RuntimeError("broken"), None)
    assert "RuntimeError: broken" in capsys.readouterr().err


def test_a_full_disk_takes_no_note_and_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "note.json")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(workspace, "write_json", full)
    with pytest.raises(InputError, match="no tiles"), workspace.step(str(tmp_path), "train"):
        raise InputError("no tiles")


@pytest.mark.parametrize(
    ("params", "catalogs"), [("[", "[]"), ("[]", "[]"), ("{}", "{}"), ("a: 1\na: 2", "[]")]
)
def test_texts_that_are_no_params_or_catalogs_are_refused(
    params: str, catalogs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"params|catalogs"):
        workspace.begin(params, catalogs)


@pytest.mark.parametrize(
    ("said", "tries"),
    [
        ("ERROR: Connection reset by peer", 3),
        ("ERROR: unexpected error - 503", 3),
        ("ERROR: unknown revision", 1),
    ],
)
def test_archives_are_fetched_again_where_the_connection_was_lost(
    said: str, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def get(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command[0])
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr(subprocess, "run", get)
    monkeypatch.setattr(pod_archives, "PAUSES_S", (0.0, 0.0))
    with pytest.raises(InputError, match=said[-8:]):
        pod_archives.fetch_archives(
            tmp_path / "archives", "https://git.example/a", "main", "archives", ["whu"]
        )
    assert len(calls) == tries


def test_archives_are_drawn_again_where_they_are_not_what_was_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    archives, drawn = Path("archives"), []

    def draw() -> None:
        drawn.append("again")
        archives.mkdir(exist_ok=True)
        (archives / "a.zip").write_text("drawn")

    first = pod_archives.draw_archives(draw, archives, "key")
    assert (pod_archives.draw_archives(draw, archives, "key"), len(drawn)) == (first, 1)
    pod_archives.draw_archives(draw, archives, "other key")
    (archives / "a.zip").write_text("another's")
    assert (pod_archives.draw_archives(draw, archives, "other key"), len(drawn)) == (first, 3)
    (archives / "a.zip").unlink()
    assert (pod_archives.draw_archives(draw, archives, "other key"), len(drawn)) == (first, 4)


def test_inference_has_nothing_to_stylize() -> None:
    inputs = read_inputs(ROOT / "params.yaml", stylize_shards=2)
    with pytest.raises(InputError, match="--stylize-shards: inference stylizes nothing"):
        build("inference", inputs, LOCAL)


class Api(Handler):
    """The part of Kubeflow Pipelines' API that `submit`, `list` and `stop` speak to."""

    server: "Server"

    def do_GET(self) -> None:
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.answer(401, {})
        elif self.server.mode == "login":
            self.answer(302, "", Location="/dex/auth")
        elif self.server.mode == "page":
            self.answer(200, "<html>", "text/html")
        elif self.path.startswith("/apis/v2beta1/healthz"):
            self.answer(200, {"multi_user": False})
        elif self.path.startswith("/apis/v2beta1/experiments"):
            experiment = {"experiment_id": "e1", "display_name": "crossearth", "namespace": "crossearth"}
            self.answer(200, {"experiments": [experiment]})
        elif self.path.startswith("/apis/v2beta1/runs/"):
            self.answer(200, self.server.run)
        else:
            self.answer(200, {"runs": [self.server.run]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.posts.append((self.path, body))
        self.answer(*(self.server.refusal or (200, self.server.run)))


class Server(http_server.Server):
    """A cluster that accepts everything."""

    def __init__(self) -> None:
        super().__init__(Api)
        self.token = ""
        self.mode = "fine"
        self.refusal: tuple[int, Any] | None = None
        self.posts: list[tuple[str, bytes]] = []
        self.run: dict[str, Any] = {"run_id": "r-1", "display_name": "benchmark 1", "state": "SUCCEEDED"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    # kfp's client keeps a context file below the home folder
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CROSSEARTH_KFP_TOKEN", raising=False)
    with Server() as running:
        yield running


@pytest.fixture
def values_file(tmp_path: Path) -> Path:
    """infra/values.yaml with an image of one's own."""
    path = tmp_path / "values.yaml"
    path.write_text((ROOT / "infra/values.yaml").read_text().replace("0" * 64, "1" * 64))
    return path


def submit(server: Server, values: Path, *more: str) -> Any:
    command = ["pipeline", "submit", "benchmark", "--host", server.address, "--values", str(values)]
    return CliRunner().invoke(app, [*command, "--params", str(ROOT / "params.yaml"), *more])


def test_submit_sends_the_graph_and_waits(server: Server, values_file: Path) -> None:
    done = submit(server, values_file, "--watch", "--recipe", "deepglobe", "--set", "store=s3://bucket/a")
    assert done.exit_code == 0, done.output
    assert "run r-1" in done.output
    body = json.loads(next(body for path, body in server.posts if path.startswith("/apis/v2beta1/runs")))
    assert body["runtime_config"]["parameters"] == {"recipes": ["deepglobe"], "store": "s3://bucket/a"}
    assert body["service_account"] == "crossearth"
    assert body["display_name"].startswith("crossearth-benchmark 2")
    assert "platforms" in json.dumps(body["pipeline_spec"])


def test_a_schedule_is_a_recurring_run_of_the_same_graph(server: Server, values_file: Path) -> None:
    server.run["recurring_run_id"] = "again-1"
    done = submit(server, values_file, "--cron", "0 0 3 * * *", "--recipe", "deepglobe")
    assert done.exit_code == 0, done.output
    assert "recurring run again-1" in done.output
    ((path, body),) = server.posts
    sent = json.loads(body)
    assert path == "/apis/v2beta1/recurringruns"
    assert sent["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert (sent["max_concurrency"], sent["no_catchup"]) == (1, True)
    assert sent["runtime_config"]["parameters"] == {"recipes": ["deepglobe"]}
    assert sent["service_account"] == "crossearth"


@pytest.mark.parametrize("more", [["--cron", "0 3 * * *"], ["--cron", "0 0 3 * * *", "--watch"]])
def test_a_wrong_schedule_is_not_submitted(more: list[str], server: Server, values_file: Path) -> None:
    with pytest.raises(InputError, match=r"--cron: .*\n.*six fields"):
        raise submit(server, values_file, *more).exception
    assert not server.posts


def test_the_examples_image_is_not_submitted(server: Server) -> None:
    with pytest.raises(InputError, match="still the example's"):
        kubeflow.submit(
            kubeflow.connect(server.address, None),
            "benchmark",
            read_inputs(ROOT / "params.yaml"),
            load_values(ROOT / "infra/values.yaml"),
            {},
            "crossearth",
            "crossearth",
            True,
        )
    assert not server.posts


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_a_watched_run_that_does_not_succeed_is_a_failure(
    state: str, server: Server, values_file: Path
) -> None:
    server.run["state"] = state
    done = submit(server, values_file, "--watch")
    assert done.exit_code == 1
    assert f"run r-1: benchmark 1: {state}" in done.output


def test_what_the_api_refuses_is_said_in_its_words(server: Server) -> None:
    server.refusal = (404, {"error": "Run nowhere not found.", "message": "..."})
    command = ["pipeline", "stop", "nowhere", "--host", server.address]
    with pytest.raises(InputError, match=r"(?s)HTTP 404.*Run nowhere not found.*pipeline list"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    server.refusal = (403, {"error": "forbidden"})
    with pytest.raises(InputError, match="CROSSEARTH_KFP_TOKEN"):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_a_host_that_wants_a_login_says_how_and_a_token_is_never_shown(
    server: Server, values_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = CANARY
    with pytest.raises(InputError, match="wants a login"):
        kubeflow.connect(server.address, None)
    monkeypatch.setenv("CROSSEARTH_KFP_TOKEN", CANARY + "-wrong")
    with pytest.raises(InputError) as refused:
        kubeflow.connect(server.address, None)
    assert CANARY not in str(refused.value)
    monkeypatch.setenv("CROSSEARTH_KFP_TOKEN", f"{CANARY}\nsecond line")
    with pytest.raises(InputError, match=r"\$CROSSEARTH_KFP_TOKEN: .*header") as refused:
        kubeflow.connect(server.address, None)
    assert CANARY not in str(refused.value)
    token = tmp_path / "token"
    token.write_text(CANARY + "\n")
    done = submit(server, values_file, "--token-file", str(token))
    assert done.exit_code == 0, done.output
    assert CANARY not in done.output
    with pytest.raises(InputError, match="cannot read the token"):
        kubeflow.connect(server.address, None, tmp_path / "absent")


@pytest.mark.parametrize(("mode", "words"), [("login", "wants a login"), ("page", "not as Kubeflow")])
def test_a_host_that_is_something_else_is_refused(server: Server, mode: str, words: str) -> None:
    server.mode = mode
    with pytest.raises(InputError, match=words):
        kubeflow.connect(server.address, None)


@pytest.mark.parametrize(
    ("host", "words"), [("http://127.0.0.1:9", "does not answer"), ("kubeflow.example", "no address")]
)
def test_a_host_that_does_not_answer_is_refused(host: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        kubeflow.connect(host, None)


@pytest.mark.parametrize(
    "wanted",
    [Resources(cpu="500m", memory="1536Mi"), Resources(cpu=".5", memory="64G"), Resources(memory="9")],
)
def test_what_the_values_file_may_say_kfp_takes(wanted: Resources, tmp_path: Path, values: Values) -> None:
    assert compiled(tmp_path, "inference", replace(values, default=wanted, steps={}))
    with pytest.raises(InputError, match="shm"):
        Resources(shm="1 GB")


def test_a_catalog_that_is_named_twice_travels_once(tmp_path: Path) -> None:
    own = {"datasets": {"town": {"title": "Town"}}}
    (tmp_path / "own.yaml").write_text(json.dumps(own))
    params = {"preset": "a", "presets": {"a": {}}, "catalogs": [str(tmp_path / "own.yaml")]}
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    again = tmp_path / "town" / ".." / "own.yaml"
    (tmp_path / "town").mkdir()
    assert json.loads(read_inputs(tmp_path / "params.yaml", [again]).catalogs) == [own]
