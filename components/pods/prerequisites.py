"""What a pipeline needs before its first minute of compute: looked at first, with what to create."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from crossearth.components.pods import own_pod
from crossearth.components.pods.workspace import inputs
from crossearth.components.runtime.doctor import Finding, examine
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.places import data_dir
from crossearth.components.runtime.tracking import tracking_uri
from crossearth.data.common.errors import InputError

# the oldest releases that take what a run asks of them
PIPELINES, TRAINER = (2, 15), (2, 2)
TRAINER_CONFIG = "kubeflow-trainer-public"
TRAINER_NAMESPACES = ("kubeflow-system", "kubeflow")  # by itself; as a part of Kubeflow's platform
RIGHTS = "see `What the account may do` in infra/README.md"
RUNTIME_KINDS = ("trainingruntimes", "clustertrainingruntimes")


def check_prerequisites(
    params: Params,
    secrets: Mapping[str, Mapping[str, str]],
    gpus: Mapping[str, int],
    training_runtime: str,
    namespace: str,
) -> list[Finding]:
    """Looks at secrets, MLflow, GPUs, the training runtime and the releases of Kubeflow's parts.

    Outside a cluster at what there is of them.

    Args:
        secrets: Secret -> its keys -> the environment variables that they should have become.
        gpus: resource name -> number that one step asks for.
        training_runtime: name of the TrainingRuntime, "" = none is needed.
        namespace: where it would live besides the cluster, "" = the pod's own.

    Returns:
        What was found.

    Raises:
        InputError: something is missing; the message lists all of it with what to create.
    """
    findings = [
        *_secrets(secrets),
        *examine(data_dir(), params.archives, tracking_uri()),
        *(_cluster(gpus, training_runtime, namespace) if "KUBERNETES_SERVICE_HOST" in os.environ else []),
    ]
    missing = [finding for finding in findings if finding.verdict == "missing"]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(findings)} prerequisites are missing",
            next_step="".join(f"\n  - {each.check}: {each.found}; {each.advice}" for each in missing),
        )
    return findings


def look(**wanted: Any) -> None:
    """Prints what `check_prerequisites` finds for the run in the working folder."""
    for finding in check_prerequisites(inputs()[0], **wanted):
        print(f"{finding.check}: {finding.verdict}: {finding.found}")


def _secrets(secrets: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    findings = []
    for name, variables in secrets.items():
        if absent := [key for key, variable in variables.items() if not os.environ.get(variable)]:
            literals = " ".join(f"--from-literal={key}=..." for key in variables)
            create = f"kubectl create secret generic {name} {literals}"
            findings.append(Finding(f"secret {name}", "missing", f"no key {', '.join(absent)}", create))
        else:
            findings.append(Finding(f"secret {name}", "fine", ", ".join(variables)))
    return findings


def _cluster(gpus: Mapping[str, int], training_runtime: str, namespace: str) -> list[Finding]:
    from kubernetes import client, config

    config.load_incluster_config()
    core = client.CoreV1Api()
    findings = [_pipelines(core), *(_gpus(core, kind, number) for kind, number in gpus.items())]
    if training_runtime:
        findings.append(_trainer(core))
        where = namespace or own_pod.namespace()
        findings.append(_runtime(client.CustomObjectsApi(), training_runtime, where))
    return findings


def _pipelines(api: Any) -> Finding:
    """The release is that of the launcher, which an init container puts into each pod."""
    from kubernetes.client import ApiException

    what = "Kubeflow Pipelines"
    try:
        pod = api.read_namespaced_pod(own_pod.name(), own_pod.namespace())
    except ApiException as error:
        return Finding(what, "note", f"release unknown: {error.reason}", RIGHTS)
    names = [container.image.rpartition("/")[2] for container in pod.spec.init_containers or []]
    launcher = next((each for each in names if "launcher" in each), "")
    return _release(what, launcher.partition("@")[0].partition(":")[2], PIPELINES)


def _trainer(api: Any) -> Finding:
    from kubernetes.client import ApiException

    what = "Kubeflow Trainer"
    for namespace in TRAINER_NAMESPACES:
        with suppress(ApiException):
            found = api.read_namespaced_config_map(TRAINER_CONFIG, namespace).data or {}
            return _release(what, found.get("kubeflow_trainer_version", ""), TRAINER)
    where = f"no ConfigMap {TRAINER_CONFIG} to be read in {' or '.join(TRAINER_NAMESPACES)}"
    return _release(what, where, TRAINER)


def _release(what: str, text: str, oldest: tuple[int, int]) -> Finding:
    wanted = ".".join(map(str, oldest))
    numbers = re.match(r"v?(\d+)\.(\d+)", text)
    if not numbers:
        found = f"release unknown: {text or 'not said'}"
        return Finding(what, "note", found, f"it must be {wanted} or newer")
    if tuple(map(int, numbers.groups())) >= oldest:
        return Finding(what, "fine", text)
    return Finding(what, "missing", text, f"install {wanted} or newer, see infra/README.md")


def _gpus(api: Any, kind: str, number: int) -> Finding:
    from kubernetes.client import ApiException

    what = f"GPUs ({kind})"
    try:
        nodes = api.list_node().items
    except ApiException as error:
        return Finding(what, "note", f"nodes cannot be listed: {error.reason}", RIGHTS)
    most = max((int((node.status.allocatable or {}).get(kind, 0)) for node in nodes), default=0)
    if most >= number:
        return Finding(what, "fine", f"up to {most} on a node")
    found = f"a step asks for {number}, no node has more than {most}"
    advice = "add a GPU node with its device plugin, or lower `gpus` in the values file"
    return Finding(what, "missing", found, advice)


def _runtime(api: Any, name: str, namespace: str) -> Finding:
    from kubernetes.client import ApiException

    what, group = "training runtime", ("trainer.kubeflow.org", "v1alpha1")
    forbidden = False
    for kind in RUNTIME_KINDS:
        try:
            if kind.startswith("cluster"):
                api.get_cluster_custom_object(*group, kind, name)
            else:
                api.get_namespaced_custom_object(*group, namespace, kind, name)
            return Finding(what, "fine", f"{kind}/{name}")
        except ApiException as error:
            if error.status not in (403, 404):
                raise
            forbidden |= error.status == 403
    if forbidden:
        return Finding(what, "note", f"{name} cannot be looked up: forbidden", RIGHTS)
    found = f"neither in namespace {namespace} nor in the cluster: {name}"
    advice = "install Kubeflow Trainer, name ../trainer under `components` of your overlay and apply it again"
    return Finding(what, "missing", found, advice)
