"""How a run of a pipeline went: from Argo's record of it (the Workflow), or from Kubeflow's API alone.

A Workflow has a node for each pod and several around it: `for-loop-4(0).iteration-iterations(0:0)(0).
iteration-item(0).train(0).executor(0)` is the first try of the step `train` of a loop's first item. What a
person knows are the steps, so the nodes are read into these; why one of them failed is in `reason.py`.
"""

import base64
import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

FINISHED, FAILED, KILLED, RUNNING, PENDING = "FINISHED", "FAILED", "KILLED", "RUNNING", "PENDING"
UNKNOWN = "UNKNOWN"  # of a run of which no word is known
CACHED, OMITTED = "CACHED", "OMITTED"  # of a step alone
START = "start"  # what stands for the step where Kubeflow fails before the first one

PHASES = {
    "Succeeded": FINISHED,
    "Failed": FAILED,
    "Error": FAILED,
    "Running": RUNNING,
    "Pending": PENDING,
    "Skipped": CACHED,
    "Omitted": OMITTED,
}
API_STATES = {
    "SUCCEEDED": FINISHED,
    "FAILED": FAILED,
    "CANCELED": KILLED,
    "CANCELING": RUNNING,
    "RUNNING": RUNNING,
    "PENDING": PENDING,
    "PAUSED": PENDING,
    "SKIPPED": CACHED,
}
ENDED = (FINISHED, FAILED, KILLED)

POD_NAMES = "workflows.argoproj.io/pod-name-format"  # of a Workflow
ATTEMPT = re.compile(r"\(\d+\)(?=\.|$)")
ITERATION = re.compile(r"^(.*)\.iteration-iterations\((\d+):\d+\)")
# of the graph around the steps; what bears another name with a driver of its own is a step
AROUND = re.compile(
    r"root|iteration(-item|-iterations.*)?|(exit-handler|for-loop|condition|condition-branches)-\d+.*"
)
# what Argo writes into the nodes of a run that a person stops
STOPPED = re.compile(r"workflow deadline|[Ss]topped with strategy|workflow shutdown")
ENDED_BY_STOP = re.compile(
    r"exit code 143|its deadline|workflow deadline|[Ss]topped with|shutdown|terminated"
)


@dataclass(frozen=True)
class Step:
    """One step of a run, of one item if it is in a loop.

    Attributes:
        name: as in the pipeline, for example train; where Kubeflow failed around them, START or the loop.
        state: FINISHED, FAILED, KILLED, RUNNING, PENDING, CACHED or OMITTED (never tried).
        loop: path of the loop that it is in, "" = none.
        index: of its item in the loop.
        item: name of the item, "" = not known.
        began, ended: of all tries together.
        node: Argo's id of the last pod that there was, "" = none.
        pod: the name of that pod, "" = not known.
        message: Argo's about the last pod that failed; of a step that goes on, what holds it up.
        limit: the pod's memory, as in Kubernetes, "" = not known.
        by_driver: Kubeflow's driver failed, the step's own code never began.
    """

    name: str
    state: str
    loop: str = ""
    index: int | None = None
    item: str = ""
    began: datetime | None = None
    ended: datetime | None = None
    node: str = ""
    pod: str = ""
    message: str = ""
    limit: str = ""
    by_driver: bool = False

    def __str__(self) -> str:
        where = self.item or (f"(item {self.index + 1})" if self.index is not None else "")
        return f"{self.name} {where}".rstrip()


@dataclass(frozen=True)
class Loop:
    """How far a loop is: items of which every step ended well, of all items."""

    name: str
    done: int
    total: int


@dataclass(frozen=True)
class RunState:
    """A run as its record says.

    Attributes:
        name: the run's, as Kubeflow shows it.
        state: of the whole; a run that is being stopped is RUNNING.
        body: of all but the exit handler, which sees itself running; UNKNOWN where the record does not say.
        stopped: whether a person stopped it, or is stopping it.
        complete: whether Argo's record was read: the API alone names neither items nor messages.
        account: ServiceAccount of the pods.
    """

    name: str = ""
    state: str = UNKNOWN
    body: str = UNKNOWN
    stopped: bool = False
    complete: bool = False
    began: datetime | None = None
    ended: datetime | None = None
    account: str = ""
    steps: tuple[Step, ...] = ()
    loops: tuple[Loop, ...] = ()

    def of(self, *states: str) -> list[Step]:
        """The steps in one of these states, the exit handler's last."""
        return sorted(
            (step for step in self.steps if step.state in states), key=lambda step: step.name == "finish"
        )


def read_run(run: Mapping[str, Any] | None, workflow: Mapping[str, Any] | None) -> RunState:
    """Reads a run: the answer of GET /apis/v2beta1/runs/ID and Argo's Workflow, as far as there are."""
    run = run or {}
    nodes = nodes_of(workflow or {})
    details = (run.get("run_details") or {}).get("task_details") or []
    found = _from_nodes(workflow or {}, nodes) if nodes else _from_tasks(details)
    history = {each.get("state") for each in run.get("state_history") or []} | {run.get("state")}
    stopped = found.stopped or bool(history & {"CANCELING", "CANCELED"})
    told = FINISHED if run.get("state") == "SKIPPED" else API_STATES.get(run.get("state") or "", UNKNOWN)
    # of two records the one that knows an end is the newer
    state = told if told in ENDED or found.state == UNKNOWN else found.state
    limits = _limits(run.get("pipeline_spec") or {})
    return replace(
        found,
        name=run.get("display_name") or found.name,
        state=KILLED if stopped and state == FAILED else state,
        body=FINISHED if state == FINISHED else KILLED if stopped and found.body == FAILED else found.body,
        stopped=stopped,
        began=_time(run.get("created_at")) or found.began,
        ended=_time(run.get("finished_at")) or found.ended,
        account=run.get("service_account") or found.account,
        steps=tuple(
            _as_stopped(replace(step, limit=step.limit or limits.get(step.name, "")), stopped)
            for step in found.steps
        ),
    )


def nodes_of(workflow: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes of a Workflow by id; those of a large one are stored compressed."""
    status = workflow.get("status") or {}
    if packed := status.get("compressedNodes"):
        return dict(json.loads(gzip.decompress(base64.b64decode(packed))))
    return dict(status.get("nodes") or {})


def pod_name(workflow: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    """The name of a node's pod: Argo puts the template between the Workflow's name and the node's number."""
    metadata = workflow["metadata"]
    if (metadata.get("annotations") or {}).get(POD_NAMES) == "v1":  # a controller set up to do so
        return str(node["id"])
    return f"{metadata['name']}-{node['templateName']}-{node['id'].rpartition('-')[2]}"


def _from_nodes(workflow: Mapping[str, Any], nodes: Mapping[str, dict[str, Any]]) -> RunState:
    by_path: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for node in sorted(nodes.values(), key=lambda node: node.get("startedAt") or ""):
        by_path[ATTEMPT.sub("", node["name"])].append(node)
    paths = dict.fromkeys(filter(None, map(_step_path, by_path)))
    steps = [
        step
        for path in paths
        if (
            step := _step(
                workflow, path, by_path.get(f"{path}-driver", []), by_path.get(f"{path}.executor", [])
            )
        )
    ]
    status, metadata = workflow.get("status") or {}, workflow.get("metadata") or {}
    spec = workflow.get("spec") or {}
    messages = [status.get("message"), *(node.get("message") for node in nodes.values())]
    annotations = metadata.get("annotations") or {}
    handled = [found for path, found in by_path.items() if re.search(r"\.exit-handler-\d+$", path)]
    return RunState(
        name=annotations.get("pipelines.kubeflow.org/run_name") or metadata.get("name", ""),
        state=PHASES.get(status.get("phase") or "Pending", UNKNOWN),
        body=_phase(handled[0]) if handled else UNKNOWN,
        stopped=bool(spec.get("shutdown"))
        or spec.get("activeDeadlineSeconds") == 0
        or any(STOPPED.search(message or "") for message in messages),
        complete=True,
        began=_time(status.get("startedAt")),
        ended=_time(status.get("finishedAt")),
        account=spec.get("serviceAccountName") or "",
        steps=tuple(_named_by_siblings(steps)),
        loops=tuple(_loops(by_path, steps)),
    )


def is_step(name: str) -> bool:
    """Whether a name is that of a step, and not of what the graph has around the steps."""
    return not AROUND.fullmatch(name)


def _step_path(path: str) -> str:
    """Path of the step that a node belongs to; "" for the graph around the steps."""
    parent, _, leaf = path.rpartition(".")
    if leaf == "executor":
        return parent
    return path.removesuffix("-driver") if leaf.endswith("-driver") else ""


def _phase(tries: Iterable[Mapping[str, Any]]) -> str:
    """State of what was tried: Argo's node over the tries says it, else the last of them."""
    tries = list(tries)
    over = [node for node in tries if node["type"] == "Retry"]
    return PHASES.get((over or tries)[-1].get("phase") or "Pending", UNKNOWN)


def _step(
    workflow: Mapping[str, Any], path: str, drivers: list[dict[str, Any]], executors: list[dict[str, Any]]
) -> Step | None:
    name = path.rpartition(".")[2]
    inside = ITERATION.match(path)
    around = not is_step(name)
    ran = [node for node in executors if node["type"] == "Pod"]
    state = _phase(executors or drivers) if executors or drivers else UNKNOWN
    if not executors and state == FINISHED:
        state = RUNNING  # its own pod comes next
    pods = ran or [node for node in drivers if node["type"] == "Pod"]
    failed = [node for node in pods if PHASES.get(node.get("phase") or "") == FAILED]
    message = str((failed or [{}])[-1].get("message") or "")
    if state == RUNNING and failed:
        message = (
            f"try {len(pods)} ended: {message}"
            if pods[-1] in failed
            else f"try {len(pods)}, before: {message}"
        )
    elif state in (RUNNING, PENDING) and pods:
        message = str(pods[-1].get("message") or "")
    if around and (state != FAILED or ENDED_BY_STOP.search(message)):
        return None
    times = [*drivers, *executors]
    item, limit = next((found for found in map(_patched, reversed([*drivers, *ran])) if any(found)), ("", ""))
    return Step(
        name=(START if name == "root" else _loop_name(drivers) or name) if around else name,
        state=state,
        loop=inside[1] if inside else "",
        index=int(inside[2]) if inside else None,
        item=item,
        began=_time((ran or times)[0].get("startedAt")),
        ended=_time(times[-1].get("finishedAt")) if state not in (RUNNING, PENDING) else None,
        node=pods[-1]["id"] if pods else "",
        pod=pod_name(workflow, pods[-1]) if pods else "",
        message=message,
        limit=limit,
        by_driver=not executors and state == FAILED,
    )


def _parameters(node: Mapping[str, Any]) -> dict[str, str]:
    lists = [(node.get(side) or {}).get("parameters") or [] for side in ("inputs", "outputs")]
    return {each["name"]: str(each.get("value") or "") for each in [*lists[0], *lists[1]]}


def _patched(node: Mapping[str, Any]) -> tuple[str, str]:
    """Name of the item and limit of memory that the driver wrote into its patch of the pod."""
    item = limit = ""
    with suppress(ValueError, LookupError, TypeError, AttributeError):
        main = json.loads(_parameters(node)["pod-spec-patch"])["containers"][0]
        limit = str(((main.get("resources") or {}).get("limits") or {}).get("memory") or "")
        words = [*(main.get("command") or []), *(main.get("args") or [])]
        given = json.loads(words[words.index("--executor_input") + 1])["inputs"]["parameterValues"]["item"]
        item = str(given["name"])
    return item, limit


def _named_by_siblings(steps: list[Step]) -> list[Step]:
    """The steps of one item know its name from each other."""
    names = {(step.loop, step.index): step.item for step in steps if step.item}
    return [replace(step, item=step.item or names.get((step.loop, step.index), "")) for step in steps]


def _loop_name(drivers: Iterable[Mapping[str, Any]]) -> str:
    """The name that the pipeline gives a loop; a graph's task carries it."""
    for node in drivers:
        if found := re.search(r'"taskInfo":\{"name":"([^"]+)"', _parameters(node).get("task", "")):
            return found[1]
    return ""


def _loops(by_path: Mapping[str, list[dict[str, Any]]], steps: Iterable[Step]) -> Iterable[Loop]:
    for path, found in by_path.items():
        if not path.endswith(".iteration-driver"):
            continue
        counts = [_parameters(node).get("iteration-count", "") for node in found]
        total = max((int(count) for count in counts if count.isdigit()), default=0)
        inside = path.removesuffix(".iteration-driver")
        done = sum(
            any(node.get("phase") == "Succeeded" for node in tries)
            for other, tries in by_path.items()
            if re.fullmatch(re.escape(inside) + r"\.iteration-iterations\(\d+:\d+\)", other)
        )
        within = next((step.name for step in steps if step.loop == inside), "")
        if total:
            yield Loop(_loop_name(found) or within or inside.rpartition(".")[2], done, total)


def _from_tasks(tasks: list[dict[str, Any]]) -> RunState:
    """What the API says without Argo's record: steps and pods by name and time, neither items nor messages.

    The API gives a node's children by id (its `pod_name` is no pod's name) and no node's own: a pod is known
    as a child of the task over its tries, which begins and ends with the step that it belongs to.
    """
    named = [task for task in tasks if task.get("display_name")]
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for task in sorted(named, key=lambda task: task.get("start_time") or ""):
        by_name[task["display_name"]].append(task)
    left = list(by_name["executor"])
    steps = []
    for name in [each.removesuffix("-driver") for each in by_name if each.endswith("-driver")]:
        around = not is_step(name)
        refused = [task for task in by_name[f"{name}-driver"] if task.get("state") == "FAILED"]
        shown = START if name == "root" else name
        steps += [
            _task_step(shown, task, _children(task), by_driver=True)
            for task in refused[-1 if around else 0 :]
        ]
        for task in by_name[name] if not around else ():
            if task.get("state") is None:
                steps.append(Step(name, OMITTED))
                continue
            its = next((each for each in left if _same_time(each, task)), None)
            if its is not None:
                left.remove(its)
            step = _task_step(name, task, _children(its or {}), by_driver=False)
            skipped = its is not None and its.get("state") == "SKIPPED"
            steps.append(replace(step, state=CACHED) if skipped else step)
        begun = [task for task in by_name[f"{name}-driver"] if task.get("state") in ("RUNNING", "PENDING")]
        steps += [_task_step(name, task, [], by_driver=False) for task in begun if not around]
    body = [
        task for name, each in by_name.items() if re.fullmatch(r"exit-handler-\d+", name) for task in each
    ]
    return RunState(
        body=API_STATES.get(body[-1].get("state") or "", UNKNOWN) if body else UNKNOWN, steps=tuple(steps)
    )


def _same_time(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Argo writes a step's two nodes down one after the other: a second may lie between."""
    times = [(_time(one.get(key)), _time(other.get(key))) for key in ("start_time", "end_time")]
    return all(a == b or (a and b and abs((a - b).total_seconds()) <= 2) for a, b in times)


def _children(task: Mapping[str, Any]) -> list[str]:
    return [each["pod_name"] for each in task.get("child_tasks") or [] if each.get("pod_name")]


def _task_step(name: str, task: Mapping[str, Any], pods: list[str], by_driver: bool) -> Step:
    return Step(
        name,
        API_STATES.get(task.get("state") or "", UNKNOWN),
        began=_time(task.get("start_time")),
        ended=_time(task.get("end_time")),
        node=pods[-1] if pods else "",
        message=(task.get("error") or {}).get("message") or "",
        by_driver=by_driver,
    )


def _as_stopped(step: Step, stopped: bool) -> Step:
    """A step that ended because the run was stopped has not failed."""
    by_stop = stopped and step.state == FAILED and ENDED_BY_STOP.search(step.message)
    return replace(step, state=KILLED) if by_stop else step


def _limits(spec: Mapping[str, Any]) -> dict[str, str]:
    """Step -> its memory, as the compiled pipeline has it."""
    spec = spec.get("pipeline_spec") or spec
    executors = (spec.get("deploymentSpec") or {}).get("executors") or {}
    return {
        name.removeprefix("exec-"): str(
            ((each.get("container") or {}).get("resources") or {}).get("resourceMemoryLimit") or ""
        )
        for name, each in executors.items()
    }


def _time(text: str | None) -> datetime | None:
    """A moment of the API; Go's zero and the epoch stand for none."""
    if not text or text.startswith(("0001", "1970")):
        return None
    return datetime.fromisoformat(text)
