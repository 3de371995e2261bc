"""TrainJobs through Kubeflow's SDK: against an API server that knows the schema, and as local processes."""

import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from http_server import Handler, Server

pytest.importorskip("kubeflow.trainer", reason="pip install -e '.[cluster]'")
pytest.importorskip("kubernetes_validate", reason="pip install -e '.[services]'")

from kubeflow.trainer import CustomTrainer, KubernetesBackendConfig, LocalProcessBackendConfig, TrainerClient
from kubernetes.client import Configuration
from manifest_schema import INFRA, check

from crossearth.components.pods import train_job
from crossearth.components.pods.train_job import (
    SECRETS,
    TrainJobConfig,
    TrainJobError,
    follow,
    run_train_job,
)
from crossearth.data.common.errors import InputError

RUNTIME = yaml.safe_load((INFRA / "kustomize/trainer/training-runtime.yaml").read_text())
NAMESPACE = "crossearth"
CONFIG = TrainJobConfig(
    image="crossearth",
    nodes=2,
    runtime="crossearth-torch",
    namespace=NAMESPACE,
    resources={"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": 1},
    environment={"OMP_NUM_THREADS": "4"},
    pod={
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "volumes": [{"name": "secret", "secret": {"secretName": "crossearth-s3"}}],
    },
    mounts=[{"name": "secret", "mountPath": str(SECRETS / "crossearth-s3")}],
    schedule_timeout_s=5,
    timeout_s=30,
)


def patches(job: Any) -> list[Any]:
    """The containers that a TrainJob patches."""
    jobs = [
        replicated
        for patch in job["spec"]["runtimePatches"]
        for replicated in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    ]
    return [each for job in jobs for each in job["template"]["spec"]["template"]["spec"]["containers"]]


class Api(Handler):
    """As much of Kubernetes' API as a TrainJob needs."""

    server: "Cluster"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if match := re.fullmatch(r".*/trainjobs/([\w-]+)", path):
            if self.server.away:
                self.server.away -= 1
                self.answer(503, {"message": "restarting"})
                return
            if self.server.leaving:
                self.server.leaving -= 1
                job = self.server.jobs[match[1]] if self.server.leaving else self.server.jobs.pop(match[1])
                return self.answer(200, job)
            job = self.server.jobs.get(match[1])
            self.answer(200, self.server.seen(job)) if job else self.answer(404, {"message": "not found"})
        elif path.endswith("/trainjobs"):
            jobs = [self.server.seen(job) for job in self.server.jobs.values()]
            self.answer(200, {"items": jobs, "metadata": {}})
        elif path.endswith(f"/trainingruntimes/{RUNTIME['metadata']['name']}"):
            self.answer(200, RUNTIME)
        elif path.endswith("/pods"):
            self.answer(200, {"items": self.server.pods(), "metadata": {}})
        elif match := re.fullmatch(r".*/pods/([\w-]+)", path):
            pods = {pod["metadata"]["name"]: pod for pod in self.server.pods()}
            self.answer(200, pods[match[1]])
        elif path.endswith("/log"):
            self.answer(200, "epoch 1\nout of tiles\n", "text/plain")
        elif path.endswith("/events"):
            self.answer(200, {"items": [EVENT], "metadata": {}})
        else:
            self.answer(403 if self.server.hidden else 404, {"message": "not found"})

    def do_POST(self) -> None:
        assert not self.server.leaving, "Kubeflow Trainer would take the old JobSet's state for the new job's"
        job = self.sent()
        check(job)
        # what the schema does not say and Kubeflow Trainer's webhook does
        patched = [each for each in patches(job) if each["name"] == "node"]
        assert not any("env" in container for container in patched)
        job["metadata"] |= {"namespace": NAMESPACE, "creationTimestamp": datetime.now(UTC).isoformat()}
        self.server.jobs[job["metadata"]["name"]] = job
        self.server.created.append(job)
        self.answer(201, job)

    def do_DELETE(self) -> None:
        name = self.path.split("?")[0].rsplit("/", 1)[1]
        there = name in self.server.jobs
        if self.server.leaving and "propagationPolicy=Foreground" in self.path:
            return self.answer(200, {})  # as long as its pods are there
        self.server.jobs.pop(name, None)
        self.answer(200 if there else 404, {})


EVENT = {
    "metadata": {"name": "e", "namespace": NAMESPACE},
    "involvedObject": {"kind": "TrainJob", "name": "crossearth-train-x"},
    "reason": "FailedScheduling",
    "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    "firstTimestamp": "2026-01-01T00:00:00Z",
}


LATE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient cpu.",
}


def killed(reason: str) -> Any:
    ended = {"reason": reason, "exitCode": 137}
    ready = {"ready": False, "restartCount": 0, "image": "crossearth", "imageID": ""}
    return {"name": "node", "state": {"terminated": ended}, **ready}


class Cluster(Server):
    """A cluster on which every TrainJob ends as `end` says, after it was looked at a few times."""

    def __init__(self) -> None:
        super().__init__(Api)
        self.end = "Complete"
        self.phases = ["Running", "Running"]  # of the two nodes' pods
        self.jobs: dict[str, Any] = {}
        self.created: list[Any] = []
        self.looks = 0
        self.away = 0
        self.hidden = False  # whether what lies outside of the namespace may not be read
        self.leaving = 0  # looks at a job that is deleted until its pods have ended
        self.killed = "OOMKilled"  # why a node's container failed

    def seen(self, job: Any) -> Any:
        self.looks += 1
        if self.end and self.looks > 4:
            condition = {
                "type": self.end,
                "status": "True",
                "reason": "Ended",
                "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            return {**job, "status": {"conditions": [condition]}}
        return job

    def pods(self) -> list[Any]:
        return [
            {
                "metadata": {
                    "name": f"node-0-{index}",
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                    "labels": {
                        "jobset.sigs.k8s.io/replicatedjob-name": "node",
                        "batch.kubernetes.io/job-completion-index": str(index),
                    },
                },
                "spec": {
                    "containers": [
                        {
                            "name": "node",
                            "image": "crossearth",
                            "resources": {"limits": {"cpu": "2", "memory": "4Gi"}},
                        }
                    ]
                },
                "status": {
                    "phase": phase,
                    "containerStatuses": [killed(self.killed)] if phase == "Failed" else [],
                    "conditions": [LATE] if phase == "Pending" else [],
                },
            }
            for index, phase in enumerate(self.phases)
        ]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(train_job, "POLL_SECONDS", 0.05)
    with Cluster() as running:
        yield running


@pytest.fixture
def client(cluster: Cluster) -> TrainerClient:
    configuration = Configuration(host=cluster.address)
    return TrainerClient(KubernetesBackendConfig(namespace=NAMESPACE, client_configuration=configuration))


@pytest.fixture
def train(client: TrainerClient, tmp_path: Path) -> Callable[..., None]:
    def run(config: TrainJobConfig = CONFIG) -> None:
        run_train_job("crossearth-train-x", ["train", "x"], str(tmp_path), config, client)

    return run


def test_a_train_job_is_created_followed_and_taken_away(
    train: Callable[..., None],
    cluster: Cluster,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(variable, f"the plugin's {variable}")
    # the server of the plugin's runs goes before that of the values file
    train(TrainJobConfig(**{**vars(CONFIG), "environment": {"MLFLOW_TRACKING_URI": "http://ours:5000"}}))
    (job,) = cluster.created
    trainer = job["spec"]["trainer"]
    given = {each["name"]: each["value"] for each in trainer["env"]}
    assert given["MLFLOW_RUN_ID"] == "the plugin's MLFLOW_RUN_ID"
    assert given["MLFLOW_EXPERIMENT_ID"] == "the plugin's MLFLOW_EXPERIMENT_ID"
    assert given["MLFLOW_TRACKING_URI"] == "the plugin's MLFLOW_TRACKING_URI"
    assert job["spec"]["runtimeRef"]["name"] == "crossearth-torch"
    assert (trainer["numNodes"], trainer["image"]) == (2, "crossearth")
    assert trainer["resourcesPerNode"]["requests"] == {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": 1}
    assert {"name": "CROSSEARTH_ARGUMENTS", "value": '["train", "x"]'} in trainer["env"]
    assert "torchrun --nproc-per-node=1 " in " ".join(trainer["command"])
    assert job["spec"]["activeDeadlineSeconds"] == 30
    assert "crossearth-s3" in json.dumps(job["spec"]["runtimePatches"])
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert node["template"]["spec"]["template"]["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
    assert not cluster.jobs


def test_a_failed_job_is_a_failure_with_its_last_lines(train: Callable[..., None], cluster: Cluster) -> None:
    cluster.end = "Failed"
    with pytest.raises(TrainJobError, match=r"(?s)failed.*out of tiles"):
        train()
    assert not cluster.jobs


def test_a_node_that_is_killed_for_memory_is_named_with_its_limit(
    train: Callable[..., None], cluster: Cluster
) -> None:
    cluster.end, cluster.phases = "Failed", ["Running", "Failed"]
    with pytest.raises(
        TrainJobError, match=r"pod node-0-1 was killed for memory \(OOMKilled\) at its limit of 4Gi\n"
    ):
        train()
    cluster.killed = "Error"
    with pytest.raises(TrainJobError, match=r"failed; pod node-0-1: Error \(exit code 137\)\n"):
        train()


def test_a_job_that_is_never_scheduled_ends_with_the_words_of_the_events(
    train: Callable[..., None], cluster: Cluster
) -> None:
    cluster.end, cluster.phases = "", ["Pending", "Pending"]
    words = r"(?s)not all pods ran.*waiting for 2 of 2 pods.*Insufficient cpu.*Insufficient nvidia.com/gpu"
    with pytest.raises(TrainJobError, match=words):
        train(TrainJobConfig(**{**vars(CONFIG), "schedule_timeout_s": 0.3}))
    assert not cluster.jobs


def test_a_pod_that_finds_no_room_while_the_first_one_runs_is_said(
    train: Callable[..., None], cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.phases, cluster.end = ["Running", "Pending"], "Failed"
    line = "waiting for 1 of 2 pods: 0/3 nodes are available: 3 Insufficient cpu."
    with pytest.raises(TrainJobError, match=f"(?s)failed; it was {line}.*out of tiles"):
        train()
    assert capfd.readouterr().out.count(line) == 1
    cluster.end = ""
    with pytest.raises(TrainJobError, match=f"not all pods ran within 0 s: {line}"):
        train(TrainJobConfig(**{**vars(CONFIG), "schedule_timeout_s": 0.3}))


def test_a_node_starts_as_many_processes_as_it_has_gpus(train: Callable[..., None], cluster: Cluster) -> None:
    train(TrainJobConfig(**{**vars(CONFIG), "processes": 4}))
    (job,) = cluster.created
    assert "torchrun --nproc-per-node=4 " in " ".join(job["spec"]["trainer"]["command"])


def test_a_broken_job_of_somebody_else_is_left_alone(train: Callable[..., None], cluster: Cluster) -> None:
    cluster.jobs["theirs"] = {"metadata": {"name": "theirs", "namespace": NAMESPACE}, "spec": {}}
    train()
    assert list(cluster.jobs) == ["theirs"]


def test_a_job_that_is_too_slow_is_stopped(train: Callable[..., None], cluster: Cluster) -> None:
    cluster.end = ""
    with pytest.raises(TrainJobError, match="not finished within"):
        train(TrainJobConfig(**{**vars(CONFIG), "timeout_s": 0.3}))
    assert not cluster.jobs


STEP = """
import sys
from kubeflow.trainer import KubernetesBackendConfig, TrainerClient
from kubernetes.client import Configuration
from crossearth.components.pods.train_job import TrainJobConfig, run_train_job
from crossearth.components.pods.workspace import step
host, workspace = sys.argv[1:]
backend = KubernetesBackendConfig(namespace="crossearth", client_configuration=Configuration(host=host))
config = TrainJobConfig(image="crossearth", nodes=2, runtime="crossearth-torch")
with step(workspace, "train", "x"):
    run_train_job("crossearth-train-x", ["train", "x"], workspace, config, TrainerClient(backend))
"""


def test_a_pipeline_that_is_stopped_leaves_no_job(cluster: Cluster, tmp_path: Path) -> None:
    cluster.end = ""
    command = [sys.executable, "-c", STEP, f"http://127.0.0.1:{cluster.server_address[1]}", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as step:
        while not cluster.looks:
            assert step.poll() is None, step.stderr.read() if step.stderr else ""
            time.sleep(0.1)
        assert cluster.jobs
        step.terminate()
        assert step.wait(30) == 143
    assert not cluster.jobs
    assert json.loads((tmp_path / "artifacts/run/failures/train-x.json").read_text())["item"] == "x"


def test_nodes_leave_when_nobody_follows_them(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path;"
        "from crossearth.components.pods import train_job as job;"
        "job.threading.Thread(target=job._leave_without, args=(Path(sys.argv[1]), 5.0), daemon=True).start();"
        "print('works', flush=True); time.sleep(60)"
    )
    lease = tmp_path / "lease"
    lease.touch()
    with subprocess.Popen(
        [sys.executable, "-c", program, str(lease)], stdout=subprocess.PIPE, text=True
    ) as node:
        assert node.stdout and node.stdout.readline() == "works\n"
        for _ in range(35):
            lease.touch()
            time.sleep(0.2)
        assert node.poll() is None, "it is followed"
        out, _ = node.communicate(timeout=30)
    assert node.returncode == 1
    assert "nobody follows" in out


def test_a_node_finds_the_secrets_as_variables_and_works_in_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as Kubernetes lays a Secret out
    (tmp_path / "crossearth-s3/..2026").mkdir(parents=True)
    (tmp_path / "crossearth-s3/..2026/AWS_ACCESS_KEY_ID").write_text("an id\n")
    (tmp_path / "crossearth-s3/..data").symlink_to("..2026")
    (tmp_path / "crossearth-s3/AWS_ACCESS_KEY_ID").symlink_to("..data/AWS_ACCESS_KEY_ID")
    seen = {}

    def main() -> None:
        seen.update(key=os.environ["AWS_ACCESS_KEY_ID"], folder=Path.cwd(), arguments=sys.argv[1:])

    monkeypatch.setattr("crossearth.pipelines.cli.main", main)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.chdir("/")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "")
    monkeypatch.setenv("CROSSEARTH_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("CROSSEARTH_ARGUMENTS", '["train", "x"]')
    train_job.work(tmp_path)
    assert seen == {"key": "an id", "folder": tmp_path, "arguments": ["train", "x"]}


def test_a_server_that_restarts_costs_no_training(train: Callable[..., None], cluster: Cluster) -> None:
    cluster.away = 3
    train()
    assert cluster.away == 0


def test_a_leftover_of_a_killed_try_is_replaced(train: Callable[..., None], cluster: Cluster) -> None:
    leftover = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {
            "name": "crossearth-train-x",
            "namespace": NAMESPACE,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"runtimeRef": {"name": "crossearth-torch"}},
    }
    cluster.jobs["crossearth-train-x"], cluster.leaving = leftover, 3
    train()
    assert len(cluster.created) == 1
    assert not cluster.jobs
    cluster.jobs["crossearth-train-x"], cluster.leaving = leftover, 1000
    with pytest.raises(TrainJobError, match="pods of an earlier try have not ended in 0 s"):
        train(TrainJobConfig(**{**vars(CONFIG), "schedule_timeout_s": 0.1}))
    assert len(cluster.created) == 1


def test_an_absent_runtime_is_said_before_anything_is_created(
    train: Callable[..., None], cluster: Cluster
) -> None:
    with pytest.raises(InputError, match="no training runtime 'other'"):
        train(TrainJobConfig(**{**vars(CONFIG), "runtime": "other"}))
    cluster.hidden = True
    with pytest.raises(InputError, match="may not read the training runtime 'other'"):
        train(TrainJobConfig(**{**vars(CONFIG), "runtime": "other"}))
    assert not cluster.created


def host_python(folder: Path) -> str:
    """A requirement named torch that brings nothing but torchrun and a way to this environment's packages.

    The SDK's local backend makes an empty virtual environment and installs torch into it.
    """
    wheel = folder / "torch-0.0.1-py3-none-any.whl"
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    metadata = "torch-0.0.1.dist-info"
    files = {
        "hostpackages.pth": f"import site; site.addsitedir({packages!r})\n",
        "hostlauncher.py": "from torch.distributed.run import main\n",
        f"{metadata}/entry_points.txt": "[console_scripts]\ntorchrun = hostlauncher:main\n",
        f"{metadata}/METADATA": "Metadata-Version: 2.1\nName: torch\nVersion: 0.0.1\n",
        f"{metadata}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{metadata}/RECORD"] = "".join(f"{name},,\n" for name in files) + f"{metadata}/RECORD,,\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return f"torch @ {wheel.as_uri()}"


@pytest.fixture
def local_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainerClient:
    monkeypatch.setattr(train_job, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(
        "kubeflow.trainer.CustomTrainer", partial(CustomTrainer, packages_to_install=[host_python(tmp_path)])
    )
    return TrainerClient(LocalProcessBackendConfig())


def local_config(tmp_path: Path) -> TrainJobConfig:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    return TrainJobConfig(image="local", nodes=1, environment=environment)


def test_the_same_call_runs_as_local_processes(local_client: TrainerClient, tmp_path: Path) -> None:
    work = tmp_path / "workspace"
    work.mkdir()
    run_train_job("local-plan", ["plan"], str(work), local_config(tmp_path), local_client)
    assert (work / "artifacts/plan/train/deepglobe.json").is_file()


def test_a_local_job_that_fails_is_a_failure(local_client: TrainerClient, tmp_path: Path) -> None:
    with pytest.raises(TrainJobError, match=r"(?s)failed.*unknown recipe"):
        run_train_job("local-fail", ["train", "nowhere"], str(tmp_path), local_config(tmp_path), local_client)


def test_following_prints_the_log(
    client: TrainerClient, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.jobs["j"] = {
        "metadata": {"name": "j", "namespace": NAMESPACE, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"runtimeRef": {"name": "crossearth-torch"}, "trainer": {"numNodes": 2}},
    }
    follow(client, "j", 5, 5)
    assert "out of tiles" in capsys.readouterr().out
