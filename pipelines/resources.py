"""What each step may use on the cluster, from one values file; nowhere else is a Kubernetes setting made."""

import math
import re
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from kfp import dsl, kubernetes
from kfp.dsl.base_component import BaseComponent
from pydantic import AfterValidator, NonNegativeInt, PositiveInt
from pydantic_core import PydanticCustomError

from crossearth.components.pods.train_job import SECRETS
from crossearth.components.steps import PODS, STEPS
from crossearth.data.common.config import checked, load_config, merged, nearest, read_yaml
from crossearth.data.common.errors import InputError, without_credentials

THREADS = ("OMP_NUM_THREADS", "GDAL_NUM_THREADS")
LONGEST_STEP_S = 7 * 24 * 3600  # a step without a timeout is tried again until then
LEAVE_S = 600  # what a step has to take a TrainJob away whose time is up


def _like(pattern: str, meant: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise PydanticCustomError("quantity", f"Input should be {meant}")
        return value

    return AfterValidator(check)


# the quantities of Kubernetes that kfp takes
Cores = Annotated[str, _like(r"(\d*\.)?\d+m?", 'a number of cores: "8" or "500m"')]
Bytes = Annotated[str, _like(r"\d+([EPTGMK]i?)?", 'a whole number of bytes: "16Gi", "1536Mi" or "64G"')]


@checked
class Toleration:
    """A taint that does not keep a step away from a node (fields as in a pod's `tolerations`)."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "NoExecute", "PreferNoSchedule"] | None = None


@checked
class Resources:
    """What one step asks of the cluster.

    Attributes:
        cpu: cores, requested and limiting; so many threads are started. None = no limit.
        memory: bytes as a Kubernetes quantity, requested and limiting.
        gpus: number of devices of the resource `gpu_type`; a step starts one process a device.
        shm: size of /dev/shm, in which the data loader's workers hand batches over; none = 64 MiB.
        timeout_s: seconds after which the pod is stopped; none = never.
        node_selector: labels that the node must carry.
        tolerations: taints of the node that do not matter.
    """

    cpu: Cores | None = "2"
    memory: Bytes = "4Gi"
    gpus: NonNegativeInt = 0
    gpu_type: str = "nvidia.com/gpu"
    shm: Bytes | None = None
    timeout_s: PositiveInt | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()

    @property
    def processes(self) -> int:
        """One a GPU."""
        return max(1, self.gpus)

    def threads(self) -> dict[str, str]:
        """Variables that give a process its share of the cores; left alone it sees all of the node."""
        if self.cpu is None:
            return {}
        cores = float(self.cpu[:-1]) / 1000 if self.cpu.endswith("m") else float(self.cpu)
        return dict.fromkeys(THREADS, str(max(1, math.floor(cores / self.processes))))


@checked
class Workspace:
    """Where the steps' artefacts live: every pod sees the same folder.

    Attributes:
        claim: name of a PersistentVolumeClaim (ReadWriteMany if steps may land on several nodes).
        mount: where the claim is mounted.
        scratch: size of an emptyDir on /tmp; none = the node's disk.
    """

    claim: str | None = "crossearth-workspace"
    mount: str = "/workspace"
    scratch: Bytes | None = None

    def __post_init__(self) -> None:
        if not self.mount.startswith("/"):
            raise InputError(f"workspace.mount: {self.mount!r} is not absolute")


@checked
class Secret:
    """A Kubernetes Secret whose keys become environment variables; its values are never seen here."""

    name: str
    env: dict[str, str]


@checked
class Retry:
    """Further tries of the steps that need the network whose pod was lost, after growing pauses.

    A step that ends with an error or is killed for memory is not tried again by Kubeflow Pipelines 2.17:
    Argo's policy there is OnError, which means the pod and not what runs in it.
    """

    attempts: NonNegativeInt = 3
    backoff_s: PositiveInt = 15
    factor: PositiveInt = 2  # Argo cannot read another number

    def window_s(self, longest_s: int) -> int:
        """Seconds in which all tries of `longest_s` each and their pauses fit: Argo starts none after it."""
        pauses = sum(self.backoff_s * self.factor**attempt for attempt in range(self.attempts))
        return (self.attempts + 1) * longest_s + pauses


@checked
class Parallel:
    """How many iterations of a loop run at the same time."""

    ingest: PositiveInt = 4
    stylize: PositiveInt = 4
    recipes: PositiveInt = 4
    predict: PositiveInt = 4


@checked
class Trainer:
    """Training on several nodes as a TrainJob of Kubeflow Trainer.

    Attributes:
        nodes: 1 = train in the step's own pod; more = a TrainJob of so many pods.
        runtime: the (Cluster)TrainingRuntime to train on.
        namespace: namespace of the TrainJob; none = the pipeline's own.
        schedule_timeout_s: seconds after which a TrainJob is given up whose pods do not all run.
    """

    nodes: PositiveInt = 1
    runtime: str = "torch-distributed"
    namespace: str | None = None
    schedule_timeout_s: PositiveInt = 1800


@checked
class Values:
    """The values file: everything about the cluster that a pipeline needs to know.

    Attributes:
        image: the container image of every step, best with its digest (name@sha256:...).
        secrets: Secrets of the object store and of MLflow, by a name of your choice.
        environment: plain environment variables of every step (addresses, never passwords).
        default: what a step asks for if `steps` does not say otherwise.
        steps: what single steps ask for; in the file, what differs from `default`.
    """

    image: str
    workspace: Workspace = field(default_factory=Workspace)
    secrets: dict[str, Secret] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    default: Resources = field(default_factory=Resources)
    steps: dict[str, Resources] = field(default_factory=dict)
    retry: Retry = field(default_factory=Retry)
    parallel: Parallel = field(default_factory=Parallel)
    trainer: Trainer = field(default_factory=Trainer)

    def __post_init__(self) -> None:
        if not self.image or self.image != self.image.strip() or " " in self.image:
            raise InputError(
                f"image: {self.image!r} names no image",
                expected="for example registry.example/crossearth@sha256:...",
            )
        for step in self.steps:
            if step not in PODS:
                raise InputError(f"steps: unknown step {step!r}", expected=nearest(step, PODS))
        for name, value in self.environment.items():
            telling = re.search(r"SECRET|PASSW|TOKEN|CREDENTIAL|COOKIE|(^|_)KEY", name, re.IGNORECASE)
            if telling or without_credentials(value) != value:
                raise InputError(
                    f"environment: {name} looks like a secret",
                    next_step="create a Kubernetes Secret and name it under `secrets`",
                )

    def resources(self, step: str) -> Resources:
        return self.steps.get(step, self.default)

    def processes(self, step: str) -> int:
        """Processes of a step's pod: one a GPU."""
        return self.resources(step).processes

    def gpus(self) -> dict[str, int]:
        """Resource name of the devices -> the most that one step asks for."""
        wanted: dict[str, int] = {}
        for resources in (self.default, *self.steps.values()):
            if resources.gpus:
                wanted[resources.gpu_type] = max(resources.gpus, wanted.get(resources.gpu_type, 0))
        return wanted

    def train_job(self) -> dict[str, Any]:
        """Fields of TrainJobConfig for training on several nodes; empty for one."""
        return {} if self.trainer.nodes == 1 else self.trial_job()

    def trial_job(self) -> dict[str, Any]:
        """Fields of TrainJobConfig for a training of a tuning: a TrainJob, of one node too."""
        wanted = self.resources("train")
        tolerations = [
            {key: value for key, value in asdict(toleration).items() if value is not None}
            for toleration in wanted.tolerations
        ]
        volumes, mounts = self._volumes(wanted)
        pod = {"node_selector": wanted.node_selector, "tolerations": tolerations, "volumes": volumes}
        return {
            "image": self.image,
            "nodes": self.trainer.nodes,
            "runtime": self.trainer.runtime,
            **({"namespace": self.trainer.namespace} if self.trainer.namespace else {}),
            "processes": wanted.processes,
            "resources": {
                **({"cpu": wanted.cpu} if wanted.cpu else {}),
                "memory": wanted.memory,
                **({wanted.gpu_type: wanted.gpus} if wanted.gpus else {}),
            },
            "environment": wanted.threads() | self.environment,
            "pod": {key: value for key, value in pod.items() if value},
            "mounts": mounts,
            "schedule_timeout_s": self.trainer.schedule_timeout_s,
            "timeout_s": self.trainer.schedule_timeout_s + (wanted.timeout_s or LONGEST_STEP_S),
        }

    def _volumes(self, wanted: Resources) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Volumes of a TrainJob's pod and their mounts: those of a step's pod, and the secrets as files."""
        volumes: dict[str, tuple[str, dict[str, Any]]] = {}
        if self.workspace.claim:
            claim = {"persistentVolumeClaim": {"claimName": self.workspace.claim}}
            volumes["workspace"] = self.workspace.mount, claim
        if self.workspace.scratch:
            volumes["scratch"] = "/tmp", {"emptyDir": {"sizeLimit": self.workspace.scratch}}  # noqa: S108
        if wanted.shm:
            volumes["shm"] = "/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": wanted.shm}}  # noqa: S108
        for number, secret in enumerate(self.secrets.values()):
            items = [{"key": key, "path": variable} for key, variable in secret.env.items()]
            source = {"secretName": secret.name, "optional": True, "items": items}
            volumes[f"secret-{number}"] = f"{SECRETS}/{secret.name}", {"secret": source}
        return (
            [{"name": name, **source} for name, (_, source) in volumes.items()],
            [{"name": name, "mountPath": path} for name, (path, _) in volumes.items()],
        )


LOCAL = Values(
    image="crossearth:local",
    default=Resources(cpu=None),  # this machine's cores are the user's to share out
    retry=Retry(attempts=0),
    parallel=Parallel(ingest=2, stylize=2, recipes=2, predict=2),
)


def load_values(path: Path) -> Values:
    """Reads a values file; InputError: a wrong key, step or image, or a secret in plain sight."""
    values = read_yaml(path) or {}
    if isinstance(values, dict) and isinstance(values.get("steps"), dict):
        default = values.get("default") or {}
        of_steps = {step: merged(default, own or {}) for step, own in values["steps"].items()}
        values = {**values, "steps": of_steps}
    return load_config(Values, values, path)


def configure_pod(component: BaseComponent, values: Values, **inputs: Any) -> dsl.PipelineTask:
    """A step's task, with its image, resources, volumes, secrets, retries and cache setting."""
    task, step = component(**inputs), component.name
    wanted = values.resources(step)
    if step == "train" and (job := values.train_job()):
        # the step's own pod only follows the TrainJob
        wanted = replace(values.default, timeout_s=job["timeout_s"] + LEAVE_S)
    task.set_container_image(values.image)
    task.set_display_name(step)
    if wanted.cpu:
        task.set_cpu_request(wanted.cpu).set_cpu_limit(wanted.cpu)
    task.set_memory_request(wanted.memory).set_memory_limit(wanted.memory)
    if wanted.gpus:
        task.set_accelerator_type(wanted.gpu_type).set_accelerator_limit(wanted.gpus)
    for name, value in sorted((wanted.threads() | values.environment).items()):
        task.set_env_variable(name, value)
    task.set_caching_options(STEPS[step].cached)
    if STEPS[step].network and values.retry.attempts:
        task.set_retry(
            num_retries=values.retry.attempts,
            backoff_duration=f"{values.retry.backoff_s}s",
            backoff_factor=float(values.retry.factor),
            backoff_max_duration=f"{values.retry.window_s(wanted.timeout_s or LONGEST_STEP_S)}s",
        )
    _place_on_kubernetes(task, wanted, values)
    return task


def _place_on_kubernetes(task: dsl.PipelineTask, wanted: Resources, values: Values) -> None:
    if values.workspace.claim:
        kubernetes.mount_pvc(task, pvc_name=values.workspace.claim, mount_path=values.workspace.mount)
    if values.workspace.scratch:
        kubernetes.empty_dir_mount(task, "scratch", "/tmp", size_limit=values.workspace.scratch)  # noqa: S108
    if wanted.shm:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=wanted.shm)  # noqa: S108
    for secret in values.secrets.values():
        # optional: a pod that cannot start says nothing; the prerequisites step names what is missing
        kubernetes.use_secret_as_env(
            task, secret_name=secret.name, secret_key_to_env=secret.env, optional=True
        )
    for label, value in sorted(wanted.node_selector.items()):
        kubernetes.add_node_selector(task, label, value)
    for toleration in wanted.tolerations:
        kubernetes.add_toleration(task, **asdict(toleration))
    if wanted.timeout_s:
        kubernetes.set_timeout(task, wanted.timeout_s)
