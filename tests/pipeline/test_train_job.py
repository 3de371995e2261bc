"""TrainJobs through Kubeflow's SDK: against an API server that knows the schema, and as local processes."""

import io
import json
import re
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("kubeflow.trainer", reason="pip install -e '.[cluster]'")
pytest.importorskip("kubernetes_validate", reason="pip install -e '.[services]'")

from kubeflow.trainer import KubernetesBackendConfig, LocalProcessBackendConfig, TrainerClient
from kubernetes.client import Configuration
from manifest_schema import INFRA, check

from crossearth.components import train_job
from crossearth.components.train_job import TrainJobConfig, TrainJobError, follow, run_train_job
from crossearth.data.errors import InputError

RUNTIME = yaml.safe_load((INFRA / "kustomize" / "training-runtime.yaml").read_text())
NAMESPACE = "crossearth"
CONFIG = TrainJobConfig(
    image="crossearth",
    nodes=2,
    runtime="crossearth-torch",
    namespace=NAMESPACE,
    resources={"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": 1},
    pod={"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]},
    container={
        "env": [
            {
                "name": "AWS_ACCESS_KEY_ID",
                "valueFrom": {"secretKeyRef": {"name": "crossearth-s3", "key": "id"}},
            }
        ]
    },
    schedule_timeout_s=5,
    timeout_s=30,
)


class Api(BaseHTTPRequestHandler):
    """As much of Kubernetes' API as a TrainJob needs."""

    server: "Cluster"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if match := re.fullmatch(r".*/trainjobs/([\w-]+)", path):
            job = self.server.jobs.get(match[1])
            self.answer(200, self.server.seen(job)) if job else self.answer(404, {"message": "not found"})
        elif path.endswith("/trainjobs"):
            jobs = [self.server.seen(job) for job in self.server.jobs.values()]
            self.answer(200, {"items": jobs, "metadata": {}})
        elif path.endswith(f"/trainingruntimes/{RUNTIME['metadata']['name']}"):
            self.answer(200, RUNTIME)
        elif path.endswith("/pods"):
            self.answer(200, {"items": self.server.pods(), "metadata": {}})
        elif path.endswith("/log"):
            self.answer(200, "epoch 1\nout of tiles\n", "text/plain")
        elif path.endswith("/events"):
            self.answer(200, {"items": [EVENT], "metadata": {}})
        else:
            self.answer(404, {"message": "not found"})

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        check(job)
        job["metadata"] |= {"namespace": NAMESPACE, "creationTimestamp": datetime.now(UTC).isoformat()}
        self.server.jobs[job["metadata"]["name"]] = job
        self.server.created.append(job)
        self.answer(201, job)

    def do_DELETE(self) -> None:
        self.server.jobs.pop(self.path.split("?")[0].rsplit("/", 1)[1])
        self.answer(200, {})

    def answer(self, code: int, body: Any, kind: str = "application/json") -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


EVENT = {
    "metadata": {"name": "e", "namespace": NAMESPACE},
    "involvedObject": {"kind": "TrainJob", "name": "crossearth-train-x"},
    "reason": "FailedScheduling",
    "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    "firstTimestamp": "2026-01-01T00:00:00Z",
}


class Cluster(ThreadingHTTPServer):
    """A cluster on which every TrainJob ends as `end` says, after it was looked at a few times."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Api)
        self.end = "Complete"
        self.phase = "Running"
        self.jobs: dict[str, Any] = {}
        self.created: list[Any] = []
        self.looks = 0

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
                "spec": {"containers": [{"name": "node", "image": "crossearth"}]},
                "status": {"phase": self.phase},
            }
            for index in range(2)
        ]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(train_job, "POLL_SECONDS", 0.05)
    with Cluster() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def client(cluster: Cluster) -> TrainerClient:
    configuration = Configuration(host=f"http://127.0.0.1:{cluster.server_address[1]}")
    return TrainerClient(KubernetesBackendConfig(namespace=NAMESPACE, client_configuration=configuration))


def train(client: TrainerClient, config: TrainJobConfig = CONFIG) -> None:
    run_train_job(
        "crossearth-train-x", ["train", "x"], "/workspace", config, {"OMP_NUM_THREADS": "4"}, client
    )


def test_a_train_job_is_created_followed_and_taken_away(
    client: TrainerClient, cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    train(client)
    (job,) = cluster.created
    trainer = job["spec"]["trainer"]
    assert job["spec"]["runtimeRef"]["name"] == "crossearth-torch"
    assert (trainer["numNodes"], trainer["image"]) == (2, "crossearth")
    assert trainer["resourcesPerNode"]["requests"] == {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": 1}
    assert {"name": "CROSSEARTH_ARGUMENTS", "value": '["train", "x"]'} in trainer["env"]
    assert "torchrun" in " ".join(trainer["command"])
    assert job["spec"]["activeDeadlineSeconds"] == 30
    assert "crossearth-s3" in json.dumps(job["spec"]["runtimePatches"])
    assert not cluster.jobs


def test_a_failed_job_is_a_failure_with_its_last_lines(client: TrainerClient, cluster: Cluster) -> None:
    cluster.end = "Failed"
    with pytest.raises(TrainJobError, match=r"(?s)failed.*out of tiles"):
        train(client)
    assert not cluster.jobs


def test_a_job_that_is_never_scheduled_ends_with_the_words_of_the_events(
    client: TrainerClient, cluster: Cluster
) -> None:
    cluster.end, cluster.phase = "", "Pending"
    with pytest.raises(TrainJobError, match=r"(?s)no pod ran.*Insufficient nvidia.com/gpu"):
        train(client, TrainJobConfig(**{**vars(CONFIG), "schedule_timeout_s": 0.3}))
    assert not cluster.jobs


def test_a_job_that_is_too_slow_is_stopped(client: TrainerClient, cluster: Cluster) -> None:
    cluster.end = ""
    with pytest.raises(TrainJobError, match="not finished within"):
        train(client, TrainJobConfig(**{**vars(CONFIG), "timeout_s": 0.3}))
    assert not cluster.jobs


def test_a_pipeline_that_is_stopped_leaves_no_job(
    client: TrainerClient, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.end = ""

    def stop(*_: Any) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(time, "sleep", stop)
    with pytest.raises(SystemExit):
        train(client)
    assert cluster.created
    assert not cluster.jobs


def test_a_leftover_of_a_killed_try_is_replaced(client: TrainerClient, cluster: Cluster) -> None:
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
    cluster.jobs["crossearth-train-x"] = leftover
    train(client)
    assert len(cluster.created) == 1
    assert not cluster.jobs


def test_an_absent_runtime_is_said_before_anything_is_created(
    client: TrainerClient, cluster: Cluster
) -> None:
    with pytest.raises(InputError, match="no training runtime 'other'"):
        train(client, TrainJobConfig(**{**vars(CONFIG), "runtime": "other"}))
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
    return TrainerClient(LocalProcessBackendConfig())


def local_config(tmp_path: Path) -> TrainJobConfig:
    return TrainJobConfig(image="local", nodes=1, packages=(host_python(tmp_path),))


def test_the_same_call_runs_as_local_processes(local_client: TrainerClient, tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    work = tmp_path / "workspace"
    work.mkdir()
    run_train_job("local-plan", ["plan"], str(work), local_config(tmp_path), environment, local_client)
    assert (work / "artifacts/plan/train/deepglobe.json").is_file()


def test_a_local_job_that_fails_is_a_failure(local_client: TrainerClient, tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    with pytest.raises(TrainJobError, match=r"(?s)failed.*unknown recipe"):
        run_train_job(
            "local-fail",
            ["train", "nowhere"],
            str(tmp_path),
            local_config(tmp_path),
            environment,
            local_client,
        )


def test_following_prints_the_log(client: TrainerClient, cluster: Cluster) -> None:
    cluster.jobs["j"] = {
        "metadata": {"name": "j", "namespace": NAMESPACE, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"runtimeRef": {"name": "crossearth-torch"}, "trainer": {"numNodes": 2}},
    }
    log = io.StringIO()
    follow(client, "j", 5, 5, log, poll_s=0.05)
    assert "out of tiles" in log.getvalue()
