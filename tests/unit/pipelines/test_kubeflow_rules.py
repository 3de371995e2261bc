"""Every graph, with the values files of the tests, against tests/kubeflow_rules.py; and its rules."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kubeflow_rules import GRAPH, broken, cached, count_pods, too_long, train_job_name

from crossearth.components.plan import items as plan_items
from crossearth.components.plan.step import plan
from crossearth.components.pods.launch import job_name
from crossearth.components.pods.train_job import TrainJobConfig
from crossearth.components.predict import scenes
from crossearth.components.runtime.params import load_params
from crossearth.components.steps import STEPS
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.errors import InputError
from crossearth.pipelines.benchmark import read_inputs
from crossearth.pipelines.graphs import PIPELINES, build, compile_pipeline
from crossearth.pipelines.resources import LOCAL, Resources, Trainer, load_values

ROOT = Path(__file__).parents[3]
INFRA = load_values(ROOT / "infra/values.yaml")
VALUES = {
    "infra": INFRA,
    "many nodes": replace(INFRA, trainer=Trainer(nodes=2, runtime="crossearth-torch")),
    "many nodes without GPUs": replace(INFRA, default=Resources(cpu="3"), steps={}, trainer=Trainer(nodes=2)),
    "half a core": replace(INFRA, default=Resources(cpu="500m"), steps={}),
    "this machine": LOCAL,
}


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("name", PIPELINES)
def test_a_graph_keeps_the_rules_of_a_real_control_plane(name: str, values: str, tmp_path: Path) -> None:
    inputs = read_inputs(ROOT / "params.yaml")
    out = compile_pipeline(name, inputs, VALUES[values], tmp_path / "pipeline.yaml")
    findings = broken(GRAPH, list(yaml.safe_load_all(out.read_text())))
    assert findings == {}


@pytest.mark.parametrize("name", PIPELINES)
def test_without_the_cache_no_task_may_come_from_it(name: str) -> None:
    def may(cache: bool) -> list[str]:
        pipeline = build(name, read_inputs(ROOT / "params.yaml"), INFRA, cache)
        return cached([json_format.MessageToDict(pipeline.pipeline_spec)])

    assert may(cache=False) == []
    # without shards none are dealt out and none are stylized
    kept = {step.name for step in STEPS.values() if step.own_pod and step.cached} - {"shards", "stylize"}
    assert {*may(cache=True)} == (set() if name in ("inference", "monitoring") else kept)


@pytest.mark.parametrize("shards", [0, 3])
def test_a_run_has_few_pods_and_grows_with_datasets_and_recipes(shards: int, tmp_path: Path) -> None:
    inputs = read_inputs(ROOT / "params.yaml", stylize_shards=shards)
    out = compile_pipeline("benchmark", inputs, INFRA, tmp_path / "pipeline.yaml")
    documents = list(yaml.safe_load_all(out.read_text()))
    assert broken(GRAPH, documents) == {}
    steps = {name.removeprefix("exec-") for name in documents[0]["deploymentSpec"]["executors"]}
    once = steps - {"ingest", "train", "evaluate", "shards", "stylize"}
    for recipes, datasets in ((1, 2), (14, 8)):
        times = {"recipes": recipes, "datasets": datasets, "stylize-shards": shards * recipes}
        stylized = 3 + 3 * times["stylize-shards"] if shards else 0
        assert count_pods(documents, times) == 4 + 2 * len(once) + 5 * recipes + 3 * datasets + stylized


@pytest.mark.parametrize(("name", "once"), [("inference", 7), ("monitoring", 9)])
def test_a_run_that_maps_takes_three_pods_a_shard(name: str, once: int, tmp_path: Path) -> None:
    out = compile_pipeline(name, read_inputs(ROOT / "params.yaml"), INFRA, tmp_path / "pipeline.yaml")
    documents = list(yaml.safe_load_all(out.read_text()))
    pods = [count_pods(documents, {"shards": shards}) for shards in (0, 1, 500)]
    assert pods == [once, once + 3, once + 1500]


def test_one_recipe_of_two_datasets_takes_28_pods_at_most(tmp_path: Path) -> None:
    """Each pod costs ten seconds: a step that gets its own must be worth that to all who run it."""
    out = compile_pipeline("benchmark", read_inputs(ROOT / "params.yaml"), INFRA, tmp_path / "pipeline.yaml")
    documents = list(yaml.safe_load_all(out.read_text()))
    assert count_pods(documents, {"recipes": 1, "datasets": 2}) <= 28


def test_pods_of_loops_over_nothing_and_of_branches_not_taken_are_counted() -> None:
    (documents,) = [list(yaml.safe_load_all(SMALL))]
    root = documents[0]["root"]["dag"]["tasks"]
    root["loop"] |= {"taskInfo": {"name": "items"}, "parameterIterator": {}}
    # root, two steps of two pods, the loop's driver; an iteration: its driver, the branch's, a step
    assert [count_pods(documents, {"items": number}) for number in (0, 1, 3)] == [6, 10, 18]
    branch = documents[0]["components"]["comp-loop"]["dag"]["tasks"]["branch"]
    branch |= {"taskInfo": {"name": "if"}, "triggerPolicy": {"condition": "x"}}
    assert [count_pods(documents, {"items": 1, "if": taken}) for taken in (0, 1)] == [8, 10]


def test_no_item_of_the_benchmark_is_longer_than_an_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, params = load_catalog(), load_params(ROOT / "params.yaml")
    monkeypatch.chdir(tmp_path)
    plan(catalog, params, Path("artifacts/plan"))
    recipes = list(catalog.recipes())
    items = plan_items.recipe_items(catalog, params, recipes, "code")
    # all of them travel to `validate` in one argument
    assert not too_long([items, plan_items.dataset_items(catalog, params, recipes, {}, "code")])
    listed = [f"s3://bucket/{number:038d}.tif" for number in range(10_000)]
    monkeypatch.setattr(scenes, "list_objects", lambda _: listed)
    shards = scenes.deal_scenes("s3://bucket/", 1)
    assert scenes.read_shard(shards[0]) == listed
    with pytest.raises(InputError, match=r"step scenes made"):
        scenes.read_shard(shards[0] | {"digest": "another run's"})
    monkeypatch.setattr(scenes, "list_objects", lambda _: listed[:1000])
    many = scenes.deal_scenes("s3://bucket/", 500)
    # kfp hands the list of all items on, then each by itself
    assert not too_long(many, *many, *shards)
    Path(many[1]["list"]).unlink()
    with pytest.raises(InputError, match=r"(?s)step scenes made is gone.*submit again"):
        scenes.read_shard(many[1])


def test_jobset_takes_the_name_of_every_training() -> None:
    config = TrainJobConfig(image="crossearth", nodes=100)
    names = [*load_catalog().recipes(), "a-domain-of-ones-own-with-a-long-name-rgb", "Ü"]
    jobs = [job_name(["train", name], "/workspace", config) for name in names]
    assert [finding for job in jobs for finding in train_job_name(job, config.nodes)] == []
    assert len(set(jobs)) == len(names)
    assert all(job.replace("-", "").isalnum() and job.isascii() and "--" not in job for job in jobs)
    assert job_name(["train", "x"], "/other", config) != job_name(["train", "x"], "/workspace", config)
    assert train_job_name("crossearth-train-vaihingen-irrg-and-its-neighbours-a1b2c3", 2)


SMALL = """
pipelineInfo: {name: small}
root:
  inputDefinitions: {parameters: {text: {parameterType: STRING, defaultValue: short}}}
  dag:
    tasks:
      loop:
        componentRef: {name: comp-loop}
        inputs: {parameters: {item: {taskOutputParameter: {producerTask: list, outputParameterKey: Output}}}}
      list:
        componentRef: {name: comp-list}
        inputs: {parameters: {text: {componentInputParameter: text}, job: {runtimeValue: {constant: {}}}}}
        retryPolicy: {maxRetryCount: 2, backoffMaxDuration: 300s}
      end:
        componentRef: {name: comp-end}
        inputs: {parameters: {status: {taskFinalStatus: {}}}}
        triggerPolicy: {strategy: ALL_UPSTREAM_TASKS_COMPLETED}
components:
  comp-loop:
    inputDefinitions: {parameters: {item: {parameterType: STRUCT}}}
    dag:
      outputs:
        parameters:
          one: {valueFromOneof: {parameterSelectors: [{producerSubtask: branch, outputParameterKey: Output}]}}
      tasks:
        branch: {componentRef: {name: comp-branch}}
  comp-branch: {dag: {tasks: {work: {componentRef: {name: comp-work}, cachingOptions: {}}}}}
  comp-work: {executorLabel: exec-list}
  comp-list:
    executorLabel: exec-list
    inputDefinitions: {parameters: {text: {parameterType: STRING}, job: {parameterType: STRUCT}}}
    outputDefinitions: {parameters: {Output: {parameterType: STRUCT}}}
  comp-end:
    executorLabel: exec-end
    inputDefinitions: {parameters: {status: {parameterType: TASK_FINAL_STATUS}}}
deploymentSpec:
  executors:
    exec-list:
      container: &container
        command: [python]
        env:
          - {name: OMP_NUM_THREADS, value: "2"}
          - {name: GDAL_NUM_THREADS, value: "2"}
          - {name: MLFLOW_TRACKING_URI, value: "http://crossearth-mlflow:5000"}
        resources: {resourceCpuLimit: 2500m}
    exec-end: {container: *container}
---
platforms:
  kubernetes:
    deploymentSpec: {executors: {exec-list: {activeDeadlineSeconds: "100"}, exec-end: {}}}
"""


def _list(spec: Any) -> Any:
    return spec["root"]["dag"]["tasks"]["list"]["inputs"]["parameters"]


def _end(spec: Any) -> Any:
    return spec["root"]["dag"]["tasks"]["end"]["inputs"]["parameters"]


def _output(spec: Any) -> Any:
    return spec["components"]["comp-list"]["outputDefinitions"]["parameters"]["Output"]


def _work(spec: Any) -> Any:
    return spec["components"]["comp-branch"]["dag"]["tasks"]["work"]


def _container(spec: Any) -> Any:
    return spec["deploymentSpec"]["executors"]["exec-list"]["container"]


JOB = {"environment": {"OMP_NUM_THREADS": "64", "GDAL_NUM_THREADS": "2"}, "resources": {"cpu": "2"}}
FOREIGN = {"name": "A", "value": "http://mlflow.crossearth.svc:5000"}
DAMAGES: list[tuple[str, Callable[[Any, Any], Any], str]] = [
    ("types", lambda s, p: _output(s).update(parameterType="STRING"), "loop.item: STRING where STRUCT"),
    ("types", lambda s, p: _list(s).update(text={"runtimeValue": {"constant": 3}}), "text: int where STRING"),
    ("threads", lambda s, p: _container(s)["env"].pop(0), "OMP_NUM_THREADS is not set, the limit 2500m"),
    ("threads", lambda s, p: _container(s)["env"][1].update(value="3"), "GDAL_NUM_THREADS is 3"),
    (
        "threads",
        lambda s, p: _list(s).update(job={"runtimeValue": {"constant": JOB}}),
        "TrainJob of list: OMP_NUM_THREADS is 64, the limit 2",
    ),
    ("addresses", lambda s, p: _container(s)["env"].append(FOREIGN), "http://mlflow.crossearth.svc:5000"),
    ("retries", lambda s, p: p["exec-list"].update(activeDeadlineSeconds="101"), "tries of up to 101"),
    (
        "retries",
        lambda s, p: s["root"]["dag"]["tasks"]["list"]["retryPolicy"].update(backoffFactor=1.5),
        "list: a factor of 1.5",
    ),
    ("retries", lambda s, p: p["exec-list"].clear(), "2 further tries of up to 604800 s within 300"),
    (
        "train-jobs",
        lambda s, p: _list(s).update(
            job={"runtimeValue": {"constant": {"schedule_timeout_s": 10.0, "timeout_s": 100.0}}}
        ),
        "list: a TrainJob of 100 s, its step of 100 s",
    ),
    ("handler", lambda s, p: _container(s).update(command=["shared.enter(workspace)"]), "enters the"),
    (
        "handler",
        lambda s, p: _end(s).update(
            status={"taskOutputParameter": {"producerTask": "list", "outputParameterKey": "Output"}}
        ),
        "end waits for another task's output",
    ),
    ("one-of", lambda s, p: _work(s).update(cachingOptions={"enableCache": True}), "work may come from"),
    ("keyed", lambda s, p: _work(s).update(cachingOptions={"enableCache": True}), "work"),
    ("2.15", lambda s, p: p["exec-list"].update(securityContext={"runAsUser": "1000"}), "list"),
    (
        "arguments",
        lambda s, p: s["root"]["inputDefinitions"]["parameters"]["text"].update(defaultValue="x" * 2**17),
        "bytes in one argument",
    ),
]


@pytest.mark.parametrize(("rule", "damage", "words"), DAMAGES)
def test_a_rule_finds_what_it_is_for(rule: str, damage: Callable[[Any, Any], Any], words: str) -> None:
    documents = list(yaml.safe_load_all(SMALL))
    assert broken(GRAPH, documents) == {}
    damage(documents[0], documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"])
    findings = broken(GRAPH, documents)
    assert words in "\n".join(findings[rule])


def test_every_rule_is_seen_to_find_something() -> None:
    assert {rule for rule, _, _ in DAMAGES} == set(GRAPH)


def test_a_train_job_has_the_time_of_a_training_and_that_of_its_scheduling() -> None:
    assert VALUES["many nodes"].train_job()["timeout_s"] == 1800 + 259200
    assert VALUES["many nodes without GPUs"].train_job()["timeout_s"] == 1800 + 7 * 24 * 3600


# cores, GPUs -> threads of a process
THREADS = {("8", 0): "8", ("8", 4): "2", ("2.5", 1): "2", ("500m", 0): "1", ("2", 4): "1", (None, 0): None}


def test_a_share_of_the_cores_is_a_processs_own() -> None:
    shares = {(cpu, gpus): Resources(cpu=cpu, gpus=gpus).threads() for cpu, gpus in THREADS}
    assert {key: value.get("OMP_NUM_THREADS") for key, value in shares.items()} == THREADS
    assert VALUES["many nodes"].train_job()["environment"]["OMP_NUM_THREADS"] == "8"
    own = replace(VALUES["many nodes"], environment={"OMP_NUM_THREADS": "4"})
    assert own.train_job()["environment"] == {"OMP_NUM_THREADS": "4", "GDAL_NUM_THREADS": "8"}
