"""Training on several nodes: a TrainJob of Kubeflow Trainer, followed to its end and taken away."""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import field
from http import HTTPStatus
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossearth.components.runtime.tracking import EXPERIMENT, PARENT_RUN
from crossearth.data.common.config import checked
from crossearth.data.common.errors import InputError

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient

POLL_SECONDS = 5.0
NODE = "node"
LAST_LINES = 100  # of a log, that an error holds
# Secrets' keys lie here under the names of their variables: Kubeflow Trainer lets no TrainJob patch the
# environment of its nodes, and the SDK knows plain values alone
SECRETS = Path("/var/run/crossearth")
FOLLOWERS = Path("artifacts/run/followers")
LEASE_S = 300.0  # without its follower a node works so long
PATIENCE_S = 300.0  # and the follower waits so long for a cluster that does not answer
RUNNING, COMPLETE, FAILED = "Running", "Complete", "Failed"
STARTED = (RUNNING, COMPLETE, FAILED, "Succeeded")  # of a pod: it has found its room
# Istio's sidecar, which Profiles inject, would end with no job and let no node meet another
POD_LABELS = {"app.kubernetes.io/name": "crossearth-node", "sidecar.istio.io/inject": "false"}
# what JobSet makes of a TrainJob's name, NAME-node-0-INDEX-abcde, is a DNS label of 63 characters at most
LONGEST_NAME = 46


@checked
class TrainJobConfig:
    """The pods of a TrainJob.

    Attributes:
        image: container image of every node.
        nodes: number of pods.
        runtime: name of the (Cluster)TrainingRuntime.
        namespace: where the TrainJob is created; none = the pod's own namespace.
        resources: what each pod asks for, e.g. {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": 4}.
        environment: plain variables of every node; secrets are files below `SECRETS`, see `mounts`.
        pod: further fields of the pod's spec: volumes, tolerations, node_selector, ...
        processes: of each pod.
        mounts: where the volumes are mounted, as in a container's `volumeMounts`.
        schedule_timeout_s: seconds until all pods must run.
        timeout_s: seconds until the job must have ended, from when it is made.
    """

    image: str
    nodes: int
    processes: int = 1
    runtime: str = "torch-distributed"
    namespace: str | None = None
    resources: dict[str, str | int] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    pod: dict[str, Any] = field(default_factory=dict)
    mounts: list[dict[str, Any]] = field(default_factory=list)
    schedule_timeout_s: float = 1800
    timeout_s: float = 7 * 24 * 3600


# what Kubeflow Pipelines' MLflow plugin gives the step's pod and no pod of a TrainJob; its server goes before
# that of the values file, in the step's pod too
FROM_PLUGIN = ("MLFLOW_TRACKING_URI", "MLFLOW_WORKSPACE", "MLFLOW_TRACKING_AUTH", PARENT_RUN, EXPERIMENT)


class TrainJobError(RuntimeError):
    """The TrainJob failed, was never scheduled or was too slow; the message has its events and last lines."""


def run_train_job(
    name: str,
    arguments: Sequence[str],
    workspace: str,
    config: TrainJobConfig,
    client: "TrainerClient | None" = None,
) -> None:
    """Runs `crossearth ARGUMENTS` on every node of a TrainJob, prints its log and waits for its end.

    The job is deleted whatever happens here. If this process is killed so hard that it cannot, the nodes
    leave by themselves: they work only as long as a file of the workspace is touched here.

    Args:
        name: of the TrainJob; one of this name that an earlier, killed try left is deleted first.
        arguments: of the command line, the same on every node; rank and address come from the runtime.
        workspace: working folder here and on every node, the mount of the shared volume.
        client: of Kubeflow Trainer; by default the cluster that this pod runs in.

    Raises:
        TrainJobError: failed, its pods never ran together, or too slow.
        InputError: the cluster has no such runtime.
    """
    from kubeflow.common.types import KubernetesBackendConfig
    from kubeflow.trainer import CustomTrainer, TrainerClient
    from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend
    from kubeflow.trainer.options import ActiveDeadlineSeconds, Labels, Name

    client = client or TrainerClient(KubernetesBackendConfig(namespace=config.namespace))
    options: list[Any] = [Name(name)]
    environment = _environment(config, arguments, workspace)
    environment |= {name: os.environ[name] for name in FROM_PLUGIN if name in os.environ}
    lease: Path | None = None
    if isinstance(client.backend, KubernetesBackend):
        options += [
            Labels({"app.kubernetes.io/name": "crossearth"}),
            ActiveDeadlineSeconds(math.ceil(config.timeout_s)),
            _pod_patch(config),
        ]
        lease = Path(workspace) / FOLLOWERS / name
        environment["CROSSEARTH_LEASE"] = str(lease)
    trainer = CustomTrainer(
        func=_node,
        image=config.image,
        num_nodes=config.nodes,
        resources_per_node=dict(config.resources) or None,
        env=environment,
    )
    runtime = _runtime(client, config.runtime)
    if isinstance(client.backend, KubernetesBackend):
        # left alone, Kubeflow Trainer starts a process a core where a pod has no GPU
        torchrun = f"torchrun --nproc-per-node={config.processes} "
        command = (part.replace("torchrun ", torchrun) for part in runtime.trainer.command)
        runtime.trainer.set_command(tuple(command))
    _delete(client, name)
    _expect_gone(client, name, config.schedule_timeout_s)
    try:
        if lease:
            lease.parent.mkdir(parents=True, exist_ok=True)
            lease.touch()
        client.train(runtime=runtime, trainer=trainer, options=options)
        follow(client, name, config.schedule_timeout_s, config.timeout_s, lease)
    finally:
        _delete(client, name)
        if lease:
            lease.unlink(missing_ok=True)


def _node() -> None:
    """What torchrun starts on every node; Kubeflow's SDK ships this source alone, hence the import in it."""
    from crossearth.components.pods.train_job import work

    work()


def work(secrets: Path = SECRETS) -> None:
    """A node's part of the job: its command in the workspace, with the secrets as variables."""
    (script,) = entry_points(group="console_scripts", name="crossearth")
    for file in secrets.glob("*/*"):
        if file.is_file():
            os.environ[file.name] = file.read_text(encoding="utf-8").strip()
    if lease := os.environ.get("CROSSEARTH_LEASE"):
        threading.Thread(target=_leave_without, args=(Path(lease), LEASE_S), daemon=True).start()
    os.chdir(os.environ["CROSSEARTH_WORKSPACE"])
    sys.argv = ["crossearth", *json.loads(os.environ["CROSSEARTH_ARGUMENTS"])]
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    print(f"process {rank} of {size} $", *sys.argv, flush=True)
    script.load()()


def train_job_spec(
    config: TrainJobConfig, runtime_kind: str, arguments: Sequence[str], workspace: str
) -> dict[str, Any]:
    """`spec` of a TrainJob that runs `crossearth ARGUMENTS` on every node and that others create.

    It is what `run_train_job` creates, but that no file of the workspace has to be touched for its nodes.

    Args:
        runtime_kind: TrainingRuntime, of the namespace, or ClusterTrainingRuntime.
    """
    from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend

    environment = _environment(config, arguments, workspace)
    job: dict[str, Any] = {}
    # the SDK's options write into a job that it creates itself; of the backend this one asks for its type
    _pod_patch(config)(job, None, KubernetesBackend.__new__(KubernetesBackend))
    return {
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": runtime_kind, "name": config.runtime},
        "activeDeadlineSeconds": math.ceil(config.timeout_s),
        "trainer": {
            "image": config.image,
            "numNodes": config.nodes,
            # Katib writes it into a line of a shell: no word may need quotes
            "command": ["torchrun", f"--nproc-per-node={config.processes}", "-m", __name__],
            "env": [{"name": name, "value": value} for name, value in environment.items()],
            "resourcesPerNode": {"requests": config.resources, "limits": config.resources},
        },
        **job["spec"],
    }


def _environment(config: TrainJobConfig, arguments: Sequence[str], workspace: str) -> dict[str, str]:
    """The variables of a node; `work` reads the last two."""
    return {
        **config.environment,
        "CROSSEARTH_WORKSPACE": workspace,
        "CROSSEARTH_ARGUMENTS": json.dumps(list(arguments)),
    }


def _leave_without(lease: Path, seconds: float) -> None:
    """Ends this process when `lease` has not been touched for so long, by this machine's clock."""
    touched, since = 0, time.monotonic()
    while time.monotonic() - since < seconds:
        try:
            now = lease.stat().st_mtime_ns
        except OSError:
            now = 0
        if now != touched:
            touched, since = now, time.monotonic()
        time.sleep(seconds / 50)
    print(f"nobody follows this TrainJob any more ({lease} was not touched for {seconds:.0f} s)", flush=True)
    os._exit(1)


def _pod_patch(config: TrainJobConfig) -> Any:
    from kubeflow.trainer.options import kubernetes as patches

    container = patches.ContainerPatch(name=NODE, volume_mounts=config.mounts or None)
    spec = patches.PodSpecPatch(containers=[container], **config.pod)
    pod = patches.PodTemplatePatch({"labels": POD_LABELS}, spec)
    job = patches.ReplicatedJobPatch(NODE, patches.JobTemplatePatch(spec=patches.JobSpecPatch(pod)))
    jobs = patches.JobSetTemplatePatch(spec=patches.JobSetSpecPatch([job]))
    return patches.RuntimePatch(patches.TrainingRuntimeSpecPatch(jobs))


def follow(
    client: "TrainerClient", name: str, schedule_timeout_s: float, timeout_s: float, lease: Path | None = None
) -> None:
    """Prints a TrainJob's log as it comes and returns when it has completed.

    Args:
        lease: file to touch as long as this lasts.

    Raises:
        TrainJobError: it failed, not all pods ran within `schedule_timeout_s`, or it took over `timeout_s`.
    """
    started = answered = time.monotonic()
    reader: threading.Thread | None = None
    complete, waiting = False, ""
    while True:
        if lease:
            lease.touch()
        try:
            job = client.get_job(name)
        except (RuntimeError, TimeoutError):
            # a server that restarts costs no training of days
            if time.monotonic() - answered > PATIENCE_S:
                raise
            time.sleep(POLL_SECONDS)
            continue
        if job.status in (COMPLETE, FAILED):
            break
        answered = time.monotonic()
        waited = answered - started
        # a job that a queue let go keeps the status Created: its pods say more
        if reader is None and RUNNING in (job.status, *(step.status for step in job.steps)):
            reader = threading.Thread(target=_copy_log, args=(client, name), daemon=True)
            reader.start()
        # the first pod starts while others wait for room, and trains with nobody until it gives up
        complete = complete or _started(job) >= job.num_nodes
        if not complete:
            said, waiting = waiting, _waiting(client, job)
            if waiting != said:
                print(waiting, flush=True)
            if waited > schedule_timeout_s:
                raise TrainJobError(
                    f"TrainJob {name}: not all pods ran within {schedule_timeout_s:.0f} s: {waiting}\n"
                    f"{_events(client, name)}"
                )
        if waited > timeout_s:
            raise TrainJobError(
                f"TrainJob {name}: not finished within {timeout_s:.0f} s\n{_events(client, name)}"
            )
        time.sleep(POLL_SECONDS)
    if reader is None:
        _copy_log(client, name)
    else:
        reader.join(timeout=30)
    if job.status == FAILED:
        ends = filter(None, (_end(client, step.pod_name) for step in job.steps if step.status == FAILED))
        why = [f"it was {waiting}"] if waiting and not complete else list(ends)
        raise TrainJobError(
            f"{'; '.join([f'TrainJob {name} failed', *why])}\n"
            f"{_last_lines(client, name)}\n{_events(client, name)}"
        )


def _started(job: Any) -> int:
    return sum(step.status in STARTED for step in job.steps)


def _waiting(client: "TrainerClient", job: Any) -> str:
    """How many pods do not run yet, and why one of them does not."""
    line = f"waiting for {job.num_nodes - _started(job)} of {job.num_nodes} pods"
    late = [step.pod_name for step in job.steps if step.status not in STARTED]
    reason = next(filter(None, (_why_late(client, pod) for pod in late)), "")
    return f"{line}: {reason}" if reason else line


def _why_late(client: "TrainerClient", pod: str) -> str:
    """The scheduler's word on a pod, or that of the node it waits on; "" where nothing is known."""
    # the SDK has no events of a scheduler: it wants a time in them that schedulers leave out
    found = _pod(client, pod)
    if found is None:
        return ""
    status = found.status
    said = [each.message for each in status.conditions or [] if each.type == "PodScheduled" and each.message]
    waits = [each.state.waiting for each in status.container_statuses or [] if each.state.waiting]
    said += [f"{each.reason} {each.message or ''}".strip() for each in waits]
    return said[0] if said else ""


def _end(client: "TrainerClient", pod: str) -> str:
    """How a pod ended that failed, which no log says of one that was killed for memory; "" = not known."""
    found = _pod(client, pod)
    for each in (found.status.container_statuses or []) if found else []:
        if each.name == NODE and (ended := each.state.terminated):
            if ended.reason == "OOMKilled":
                container = next(one for one in found.spec.containers if one.name == NODE)
                limit = (container.resources.limits or {}).get("memory") if container.resources else None
                return f"pod {pod} was killed for memory (OOMKilled) at its limit of {limit or 'its node'}"
            return f"pod {pod}: {ended.reason} (exit code {ended.exit_code})"
    return f"pod {pod}: {found.status.message}" if found and found.status.message else ""


def _pod(client: "TrainerClient", name: str) -> Any:
    """A pod as Kubernetes has it; None where it, or Kubernetes, is not there."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    if not hasattr(client.backend, "core_api"):
        return None
    try:
        return client.backend.core_api.read_namespaced_pod(name, client.backend.namespace)
    except (ApiException, HTTPError):
        return None


def _runtime(client: "TrainerClient", name: str) -> Any:
    try:
        return client.get_runtime(name)
    except (RuntimeError, ValueError) as error:
        hidden = getattr(error.__cause__, "status", None) == HTTPStatus.FORBIDDEN
        raise InputError(
            f"this account may not read the training runtime {name!r}, or there is none"
            if hidden
            else f"the cluster has no training runtime {name!r}",
            where="values: trainer.runtime",
            next_step="see `What the account may do` in infra/README.md"
            if hidden
            else "kubectl get clustertrainingruntimes,trainingruntimes; see infra/kustomize/trainer",
        ) from error


def _delete(client: "TrainerClient", name: str) -> None:
    """Takes a job away, if there is one: it stays as long as one of its pods does."""
    from kubernetes.client import ApiException

    # not by a list of the namespace's jobs: one that is broken, whoever's, breaks the list
    if not hasattr(client.backend, "custom_api"):
        with suppress(ValueError):  # no such job
            client.delete_job(name)
        return
    try:
        # the SDK has no word for it: by its own a job is gone at once, and its pods some time later
        client.backend.custom_api.delete_namespaced_custom_object(
            *_address(client, name), propagation_policy="Foreground"
        )
    except ApiException as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise


def _expect_gone(client: "TrainerClient", name: str, seconds: float) -> None:
    """Waits for the end of what an earlier try left: Kubeflow Trainer takes a JobSet of that name for ours.

    Raises:
        TrainJobError: it is still there after `seconds`.
    """
    from kubernetes.client import ApiException

    if not hasattr(client.backend, "custom_api"):
        return
    began = time.monotonic()
    while True:
        try:
            client.backend.custom_api.get_namespaced_custom_object(*_address(client, name))
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return
            if error.status < HTTPStatus.INTERNAL_SERVER_ERROR:  # else the server restarts
                raise
        if time.monotonic() - began > seconds:
            raise TrainJobError(f"TrainJob {name}: pods of an earlier try have not ended in {seconds:.0f} s")
        time.sleep(POLL_SECONDS)


def _address(client: "TrainerClient", name: str) -> tuple[str, str, str, str, str]:
    from kubeflow.trainer.constants import constants

    where = client.backend.namespace
    return constants.GROUP, constants.VERSION, where, constants.TRAINJOB_PLURAL, name


def _copy_log(client: "TrainerClient", name: str) -> None:
    try:
        for line in client.get_job_logs(name, follow=True):
            print(line, flush=True)
    except RuntimeError as error:
        # the log is a courtesy: the job's status decides
        print(f"log of TrainJob {name} broke off: {error}", flush=True)


def _last_lines(client: "TrainerClient", name: str) -> str:
    try:
        lines = list(client.get_job_logs(name, follow=False))
    except RuntimeError as error:
        return f"no log: {error}"
    return "\n".join(lines[-LAST_LINES:])


def _events(client: "TrainerClient", name: str) -> str:
    """The cluster's own words about the job; some backends have none."""
    try:
        events = client.get_job_events(name)
    except (NotImplementedError, RuntimeError, TimeoutError) as error:
        return f"no events: {type(error).__name__}"
    return (
        "\n".join(
            f"{event.involved_object_kind}/{event.involved_object_name}: {event.reason}: {event.message}"
            for event in events
        )
        or "no events"
    )


if __name__ == "__main__":  # what torchrun starts in a pod of a TrainJob that was not made by the SDK
    work()
