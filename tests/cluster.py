"""A server that answers as Kubeflow's and Kubernetes' APIs do, with runs that a test gives it."""

import base64
import gzip
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from http_server import Handler, Server

Json = dict[str, Any]
NAMESPACE = "kubeflow"
OWN_POD = "the-exit-handlers-pod"
GONE = {"error_message": "BadRequestError: Failed to read logs"}


@dataclass
class Cluster:
    """What is answered.

    Attributes:
        run: of Kubeflow's API.
        workflow: Argo's record of it.
        older_api: whether Kubeflow hands the record out.
        logs: last part of a node's id -> its log.
        archived: whether the pods are gone and Argo has put their logs into the object store.
        refusals: beginning of a path -> HTTP statuses that are answered first, one after the other.
    """

    run: Json = field(default_factory=dict)
    workflow: Json | None = None
    older_api: bool = True
    logs: dict[str, str] = field(default_factory=dict)
    archived: bool = False
    refusals: dict[str, list[int]] = field(default_factory=dict)
    posts: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, Any]:
        for beginning, codes in self.refusals.items():
            if path.startswith(beginning) and codes:
                return codes.pop(0), {"error": "refused"}
        if path.startswith("/apis/v2beta1/healthz"):
            return 200, {"multi_user": False}
        if path.startswith("/apis/v2beta1/runs?"):
            return 200, {"runs": [self.run]}
        if found := re.search(r"/nodes/[\w-]+?-(\d+)/artifacts/main-logs:read$", path):
            text = self.logs.get(found[1]) if self.archived else None
            data = base64.b64encode((text or "").encode()).decode()
            return (404, GONE) if text is None else (200, {"data": data})
        if path.startswith("/apis/v2beta1/runs/"):
            return 200, self.run
        if path.startswith("/apis/v1beta1/runs/") and self.older_api and self.workflow:
            return 200, {"pipeline_runtime": {"workflow_manifest": json.dumps(self.workflow)}}
        if found := re.search(r"/(?:nodes|pods)/([^/]+)/log(?:\?|$)", path):
            text = None if self.archived else self.logs.get(self._pods().get(found[1], ""))
            return (200, text) if text is not None else (404 if "/pods/" in path else 500, GONE)
        if found := re.search(r"/namespaces/(\w+)/workflows/([^/?]+)$", path):
            known = self.workflow and found.groups() == (NAMESPACE, self.workflow["metadata"]["name"])
            return (200, self.workflow) if known else (404, {})
        if path.endswith(f"/namespaces/{NAMESPACE}/pods/{OWN_POD}") and self.workflow:
            return 200, {
                "metadata": {"labels": {"workflows.argoproj.io/workflow": self.workflow["metadata"]["name"]}}
            }
        return 404, {"error": "not found"}

    def _pods(self) -> dict[str, str]:
        """Names of the pods -> the last part of their nodes' ids."""
        if not self.workflow:
            return {}
        status, name = self.workflow["status"], self.workflow["metadata"]["name"]
        packed = status.get("compressedNodes")
        nodes = json.loads(gzip.decompress(base64.b64decode(packed))) if packed else status["nodes"]
        numbers = {id_: id_.rpartition("-")[2] for id_ in nodes}
        return {f"{name}-{nodes[id_]['templateName']}-{number}": number for id_, number in numbers.items()}


class _Handler(Handler):
    server: "_Server"

    def do_GET(self) -> None:
        code, body = self.server.cluster.answer(self.path)
        self.answer(code, body, "text/plain" if isinstance(body, str) else "application/json")

    def do_POST(self) -> None:
        self.server.cluster.posts.append(self.path)
        self.do_GET()


class _Server(Server):
    def __init__(self, cluster: Cluster) -> None:
        super().__init__(_Handler)
        self.cluster = cluster


@contextmanager
def serving(cluster: Cluster) -> Iterator[str]:
    """The address of a server that answers for the cluster."""
    with _Server(cluster) as server:
        yield server.address


def recorded(folder: Path, name: str) -> Cluster:
    """A run that was recorded from a real control plane."""
    workflow = folder / f"{name}.workflow.json"
    logs = {}
    for path in folder.glob(f"{name}.*.log"):
        text = path.read_text()
        if not text.startswith('{"error_message"'):
            logs[path.name.split(".")[-2].lstrip("-")] = text
    return Cluster(
        json.loads((folder / f"{name}.run.json").read_text()),
        json.loads(workflow.read_text()) if workflow.exists() else None,
        logs=logs,
    )


def workflow(nodes: list[Json], phase: str = "Running", compressed: bool = False, **status: Any) -> Json:
    """A Workflow `w` with these nodes; see `node`."""
    by_id = {each["id"]: each for each in nodes}
    packed = base64.b64encode(gzip.compress(json.dumps(by_id).encode())).decode()
    stored = {"compressedNodes": packed} if compressed else {"nodes": by_id}
    return {"metadata": {"name": "w"}, "status": {"phase": phase, **stored, **status}}


def node(path: str, phase: str = "Succeeded", kind: str = "Pod", message: str = "", **more: Any) -> Json:
    """A node below the exit handler's body, or the body itself for ""; `patch` is the pod's, as JSON."""
    name = ".".join(part for part in ("w(0).root(0).exit-handler-1(0)", path) if part)
    parameters = [{"name": key.replace("_", "-"), "value": value} for key, value in more.items()]
    return {
        "id": f"w-{abs(hash(name)) % 10**9}",
        "name": name,
        "displayName": name.rpartition(".")[2],
        "templateName": "system-container-impl",
        "type": kind,
        "phase": phase,
        "message": message,
        "startedAt": "2026-11-30T02:00:00Z",
        "finishedAt": None if phase in ("Running", "Pending") else "2026-11-30T02:01:00Z",
        "inputs": {"parameters": parameters},
    }


def patch(item: str, memory: str) -> str:
    """What Kubeflow's driver writes about a step's pod."""
    given = json.dumps({"inputs": {"parameterValues": {"item": {"name": item}}}})
    container = {
        "name": "main",
        "command": ["/kfp-launcher/launch", "--executor_input", given],
        "resources": {"limits": {"memory": memory}},
    }
    return json.dumps({"containers": [container]})
