"""What a real Kubeflow control plane insists on and kfp's local runner lets pass: one rule per finding.

`GRAPH` judges a compiled pipeline (the two documents of its YAML), `MANIFESTS` what kustomize builds.
A rule returns its findings, each a sentence; none means that the rule is kept.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Documents = list[Any]
Rule = Callable[[Documents], list[str]]

ARGUMENT = 100 * 1024  # bytes of one argument of a command: Linux takes 128 KiB, kfp adds its own
WEEK_S = 7 * 24 * 3600  # what a step without a timeout may take
THREADS = ("OMP_NUM_THREADS", "GDAL_NUM_THREADS")
TRIGGER = "ALL_UPSTREAM_TASKS_COMPLETED"
# JobSet's pods: NAME-node-0-INDEX-abcde; no name in Kubernetes' DNS is longer
POD_SUFFIX, DNS_LABEL = "-node-0-{}-abcde", 63
OURS = "crossearth-"  # what the labels of our pods begin with: the namespace is shared with Kubeflow's
SIDECAR = "sidecar.istio.io/inject"
# what PodSecurity `baseline` lets a container add
CAPABILITIES = {
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
}
# (API group, resource, verb): what each is for is said in infra/README.md
RIGHTS = {
    ("", "configmaps", "get"),
    ("", "secrets", "get"),
    ("", "pods", "get"),
    ("", "pods", "list"),
    ("", "pods/log", "get"),
    ("", "events", "list"),
    ("argoproj.io", "workflowtaskresults", "create"),
    ("argoproj.io", "workflowtaskresults", "patch"),
    ("argoproj.io", "workflows", "get"),
    ("trainer.kubeflow.org", "trainjobs", "create"),
    ("trainer.kubeflow.org", "trainjobs", "get"),
    ("trainer.kubeflow.org", "trainjobs", "delete"),
    ("trainer.kubeflow.org", "trainingruntimes", "get"),
}


def broken(rules: dict[str, Rule], documents: Documents) -> dict[str, list[str]]:
    """The rules that the documents break -> findings."""
    judged = {name: rule(documents) for name, rule in rules.items()}
    return {name: findings for name, findings in judged.items() if findings}


# compiled pipelines


def _graphs(spec: Any) -> Iterator[tuple[str, Any]]:
    """The root and the components that hold tasks, by name."""
    parts = {"root": spec["root"], **spec["components"]}
    yield from ((name, part) for name, part in parts.items() if "dag" in part)


def _tasks(spec: Any) -> Iterator[tuple[str, Any]]:
    for _, part in _graphs(spec):
        yield from part["dag"]["tasks"].items()


def _containers(spec: Any) -> dict[str, Any]:
    executors = spec["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): each["container"] for name, each in executors.items()}


def _pods(documents: Documents) -> dict[str, Any]:
    executors = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): each for name, each in executors.items()}


def _step(documents: Documents, task: Any) -> str:
    component = documents[0]["components"][task["componentRef"]["name"]]
    return str(component["executorLabel"]).removeprefix("exec-")


def _types(part: Any, side: str) -> dict[str, str]:
    parameters = part.get(f"{side}Definitions", {}).get("parameters", {})
    return {name: each["parameterType"] for name, each in parameters.items()}


def _fits(constant: Any, wanted: str) -> bool:
    kinds = {"STRING": str, "BOOLEAN": bool, "STRUCT": dict, "LIST": list}
    return isinstance(constant, kinds.get(wanted, (int, float)))


def types(documents: Documents) -> list[str]:
    """Each task's input comes from a component's input, a task's output or a loop's item of its own type."""
    spec = documents[0]
    findings = []
    for graph, part in _graphs(spec):
        outer, tasks = _types(part, "input"), part["dag"]["tasks"]
        for name, task in tasks.items():
            wanted = _types(spec["components"][task["componentRef"]["name"]], "input")
            for parameter, source in task.get("inputs", {}).get("parameters", {}).items():
                kind = wanted.get(parameter)
                if kind is None:  # part of another input's constant: the launcher puts it in as text
                    continue
                if "componentInputParameter" in source:
                    found = outer[source["componentInputParameter"]]
                elif "taskOutputParameter" in source:
                    output = source["taskOutputParameter"]
                    producer = tasks[output["producerTask"]]["componentRef"]["name"]
                    found = _types(spec["components"][producer], "output")[output["outputParameterKey"]]
                elif "runtimeValue" in source:
                    constant = source["runtimeValue"]["constant"]
                    found = kind if _fits(constant, kind) else type(constant).__name__
                else:
                    found = "TASK_FINAL_STATUS" if "taskFinalStatus" in source else f"{source}"
                if found != kind:
                    findings.append(f"{graph}: {name}.{parameter}: {found} where {kind} is expected")
    return findings


def cached(documents: Documents) -> list[str]:
    """The tasks that may come from the cache: none of a pipeline that is submitted without it."""
    return [name for name, task in _tasks(documents[0]) if task.get("cachingOptions", {}).get("enableCache")]


def _environments(spec: Any) -> Iterator[tuple[str, dict[str, str], str | None]]:
    """Variables and limit of cores of the steps' containers and of the nodes of their TrainJobs."""
    for step, container in _containers(spec).items():
        variables = {each["name"]: each["value"] for each in container.get("env", [])}
        yield step, variables, container.get("resources", {}).get("resourceCpuLimit")
    for name, task in _tasks(spec):
        for source in task.get("inputs", {}).get("parameters", {}).values():
            job = source.get("runtimeValue", {}).get("constant")
            if isinstance(job, dict) and "environment" in job:
                yield f"TrainJob of {name}", job["environment"], job["resources"].get("cpu")


def threads(documents: Documents) -> list[str]:
    """A container starts no more threads than its limit has cores: it sees all cores of the node."""
    findings = []
    for who, variables, limit in _environments(documents[0]):
        for name in THREADS if limit else ():
            value = variables.get(name, "")
            if not value.isdigit() or int(value) > max(1, math.floor(_cores(str(limit)))):
                findings.append(f"{who}: {name} is {value or 'not set'}, the limit {limit}")
    return findings


def _cores(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def addresses(documents: Documents) -> list[str]:
    """No address names a namespace: whose it is only the overlay knows."""
    return [
        f"{who}: {name}: {value}"
        for who, variables, _ in _environments(documents[0])
        for name, value in variables.items()
        if re.search(r"\.svc\b", value)
    ]


def retries(documents: Documents) -> list[str]:
    """Argo tries nothing again once the window from the first try's start is over, nor by a factor of 1.5."""
    pods = _pods(documents)
    findings = []
    for name, task in _tasks(documents[0]):
        policy = task.get("retryPolicy", {})
        if tries := policy.get("maxRetryCount", 0):
            longest = int(pods[_step(documents, task)].get("activeDeadlineSeconds", WEEK_S))
            window = float(policy["backoffMaxDuration"].removesuffix("s"))
            factor = float(policy.get("backoffFactor", 2))
            if factor != int(factor):  # it reads a whole number
                findings.append(f"{name}: a factor of {factor}")
            if window < (int(tries) + 1) * longest:
                findings.append(f"{name}: {tries} further tries of up to {longest} s within {window:g} s")
    return findings


def train_jobs(documents: Documents) -> list[str]:
    """A TrainJob ends before the step that follows it is stopped, and takes it away."""
    pods = _pods(documents)
    findings = []
    for name, task in _tasks(documents[0]):
        for source in task.get("inputs", {}).get("parameters", {}).values():
            job = source.get("runtimeValue", {}).get("constant")
            if not (isinstance(job, dict) and "schedule_timeout_s" in job):
                continue
            stopped = int(pods[_step(documents, task)].get("activeDeadlineSeconds", 0))
            if not job["schedule_timeout_s"] < job["timeout_s"] < stopped:
                findings.append(f"{name}: a TrainJob of {job['timeout_s']:g} s, its step of {stopped} s")
    return findings


def handler(documents: Documents) -> list[str]:
    """The exit handler needs neither another task's result nor a workspace that can be written."""
    findings = []
    for name, task in _tasks(documents[0]):
        if task.get("triggerPolicy", {}).get("strategy") != TRIGGER:
            continue
        sources = task.get("inputs", {}).get("parameters", {}).values()
        if any("taskOutputParameter" in source for source in sources):
            findings.append(f"{name} waits for another task's output")
        if ".enter(" in "\n".join(_containers(documents[0])[_step(documents, task)]["command"]):
            findings.append(f"{name} enters the workspace first")
    return findings


def one_of(documents: Documents) -> list[str]:
    """OneOf over a branch that came from the cache never completes."""
    spec = documents[0]
    findings = []
    for graph, part in _graphs(spec):
        for output in part["dag"].get("outputs", {}).get("parameters", {}).values():
            for selector in output.get("valueFromOneof", {}).get("parameterSelectors", []):
                branch = part["dag"]["tasks"][selector["producerSubtask"]]["componentRef"]["name"]
                inner = spec["components"][branch].get("dag", {}).get("tasks", {})
                for name, task in inner.items():
                    if task.get("cachingOptions", {}).get("enableCache"):
                        findings.append(f"{graph}: {name} may come from the cache")
    return findings


def keyed(documents: Documents) -> list[str]:
    """What may come from the cache has an item or a key, which stand for numbers, code and workspace."""
    return [
        name
        for name, task in _tasks(documents[0])
        if task.get("cachingOptions", {}).get("enableCache")
        and not {"item", "key"} & task.get("inputs", {}).get("parameters", {}).keys()
    ]


def count_pods(documents: Documents, times: Mapping[str, int]) -> int:
    """Pods of a run: a driver for each graph and iteration, a driver and one that works for each step.

    Args:
        times: loop -> number of its items; condition -> 1 if it holds, 0 if not.
    """
    components = documents[0]["components"]

    def inside(part: Any) -> int:
        return 1 + sum(map(count, part["dag"]["tasks"].values()))

    def count(task: Any) -> int:
        part = components[task["componentRef"]["name"]]
        if "dag" not in part:
            return 2
        if "parameterIterator" in task:  # one more for the loop itself
            return 1 + times[task["taskInfo"]["name"]] * inside(part)
        holds = "condition" not in task.get("triggerPolicy", {}) or times[task["taskInfo"]["name"]]
        return inside(part) if holds else 1

    return inside(documents[0]["root"])


def newer_than_2_15(documents: Documents) -> list[str]:
    """Kubeflow Pipelines 2.15 refuses a pod's securityContext."""
    return [step for step, pod in _pods(documents).items() if "securityContext" in pod]


def arguments(documents: Documents) -> list[str]:
    """The pipeline's parameters, which a step gets as one argument of its command, are short enough."""
    parameters = documents[0]["root"].get("inputDefinitions", {}).get("parameters", {})
    return too_long({name: each.get("defaultValue", "") for name, each in parameters.items()})


def too_long(*values: Any) -> list[str]:
    """Values, items of loops among them, that one argument of a command cannot hold."""
    sizes = [len(json.dumps(value).encode()) for value in values]
    return [f"{size} bytes in one argument" for size in sizes if size > ARGUMENT]


def train_job_name(name: str, nodes: int) -> list[str]:
    """JobSet refuses a TrainJob whose pods' names were longer than a DNS label."""
    longest = name + POD_SUFFIX.format(nodes - 1)
    return [f"{longest}: {len(longest)} characters"] if len(longest) > DNS_LABEL else []


GRAPH: dict[str, Rule] = {
    "types": types,
    "threads": threads,
    "addresses": addresses,
    "retries": retries,
    "train-jobs": train_jobs,
    "handler": handler,
    "one-of": one_of,
    "keyed": keyed,
    "2.15": newer_than_2_15,
    "arguments": arguments,
}


# manifests


def _name(manifest: Any) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def _templates(manifests: Documents) -> Iterator[tuple[str, Any]]:
    """The pods that the manifests make."""
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield _name(manifest), manifest["spec"]["template"]
        elif manifest["kind"].endswith("TrainingRuntime"):
            for job in manifest["spec"]["template"]["spec"]["replicatedJobs"]:
                yield _name(manifest), job["template"]["spec"]["template"]


def one_namespace(manifests: Documents) -> list[str]:
    """All lies in one namespace, which is Kubeflow's or a Profile's: its labels are not ours to set."""
    findings = [_name(each) for each in manifests if each["kind"] == "Namespace"]
    placed = [each for each in manifests if not re.match("Cluster|Namespace$", each["kind"])]
    spaces = {each["metadata"].get("namespace") for each in placed}
    for each in manifests:
        spaces |= {subject["namespace"] for subject in each.get("subjects", []) if "namespace" in subject}
    return findings + ([f"namespaces {sorted(map(str, spaces))}"] if len(spaces) > 1 else [])


def cluster_wide(manifests: Documents) -> list[str]:
    """What lies outside of a Profile is not its owner's to make, and has one name for all Profiles."""
    if {"kubeflow"} == {each["metadata"].get("namespace", "kubeflow") for each in manifests}:
        return []
    return [_name(each) for each in manifests if each["kind"].startswith("Cluster")]


def plain_addresses(manifests: Documents) -> list[str]:
    """Services are called by short names."""
    return [_name(each) for each in manifests if re.search(r"\.svc\b", json.dumps(each))]


def rights(manifests: Documents) -> list[str]:
    """The account may do what a step, Argo's executor and Kubeflow's driver do, and may read one Secret."""
    rules = [rule for each in manifests if each["kind"] == "Role" for rule in each["rules"]]
    given = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    findings = [f"no right to {verb} {resource}" for _, resource, verb in sorted(RIGHTS - given)]
    for rule in rules:
        if "secrets" in rule["resources"] and rule.get("resourceNames") != ["mlpipeline-minio-artifact"]:
            findings.append(f"Secrets {rule.get('resourceNames', 'of any name')} may be read")
    return findings


def sidecars(manifests: Documents) -> list[str]:
    """Istio, which Profiles inject, keeps a Job from ending and nodes of a TrainJob from meeting."""
    return [
        name
        for name, template in _templates(manifests)
        if template.get("metadata", {}).get("labels", {}).get(SIDECAR) != "false"
    ]


def pod_security(manifests: Documents) -> list[str]:
    """Namespaces of Kubeflow Pipelines 2.16 and of its platform's Profiles enforce PodSecurity `baseline`."""
    findings = []
    for name, template in _templates(manifests):
        pod = template["spec"]
        findings += [f"{name}: {key}" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
        findings += [f"{name}: hostPath" for volume in pod.get("volumes", []) if "hostPath" in volume]
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            context = container.get("securityContext", {})
            added = set(context.get("capabilities", {}).get("add", [])) - CAPABILITIES
            findings += [f"{name}: capability {capability}" for capability in sorted(added)]
            findings += [f"{name}: privileged"] if context.get("privileged") else []
    return findings


def selectors(manifests: Documents) -> list[str]:
    """Policies and Services select our pods alone: notebooks and artifact proxies live beside them."""
    findings = []
    for each in manifests:
        if each["kind"] == "NetworkPolicy":
            chosen = each["spec"]["podSelector"]
            named = [one for one in chosen.get("matchExpressions", []) if one["operator"] == "In"]
            values = [*chosen.get("matchLabels", {}).values(), *(v for one in named for v in one["values"])]
        elif each["kind"] == "Service":
            values = [*each["spec"]["selector"].values()]
        else:
            continue
        if not values or not all(value.startswith(OURS) for value in values):
            findings.append(f"{_name(each)} selects {values or 'every pod'}")
    return findings


def foreign_kinds(manifests: Documents) -> list[str]:
    """`apply -k` works on a cluster that has nothing but Kubernetes."""
    groups = {each["apiVersion"].split("/")[0] for each in manifests if "/" in each["apiVersion"]}
    return sorted(group for group in groups if "." in group and not group.endswith(".k8s.io"))


def prepared(manifests: Documents) -> list[str]:
    """A fresh claim is root's: a Job of root gives it to the image's user."""
    claims = {each["metadata"]["name"] for each in manifests if each["kind"] == "PersistentVolumeClaim"}
    for each in manifests:
        if each["kind"] != "Job":
            continue
        pod = each["spec"]["template"]["spec"]
        if any(one.get("securityContext", {}).get("runAsUser") == 0 for one in pod["containers"]):
            volumes = pod.get("volumes", [])
            claims -= {volume.get("persistentVolumeClaim", {}).get("claimName") for volume in volumes}
    return [f"{claim} stays root's" for claim in sorted(claims)]


def runtimes(manifests: Documents) -> list[str]:
    """A node of a TrainJob runs once, and not in the folder that all nodes share."""
    findings = []
    for name, template in _templates([each for each in manifests if "TrainingRuntime" in each["kind"]]):
        if template["spec"].get("restartPolicy") != "Never":
            findings.append(f"{name}: restartPolicy {template['spec'].get('restartPolicy')}")
        findings += [
            f"{name}: workingDir {container.get('workingDir')}"
            for container in template["spec"]["containers"]
            if container.get("workingDir") != "/tmp"
        ]
    return findings


MANIFESTS: dict[str, Rule] = {
    "namespace": one_namespace,
    "cluster": cluster_wide,
    "addresses": plain_addresses,
    "rights": rights,
    "sidecars": sidecars,
    "pod-security": pod_security,
    "selectors": selectors,
    "kinds": foreign_kinds,
    "claim": prepared,
    "runtimes": runtimes,
}
