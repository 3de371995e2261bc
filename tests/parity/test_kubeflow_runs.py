"""Runs recorded from a real control plane, each answered with what a person must be told."""

import json
from pathlib import Path
from typing import Any

import pytest
from cluster import NAMESPACE, recorded, serving

from crossearth.components.pods import finish
from crossearth.components.pods.state import nodes_of, pod_name
from crossearth.pipelines.api import Api
from crossearth.pipelines.watch import read, story

NEW = "the workspace is new or was emptied: archives, styles, ingest came from Kubeflow's cache"
AGAIN = "submit again with --no-cache: everything is made again, archives, styles, ingest too"
TABLE = ("SUCCEEDED", "the table is the workspace's artifacts/report", "MLflow's model registry")
# run -> what is said with Argo's record, and where the API alone is asked; None: the same
TOLD: dict[str, tuple[tuple[str, ...], tuple[str, ...] | None]] = {
    "no-account": (
        ("FAILED", "no ServiceAccount crossearth in namespace kubeflow", "infra/kustomize/standalone"),
        (
            "FAILED",
            "before any step",
            "crossearth is not there, or lacks a right",
            "infra/kustomize/standalone",
        ),
    ),
    "forbidden": (
        ("FAILED", "most likely the account crossearth lacks a right", "`get configmaps`", "log is gone"),
        ("FAILED", "`get configmaps`", "log is gone"),
    ),
    "unwritable-claim": (
        (
            "RUNNING",
            "prerequisites: the workspace's claim is not prepared",
            "its Job crossearth-workspace gives the claim away",
        ),
        None,
    ),
    "wrong-type": (
        (
            "FAILED",
            "ingest ",
            "massachusetts",
            "deepglobe",
            "driver refused it: failed to resolve inputs: input",
        ),
        None,
    ),
    "out-of-memory": (
        (
            "FAILED",
            "train deepglobe: killed for memory (OOMKilled) at its limit of 300Mi",
            "steps.train.memory",
        ),
        None,
    ),
    "pod-lost-then-stopped": (
        ("CANCELED", "stopped by a person in train", "not reached: evaluate, report"),
        ("FAILED", "train: failed for a reason that is not known"),
    ),
    "empty-claim-warm-cache": (
        ("CANCELED", "stopped by a person in ingest", "ingest casid, loveda: artifacts", NEW, AGAIN),
        None,
    ),
    "no-cache-ignored": (("FAILED", "ingest casid, loveda, rescuenet, whu: artifacts", NEW, AGAIN), None),
    "argument-too-long": (
        ("RUNNING", "predict shard-0 since 02:27:29 UTC", "try 1 ended", "shards 0 of 1 done"),
        ("RUNNING", "predict since 02:27:19 UTC"),
    ),
    "succeeded-32-settings": (TABLE, ("SUCCEEDED",)),
    "succeeded": (TABLE, None),
    "succeeded-from-cache": (
        (
            *TABLE,
            "from Kubeflow's cache: archives, styles, ingest (2 items), validate, coverage",
        ),
        None,
    ),
    "succeeded-trainjob": ((*TABLE, "from Kubeflow's cache: archives, styles"), None),
    "inference-succeeded": (("PENDING", "waiting: the cluster has not said anything of it yet"), None),
}
# of train in out-of-memory; the recording cuts long texts and leaves the pipeline's spec out
LIMIT = {"exec-train": {"container": {"resources": {"resourceMemoryLimit": "300Mi"}}}}


@pytest.mark.parametrize("by_record", [True, False], ids=["record", "api"])
@pytest.mark.parametrize("name", TOLD)
def test_a_recorded_run_is_answered(name: str, by_record: bool, kubeflow_dir: Path) -> None:
    cluster = recorded(kubeflow_dir, name)
    cluster.older_api, cluster.archived = by_record, not by_record
    cluster.run["pipeline_spec"] = {"deploymentSpec": {"executors": LIMIT}}
    with serving(cluster) as host:
        told = story(*read(Api(host), cluster.run["run_id"]))
    whole, api = TOLD[name]
    for words in whole if by_record or api is None else api:
        assert words in told
    assert "for-loop" not in told
    assert "iteration" not in told
    if "ingest casid" in told:
        assert told.count("no such folder\n") == 2  # the reason, and the log of one pod


@pytest.mark.parametrize("by_record", [True, False], ids=["record", "api"])
def test_the_log_of_a_pod_that_is_deleted_is_read_from_the_object_store(
    by_record: bool, kubeflow_dir: Path
) -> None:
    cluster = recorded(kubeflow_dir, "wrong-type")
    cluster.older_api, cluster.archived = by_record, True
    with serving(cluster) as host:
        assert "type mismatch: expect STRUCT, got string" in story(*read(Api(host), cluster.run["run_id"]))


def test_the_names_of_pods_are_those_under_which_argo_archived_their_logs(kubeflow_dir: Path) -> None:
    archived = 0
    for path in kubeflow_dir.glob("*.workflow.json"):
        workflow = json.loads(path.read_text())
        for node in nodes_of(workflow).values():
            for artifact in (node.get("outputs") or {}).get("artifacts") or []:
                if node["type"] == "Pod" and artifact["name"] == "main-logs":
                    archived += 1
                    assert artifact["s3"]["key"].split("/")[-2] == pod_name(workflow, node)
    assert archived > 100


def test_every_recorded_run_is_in_the_table(kubeflow_dir: Path) -> None:
    assert {path.name.partition(".")[0] for path in kubeflow_dir.glob("*.run.json")} == set(TOLD)


ENDS = {
    "unwritable-claim": ("FAILED", "prerequisites", "the workspace's claim is not prepared"),
    "wrong-type": ("FAILED", "ingest ", "type mismatch: expect STRUCT, got string"),
    "out-of-memory": ("FAILED", "train deepglobe", "OOMKilled"),
    "pod-lost-then-stopped": ("KILLED", "train", "stopped by a person in train"),
    "empty-claim-warm-cache": ("KILLED", "ingest", "artifacts/archives/NAME: no such folder"),
    "no-cache-ignored": ("FAILED", "ingest casid", "the workspace is new or was emptied"),
    "succeeded-32-settings": ("FINISHED", "", ""),
    "succeeded-from-cache": ("FINISHED", "", ""),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_exit_handler_tells_mlflow_how_a_recorded_run_ended(
    name: str, kubeflow_dir: Path, in_pod: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = recorded(kubeflow_dir, name)
    assert cluster.workflow
    cluster.workflow["metadata"]["namespace"] = NAMESPACE
    told = in_pod(cluster)
    finish.finish_pipeline("/nowhere", "benchmark 1", cluster.workflow["metadata"]["name"], "RUNNING", "")
    state, step, words = ENDS[name]
    assert told.status == state
    assert told.tags["pipeline_state"] == state
    assert told.tags["failed_step"].startswith(step)
    assert bool(told.tags["failed_step"]) == bool(step)
    assert words in told.tags["failure"]
