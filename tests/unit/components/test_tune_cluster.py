"""A tuning on a cluster: what is created is what the kinds' schemas take, and a trial trains what it says."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from http_server import Handler, Server

pytest.importorskip("kubeflow.trainer", reason="pip install -e '.[cluster]'")
pytest.importorskip("kubernetes_validate", reason="pip install -e '.[services]'")

from kubernetes import client
from manifest_schema import INFRA, check
from training_folder import NUMBERS, RECIPE

from crossearth.components.ablate.grid import Job
from crossearth.components.pods.train_job import TrainJobConfig
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.trial import PREFIX
from crossearth.components.train.step import place
from crossearth.components.tune.cluster import Cluster, manifest
from crossearth.components.tune.step import read_trials
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.config import load_config
from crossearth.data.common.errors import InputError
from crossearth.pipelines.resources import load_values

VALUES = INFRA / "values.yaml"
KINDS = ["OptimizationJob", "Experiment"]
GRID: dict[str, Any] = {
    "grid": {"lr": [0.001, 1e-05], "style.alpha": [0.4, None], "ablation": ["+style"]},
    "train": {"held_out_share": 0.25, "scale": [1.0, 1.5], "style": {"block_px": 16}},
}


@pytest.fixture
def params() -> Params:
    return Params("own", {"own": {"train": NUMBERS}})


@pytest.fixture
def trials(tmp_path: Path, params: Params, catalog: Catalog) -> list[Job]:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(GRID))
    return read_trials(path, RECIPE, params, catalog)


def made(kind: str, trials: list[Job], recipe: str = RECIPE) -> dict[str, Any]:
    values = load_values(VALUES)
    job = load_config(TrainJobConfig, values.trial_job(), VALUES)
    return manifest(kind, recipe, trials, job, "/workspace", "TrainingRuntime", 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_is_what_its_kind_takes(kind: str, trials: list[Job]) -> None:
    wanted = made(kind, trials)
    check(wanted)
    # the names of its TrainJobs, and those of their pods, are labels of 63 characters at most
    long = made(kind, trials, 30 * "town-")["metadata"]["name"]
    assert len(f"{long}-trial-100-node-0-0-abcde") <= 63
    assert made(kind, trials) == wanted and made(kind, trials[:2])["metadata"] != wanted["metadata"]
    for path in (["spec"], ["spec", "parameters", 0]):
        wrong = copy.deepcopy(wanted)
        at = wrong
        for part in path:
            at = at[part]  # type: ignore[index]
        at["unknown"] = 1
        with pytest.raises(jsonschema.ValidationError):
            check(wrong)


def test_the_kinds_say_the_same(trials: list[Job]) -> None:
    own, katib = (made(kind, trials)["spec"] for kind in KINDS)
    assert own["objectives"] == [{"metric": "held_out_score", "direction": "Maximize"}]
    assert katib["objective"]["objectiveMetricName"] == "held_out_score"
    assert katib["objective"]["type"] == "maximize"
    assert (own["numTrials"], own["parallelTrials"]) == (4, 3)
    assert (katib["maxTrialCount"], katib["parallelTrialCount"]) == (4, 3)
    choices = {each["name"]: each["searchSpace"]["categorical"]["choices"] for each in own["parameters"]}
    assert choices == {each["name"]: each["feasibleSpace"]["list"] for each in katib["parameters"]}
    assert choices == {"lr": ["0.001", "1e-05"], "style__alpha": ["0.4", "null"], "ablation": ["+style"]}
    command = own["trainJobTemplate"]["spec"]["trainer"]["command"]
    assert command[-1] == "crossearth.components.pods.train_job"
    assert all(word.isascii() and not {*word} & {*" '\"$;&|<>(){}"} for word in command), "Katib's shell"


def assigned(kind: str, wanted: dict[str, Any], values: dict[str, str]) -> dict[str, str]:
    """The variables of one trial's pods, as the controllers make them."""
    if kind == "OptimizationJob":
        env = wanted["spec"]["trainJobTemplate"]["spec"]["trainer"]["env"]
        given = {PREFIX + name.upper().replace("-", "_"): value for name, value in values.items()}
        return {each["name"]: each["value"] for each in env} | given
    text = json.dumps(wanted["spec"]["trialTemplate"]["trialSpec"])
    for name, value in values.items():
        text = text.replace(f"${{trialParameters.{name}}}", value)
    return {each["name"]: each["value"] for each in json.loads(text)["spec"]["trainer"]["env"]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_trains_with_the_numbers_of_the_grid_whatever_the_workspace_has(
    kind: str, trials: list[Job], catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"lr": "1e-05", "style__alpha": "0.4", "ablation": "+style"}
    variables = assigned(kind, made(kind, trials), values)
    assert json.loads(variables["CROSSEARTH_ARGUMENTS"]) == ["train", RECIPE]
    assert variables["CROSSEARTH_WORKSPACE"] == "/workspace"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    others = {"backbone": "vit_large_patch14_dinov2.lvd142m", "iterations": 7, "lr": 0.5}
    in_workspace = Params("paper", {"paper": {"train": others, "recipes": {RECIPE: {"crop_px": 1024}}}})
    config, folder = place(in_workspace, catalog.recipe(RECIPE))
    (wanted,) = [
        each for each in trials if each.cell.values["lr"] == 1e-05 and each.cell.values["style.alpha"]
    ]
    assert config == wanted.config
    assert folder.parts[:2] == ("artifacts", "trials") and folder.name == RECIPE
    monkeypatch.setenv(f"{PREFIX}LR", "0.001")
    assert place(in_workspace, catalog.recipe(RECIPE))[1] != folder


def test_what_torchrun_starts_in_a_pod_is_the_command_of_the_job(tmp_path: Path) -> None:
    variables = {"CROSSEARTH_WORKSPACE": str(tmp_path), "CROSSEARTH_ARGUMENTS": '["train", "--help"]'}
    done = subprocess.run(
        [sys.executable, "-m", "crossearth.components.pods.train_job"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "process 0 of 1 $ crossearth train --help" in done.stdout, done.stderr


def test_what_an_optimization_job_does_not_take_is_refused(
    tmp_path: Path, params: Params, catalog: Catalog
) -> None:
    def of(**grid: Any) -> list[Job]:
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({**GRID, "grid": grid}))
        return read_trials(path, RECIPE, params, catalog)

    many = of(lr=[number / 1000 for number in range(1, 102)])
    with pytest.raises(InputError, match="101 combinations"):
        made("OptimizationJob", many)
    check(made("Experiment", many))
    with pytest.raises(InputError, match="1 to 64 letters"):
        made("OptimizationJob", of(backbone=["/" + 70 * "a"]))


class Api(Handler):
    """As much of Kubernetes' API as a tuning needs; the server's `objects` are paths and what lies there."""

    def do_GET(self) -> None:
        found = self.server.objects.get(self.path)  # type: ignore[attr-defined]
        self.answer(404 if found is None else 200, found or {})

    def do_POST(self) -> None:
        wanted = self.sent()
        check(wanted)
        self.server.objects[f"{self.path}/{wanted['metadata']['name']}"] = wanted  # type: ignore[attr-defined]
        self.answer(201, wanted)


def kinds(group: str, *plurals: str) -> dict[str, Any]:
    resources = [
        {"name": name, "kind": name, "singularName": "", "namespaced": True, "verbs": []} for name in plurals
    ]
    return {f"/apis/{group}": {"groupVersion": group, "kind": "APIResourceList", "resources": resources}}


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    server = Server(Api)
    server.objects = {}  # type: ignore[attr-defined]
    configured = client.Configuration(host=server.address)
    monkeypatch.setattr(client.Configuration, "_default", configured)
    monkeypatch.setattr("kubernetes.config.load_config", lambda: None)
    with server:
        yield server.objects  # type: ignore[attr-defined]


TRAINER, KATIB = "trainer.kubeflow.org/v1alpha1", "kubeflow.org/v1beta1"


def test_the_kind_is_what_the_cluster_has(objects: dict[str, Any], trials: list[Job]) -> None:
    cluster = Cluster("team")
    with pytest.raises(InputError, match=r"neither.*\n.*install Katib"):
        cluster.kind()
    objects |= kinds(TRAINER, "trainjobs") | kinds(KATIB, "experiments")
    assert cluster.kind() == "Experiment"
    objects |= kinds(TRAINER, "trainjobs", "optimizationjobs")
    assert cluster.kind() == "OptimizationJob"
    with pytest.raises(InputError, match="no training runtime 'torch'"):
        cluster.runtime_kind("torch")
    objects[f"/apis/{TRAINER}/clustertrainingruntimes/torch"] = {"metadata": {}}
    assert cluster.runtime_kind("torch") == "ClusterTrainingRuntime"
    objects[f"/apis/{TRAINER}/namespaces/team/trainingruntimes/torch"] = {"metadata": {}}
    assert cluster.runtime_kind("torch") == "TrainingRuntime"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_created_is_there_once_and_somebody_works_on_it(
    kind: str, objects: dict[str, Any], trials: list[Job]
) -> None:
    cluster, wanted = Cluster("team"), made(kind, trials)
    cluster.create(wanted)
    ((path, there),) = objects.items()
    assert there == wanted and "/namespaces/team/" in path
    assert not cluster.is_taken_up(wanted, 0)
    there["status"] = {"conditions": [{"type": "Created"}]}
    assert cluster.is_taken_up(wanted, 0)
    with pytest.raises(InputError, match=r"is there already(.|\n)*kubectl -n team get"):
        cluster.create(wanted)


def test_a_manifest_is_written_without_a_cluster(
    typed: Any, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID))
    preset = {"train": NUMBERS}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"preset": "own", "presets": {"own": preset}}))
    command = f"crossearth pipeline tune {RECIPE} --grid grid.yaml --values {VALUES} -o tune.json"
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    said = typed(f"{command} --kind Experiment --namespace team")
    assert "4 trials" in said and "kubectl -n team apply -f tune.json" in said
    written = json.loads((tmp_path / "tune.json").read_text())
    check(written)
    assert written["metadata"]["namespace"] == "team"
    assert "'Experiment'?" in refused(f"{command} --kind Experimint")
    assert "get-contexts" in refused(command)
