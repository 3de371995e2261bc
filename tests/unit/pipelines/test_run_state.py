"""How a run of a pipeline on a cluster stands or ended, and what is said of it."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster import Cluster, node, patch, serving, workflow
from mlflow.tracking import MlflowClient
from rich.console import Console
from typer.testing import CliRunner

from crossearth.components.pods import finish, workspace
from crossearth.components.pods.reason import explain
from crossearth.components.pods.state import FAILED, KILLED, RUNNING, read_run
from crossearth.components.runtime.tracking import start_run
from crossearth.data.common.errors import InputError
from crossearth.pipelines import watch as watching
from crossearth.pipelines.api import Api
from crossearth.pipelines.cli import app
from crossearth.pipelines.watch import progress, story, watch

LOOP = "for-loop-4(0).iteration-iterations(0:0)(0).iteration-item(0)"
OUT_OF_MEMORY = "main: OOMKilled (exit code 1)"
BROKEN = "main: Error (exit code 1)"


def trained(phase: str, message: str = "", number: int = 0) -> dict[str, Any]:
    """A try of the step train of recipe town, whose pod may have 300 MiB."""
    pod_spec_patch = patch("town", "300Mi")
    return node(f"{LOOP}.train(0).executor({number})", phase, message=message, pod_spec_patch=pod_spec_patch)


def around(phase: str) -> list[dict[str, Any]]:
    """What Argo has around that try."""
    names = ("", "for-loop-4(0)", LOOP, f"{LOOP}.train(0)")
    return [node(name, phase, "DAG") for name in names] + [node(f"{LOOP}.train(0).executor", phase, "Retry")]


def failed(message: str = BROKEN, compressed: bool = False) -> dict[str, Any]:
    return workflow([*around("Failed"), trained("Failed", message)], "Failed", compressed)


@pytest.mark.parametrize("compressed", [False, True])
def test_the_step_that_failed_is_named_and_not_what_is_around_it(compressed: bool) -> None:
    run, (reason,) = explain(read_run(None, failed(OUT_OF_MEMORY, compressed)), lambda _: None)
    assert (run.state, run.body) == (FAILED, FAILED)
    assert str(reason).startswith("train town: killed for memory (OOMKilled) at its limit of 300Mi\n")
    assert "steps.train.memory" in reason.next_step


REFUSAL = "error: town: no tiles\n  expected: some\n  next: crossearth ingest town\n"
RIGHT = (
    'F1130 01:00:00.000001      1 main.go:59] failed to execute component: secrets "minio" is forbidden: '
    'User "system:serviceaccount:ns:me" cannot get resource "secrets" in API group "" in the namespace "ns"'
)
LAUNCHER = "F1130 01:00:00.000001      1 main.go:59] failed to execute component: "


@pytest.mark.parametrize(
    ("message", "log", "what", "next_step"),
    [
        (
            BROKEN,
            f"{REFUSAL}{LAUNCHER}exit status 1",
            "town: no tiles\n  expected: some",
            "crossearth ingest town",
        ),
        (BROKEN, f"Traceback\nValueError: a: b\n{LAUNCHER}exit status 1", "ValueError: a: b", ""),
        (
            BROKEN,
            RIGHT,
            "the account me lacks a right: get secrets minio",
            "kubectl apply -k infra/kustomize",
        ),
        (
            BROKEN,
            f"Killed\n{LAUNCHER}exit status 137",
            "killed for memory (OOMKilled) at its limit of 300Mi",
            "raise",
        ),
        (
            BROKEN,
            "TrainJobError: TrainJob t failed; pod t-node-0-1-abcde was killed for memory (OOMKilled) at its "
            f"limit of 64Gi; pod t-node-0-0-abcde: Error (exit code 1)\n{LAUNCHER}exit status 1",
            "killed for memory (OOMKilled) at its limit of 64Gi",
            "raise steps.train.memory",
        ),
        (BROKEN, f"{LAUNCHER}exit status 143", "ended from outside (SIGTERM)", "submit again"),
        (BROKEN, f"{LAUNCHER}failed to upload: access denied", "Kubeflow's launcher: failed to upload", ""),
        (
            BROKEN,
            f"{LAUNCHER}exit status 1",
            f"a reason that is not known ({BROKEN}), its log has no error",
            "",
        ),
        (BROKEN, None, f"a reason that is not known ({BROKEN}), its log is gone", ""),
        ("pod deleted", None, "pod deleted", ""),
        ('pods "a" is forbidden: exceeded quota: q', None, "exceeded quota", ""),
        (
            "exec /argoexec: argument list too long",
            None,
            "longer than one argument may be",
            "submit fewer recipes",
        ),
        (
            "Pod was active on the node longer than the specified deadline",
            "error: interrupted\n",
            "stopped after its time, steps.train.timeout_s",
            "give it more",
        ),
    ],
)
def test_a_reason_is_what_the_record_and_the_log_say(
    message: str, log: str | None, what: str, next_step: str
) -> None:
    _, (reason,) = explain(read_run(None, failed(message)), lambda _: log)
    assert reason.steps == ("train town",)
    assert what in reason.what
    assert reason.next_step.startswith(next_step)
    assert bool(reason.next_step) == bool(next_step)


def test_equal_failures_are_one_reason_and_a_password_is_in_none() -> None:
    items = {"a": "0", "b": "1", "c": "2"}
    pods = [
        node(
            f"for-loop-2(0).iteration-iterations({index}:{index})(0).ingest(0).executor(0)",
            "Failed",
            message=BROKEN,
            pod_spec_patch=patch(name, "1Gi"),
        )
        for name, index in items.items()
    ]
    logs = {
        pod["id"]: f"error: s3://me:secret@x/{name}: no data here\n"
        for pod, name in zip(pods, items, strict=True)
    }
    record = read_run(None, workflow([node("", "Failed", "DAG"), *pods]))
    run, (reason, rest) = explain(record, lambda step: logs[step.node], most=2)
    assert str(reason) == "ingest a, b: s3://***@x/NAME: no data here"
    assert "secret" not in story(run, [reason])
    assert str(rest).startswith("ingest c: failed for a reason that is not known")
    assert str(rest).endswith("its log was not read")


def test_a_stopped_run_has_no_failed_step() -> None:
    nodes = [
        *around("Failed"),
        trained("Error", "pod deleted"),
        trained("Failed", "main: Error (exit code 143)", 1),
    ]
    record = workflow(nodes, "Failed", message="retry exceeded workflow deadline")
    run, reasons = explain(read_run({"state": "FAILED"}, record), lambda _: None)
    assert (run.state, reasons, run.of(FAILED)) == (KILLED, [], [])
    assert "stopped by a person in train town" in story(run, reasons)
    by_api = read_run({"state": "FAILED", "state_history": [{"state": "CANCELING"}]}, None)
    assert by_api.state == KILLED


def test_what_is_tried_again_runs() -> None:
    nodes = [*around("Running"), trained("Error", "pod deleted"), trained("Running", "", 1)]
    count = [{"name": "iteration-count", "value": "3"}]
    driver = node("for-loop-4(0).iteration-driver(0)", task='{"taskInfo":{"name":"recipes"}}') | {
        "outputs": {"parameters": count}
    }
    run, reasons = explain(read_run(None, workflow([*nodes, driver])), lambda _: None)
    assert (run.state, reasons) == (RUNNING, [])
    line = progress(run, None)
    assert line == "train town since 02:00:00 UTC (try 2, before: pod deleted); recipes 0 of 3 done"


def test_a_pod_that_finds_no_node_says_so() -> None:
    waiting = trained("Pending", "Unschedulable: 0/1 nodes are available")
    assert "(Unschedulable: 0/1 nodes are available)" in progress(
        read_run(None, workflow([*around("Running"), waiting])), None
    )


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cluster, str]]:
    monkeypatch.delenv("CROSSEARTH_KFP_TOKEN", raising=False)
    monkeypatch.setattr(watching, "PATIENCE_S", 0.5)
    run = {
        "run_id": "r-1",
        "display_name": "benchmark 1",
        "state": "FAILED",
        "created_at": "2026-11-30T02:00:00Z",
    }
    served = Cluster(run, failed())
    served.logs[served.workflow["status"]["nodes"].popitem()[0].rpartition("-")[2]] = REFUSAL  # type: ignore[index]
    served.workflow = failed()
    with serving(served) as host:
        yield served, host


def typed(*words: str) -> Any:
    return CliRunner().invoke(app, ["pipeline", *words])


def test_why_and_list_say_the_reason_with_the_end_of_the_log(cluster: tuple[Cluster, str]) -> None:
    served, host = cluster
    why = typed("why", "r-1", "--host", host)
    assert why.exit_code == 0, why.output
    assert "train town: town: no tiles" in why.output
    assert "  | error: town: no tiles" in why.output
    assert "train town: town: no tiles" in " ".join(typed("list", "--host", host).output.split())
    served.archived = True  # an hour after a run's end its pods are deleted
    assert "  | error: town: no tiles" in typed("why", "r-1", "--host", host).output
    served.logs.clear()
    assert "the log is gone" in typed("why", "r-1", "--host", host).output
    served.run["state_history"] = [{"state": "CANCELING"}]
    assert "CANCELED" in typed("list", "--host", host).output
    typed("stop", "r-1", "--host", host)
    assert served.posts == ["/apis/v2beta1/runs/r-1:terminate"]


def test_without_a_record_the_exit_handlers_log_says_that_a_person_stopped_the_run(
    cluster: tuple[Cluster, str],
) -> None:
    served, host = cluster
    served.older_api, served.archived = False, True
    moments = {"start_time": "2026-11-30T02:00:00Z", "end_time": "2026-11-30T02:01:00Z"}
    ended = [("train", "FAILED", 1), ("finish", "SUCCEEDED", 2)]
    served.run["run_details"] = {
        "task_details": [
            {"display_name": name, "state": state, "child_tasks": [{"pod_name": f"w-{pod}"}], **moments}
            for step, outcome, pod in ended
            for name, state in ((f"{step}-driver", "SUCCEEDED"), (step, outcome), ("executor", outcome))
        ]
    }
    served.logs = {"1": f"{LAUNCHER}exit status 1", "2": '{"pipeline_state": "FAILED"}'}
    assert "train: failed for a reason that is not known" in typed("why", "r-1", "--host", host).output
    served.logs["2"] = '{"pipeline_state": "KILLED"}'
    told = typed("why", "r-1", "--host", host).output
    assert "CANCELED" in told
    assert "stopped by a person in train" in told


def seen(host: str, terminal: bool = False) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200)
    run, reasons = watch(Api(host), "r-1", console, poll_s=0.01)
    return f"{text.getvalue()}{story(run, reasons)}"


def test_watching_outlives_a_gateway_that_is_busy_and_a_token_that_does_not(
    cluster: tuple[Cluster, str],
) -> None:
    served, host = cluster
    served.refusals["/apis/v2beta1/runs/"] = [503, 502]
    assert "train town: town: no tiles" in seen(host)
    assert not served.refusals["/apis/v2beta1/runs/"]
    served.refusals["/apis/v2beta1/runs/"] = [503] * 1000
    with pytest.raises(InputError, match="HTTP 503"):
        seen(host)
    served.refusals["/apis/v2beta1/runs/"] = [401]
    with pytest.raises(
        InputError, match=r"(?s)the run goes on.*the token is wrong or has expired.*pipeline why r-1"
    ):
        seen(host)


def test_watching_says_what_runs_once(cluster: tuple[Cluster, str], monkeypatch: pytest.MonkeyPatch) -> None:
    served, host = cluster
    served.run["state"], served.workflow = "RUNNING", workflow([*around("Running"), trained("Running")])
    polls = iter(range(4))

    def sleep(_: float) -> None:
        if next(polls) == 3:
            served.run["state"], served.workflow = "FAILED", failed()

    monkeypatch.setattr(watching, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: 0.0))
    assert seen(host).count("train town since 02:00:00 UTC\n") == 1


def test_an_exit_handler_needs_no_workspace(
    in_pod: Callable[[Cluster], SimpleNamespace], tmp_path: Path
) -> None:
    busy = {"/apis/argoproj.io/": [503, 502]}  # a busy API is asked again
    told = in_pod(Cluster(workflow=failed(OUT_OF_MEMORY), refusals=busy))
    finish.finish_pipeline(str(tmp_path / "absent"), "p", "", "RUNNING", "")
    assert (told.status, told.tags["failed_step"]) == ("FAILED", "train town")
    assert "limit of 300Mi" in told.tags["failure"]


def test_an_exit_handler_says_where_it_does_not_know(
    in_pod: Callable[[Cluster], SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = in_pod(Cluster(workflow=failed(), refusals={"/apis/argoproj.io/": [403] * 3}))
    finish.finish_pipeline(str(tmp_path), "p", "w", "RUNNING", "")
    assert (told.status, told.tags["pipeline_state"]) == ("FAILED", "UNKNOWN")
    assert "rbac.yaml grants `get workflows`" in told.tags["failure"]
    finish.finish_pipeline(str(tmp_path), "p", "w", "COMPLETE", "")
    assert (told.status, told.tags["pipeline_state"]) == ("FINISHED", "FINISHED")
    with pytest.raises(ValueError, match="no tiles"), workspace.step(str(tmp_path), "train", "town"):
        raise ValueError("no tiles")
    finish.finish_pipeline(str(tmp_path), "p", "w", "RUNNING", "")
    assert (told.status, told.tags["failure"]) == ("FAILED", "train town: no tiles")


def test_a_record_that_looks_otherwise_is_one_that_is_not_known(
    in_pod: Callable[[Cluster], SimpleNamespace], tmp_path: Path
) -> None:
    told = in_pod(Cluster(workflow={"metadata": {"name": "w"}, "status": {"nodes": {"a": {}}}}))
    finish.finish_pipeline(str(tmp_path / "absent"), "p", "w", "RUNNING", "")
    assert (told.status, told.tags["pipeline_state"]) == ("FAILED", "UNKNOWN")


def test_what_a_killed_step_left_running_in_mlflow_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = MlflowClient(f"sqlite:///{tmp_path}/artifacts/mlflow/mlflow.db")

    def runs() -> dict[str, Any]:
        experiment = client.get_experiment_by_name("crossearth")
        return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}

    for name in ("another", "town", "wood"):
        if name != "wood":  # another belongs to an earlier run in this workspace
            workspace.begin("{}", "[]")
        with start_run(name, key=name):
            pass
    for name in ("another", "town"):
        client.update_run(runs()[name].info.run_id, status="RUNNING")
    with pytest.raises(ValueError, match="no tiles"), workspace.step(str(tmp_path), "train", "town"):
        raise ValueError("no tiles")
    finish.finish_pipeline(str(tmp_path), "p", "w", "FAILED", "")
    ends = {name: run.info.status for name, run in runs().items()}
    assert ends == {"another": "RUNNING", "town": "FAILED", "wood": "FINISHED", "pipeline p": "FAILED"}
    assert runs()["town"].data.tags["failure"] == "train town: no tiles"


def test_a_namespace_that_the_server_would_ignore_is_refused(cluster: tuple[Cluster, str]) -> None:
    api = Api(cluster[1])
    with pytest.raises(InputError, match="leave it out"):
        api.expect_namespace("crossearth")
    api.has_users = True
    with pytest.raises(InputError, match="kubectl get profiles"):
        api.expect_namespace(None)
