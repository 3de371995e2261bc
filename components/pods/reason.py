"""Why the steps of a run failed, in plain words, each with what to do next; equal failures are one reason."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from crossearth.components.pods.state import CACHED, FAILED, KILLED, START, RunState, Step, is_step
from crossearth.data.common.errors import without_credentials

Log = Callable[[Step], str | None]  # of a step's last pod; None = gone

LOGS_READ = 16  # of one run: a loop over many items mostly fails for one reason
TAIL = 12
OVERLAYS = "infra/kustomize/standalone (infra/kustomize/profile in a Profile)"

NO_ACCOUNT = re.compile(r'service account (\S+?)/(\S+?): serviceaccounts? "[^"]+" not found')
FORBIDDEN = re.compile(r'(?:\w+ "([^"]*)" is forbidden: )?User "([^"]+)" cannot (\w+) resource "([^"]+)"')
ENDED_FROM_OUTSIDE = re.compile(r"exit (?:status|code) 143")
TOO_SLOW = re.compile(r"active on the node longer than the specified deadline|DeadlineExceeded")
UNWRITABLE = re.compile(r"(\S+): user (\d+) may not write here")
OUT_OF_MEMORY = re.compile(r"OOMKilled|exit status 137|exit code 137")
OF_A_NODE = re.compile(r"pod \S+ was killed for memory \(OOMKilled\) at its limit of ([^\s;]+)")
REFUSED = re.compile(
    r"^(?:.*InputError: |error: )(.+(?:\n  (?:expected|next): .*(?:\n(?:    |  -).*)*)*)", re.M
)
UNCAUGHT = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Exit|Interrupt|Warning)): (.+)$", re.M)
FATAL = re.compile(r"^F\d{4} .*?\] (.*)$", re.M)
NOT_HERE = re.compile(r"artifacts/.*(no such|nothing here|not ingested|no archives)")
WITHOUT_WORDS = re.compile(
    r"^main: Error \(exit code \d+\)$|^failed to execute component: exit status \d+$|^$"
)
# of a pod's log: the launcher's lines, kfp's own, and the step's input that kfp prints as JSON
NOISE = re.compile(r"^[IWEF]\d{4} |^\[KFP Executor |^Found credentials")
GIVEN = re.compile(r"Got executor_input:\n(\{.*?^\})", re.M | re.S)
COMPONENT = re.compile(r'Loading KFP component "(\w+)"')
ITEM = re.compile(r'"item": \{.*?"name": "([^"]+)"', re.S)
LOOP_ITEM = re.compile(r'loop-item"\s+value:\{string_value:"\{.*?\\"name\\":\\"([^"\\]+)')


@dataclass(frozen=True)
class Reason:
    """Why steps failed.

    Attributes:
        steps: names of the steps, with their items.
        what: in one or two lines.
        next_step: what to do, "" = not known.
        tail: last lines of one pod's log; of a log that is gone, that it is gone.
    """

    steps: tuple[str, ...]
    what: str
    next_step: str = ""
    tail: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = f"{_together(self.steps)}: {self.what}"
        return f"{lines}\n  next: {self.next_step}" if self.next_step else lines


def explain(
    run: RunState, log: Log, notes: Iterable[Mapping[str, str]] = (), most: int = LOGS_READ
) -> tuple[RunState, list[Reason]]:
    """Finds the reasons of the steps that failed.

    Args:
        log: reads the log of a step's last pod.
        notes: what failed steps wrote into the workspace: step, item, message.
        most: logs to read.

    Returns:
        The run, whose failed steps have the names of their items where a log has told them, and the reasons:
        one for equal ones, the exit handler's last.
    """
    said = {(note["step"], note["item"]): note["message"] for note in notes}
    steps: list[Step] = []
    found: dict[tuple[str, str], Reason] = {}
    for step in sorted(run.steps, key=lambda step: step.name == "finish"):
        if step.state != FAILED:
            steps.append(step)
            continue
        read = bool(step.node) and most > 0
        text = log(step) if read else None
        text = without_credentials(text) if text is not None else None
        most -= 1
        step = _told(step, text or "")
        words = said.get((step.name, step.item))
        if words is None and not step.item and text is None:
            words = next((message for (name, _), message in said.items() if name == step.name), None)
        why = _reason(run, step, text, words)
        if run.stopped and not why:  # it had no reason of its own
            steps += [replace(step, state=KILLED)] if is_step(step.name) else []
            continue
        steps.append(step)
        what, next_step = why or _unknown(run, step, text, read)
        general = re.sub(rf"(?<![\w-]){re.escape(step.item)}(?![\w-])", "NAME", what) if step.item else what
        same = found.get((step.name, general))
        found[step.name, general] = (
            replace(same, steps=(*same.steps, str(step)), what=general)
            if same
            else Reason((str(step),), what, next_step, _tail(text, step.by_driver) if read else ())
        )
    return replace(run, steps=tuple(steps)), list(found.values())


def _told(step: Step, log: str) -> Step:
    """The step as its pod's log names it."""
    component, given = COMPONENT.search(log), GIVEN.search(log)
    # a driver says the items of all loops around the step, its own last
    found = ITEM.findall(given[1]) if given else LOOP_ITEM.findall(log)[-1:]
    return replace(
        step, name=component[1] if component else step.name, item=step.item or next(iter(found), "")
    )


def _reason(run: RunState, step: Step, log: str | None, words: str | None) -> tuple[str, str] | None:
    """What went wrong and what to do; None where nothing says it."""
    text = f"{step.message}\n{log or ''}"
    if found := NO_ACCOUNT.search(text):
        return (
            f"no ServiceAccount {found[2]} in namespace {found[1]}, where this server's pods run",
            f"kubectl apply -k {OVERLAYS} makes it, or name one that is there with --service-account",
        )
    if found := FORBIDDEN.search(text):
        name, who, verb, resource = found.groups()
        account = who.rpartition(":")[2]
        which = f"{resource} {name}" if name else resource
        return (
            f"the account {account} lacks a right: {verb} {which}",
            f"kubectl apply -k {OVERLAYS} grants it; or add `{verb}` on `{resource}` to the account's Role",
        )
    if OUT_OF_MEMORY.search(text):
        # beside a TrainJob the step's own pod only follows it
        node = OF_A_NODE.search(f"{words}\n{text}")
        limit = node[1] if node else step.limit
        limit = f" of {limit}" if limit else ", which this record does not name"
        return (
            f"killed for memory (OOMKilled) at its limit{limit}",
            f"raise steps.{step.name}.memory in the values file and submit again: "
            "what is finished comes from the cache",
        )
    if TOO_SLOW.search(step.message):
        return (
            f"stopped after its time, steps.{step.name}.timeout_s of the values file",
            "give it more and submit again: a training goes on at its last checkpoint",
        )
    if found := UNWRITABLE.search(words or text):
        return (
            f"the workspace's claim is not prepared: user {found[2]} may not write to {found[1]}",
            f"kubectl apply -k {OVERLAYS}: its Job crossearth-workspace gives the claim away; submit again",
        )
    refused = words or next((found[1] for found in reversed(list(REFUSED.finditer(log or "")))), "")
    if refused:
        what, _, advice = refused.partition("\n  next: ")
        cached = [each for each in run.of(CACHED) if not each.loop]
        if NOT_HERE.search(what) and cached:
            names = ", ".join(dict.fromkeys(each.name for each in run.of(CACHED)))
            return (
                f"{what}\n  the workspace is new or was emptied: {names} came from Kubeflow's cache, "
                "which keeps no bytes",
                f"submit again with --no-cache: everything is made again, {names} too",
            )
        return what, advice
    if uncaught := list(UNCAUGHT.finditer(log or "")):
        return f"{uncaught[-1][1]}: {uncaught[-1][2]}", ""
    if "argument list too long" in text:
        return (
            "what it is given is longer than one argument may be (128 KiB)",
            "submit fewer recipes, or smaller catalogs, at a time",
        )
    fatal = [found[1] for found in FATAL.finditer(log or "")]
    if fatal and not WITHOUT_WORDS.match(fatal[-1]):
        who = "Kubeflow's driver refused it" if step.by_driver else "Kubeflow's launcher"
        words = fatal[-1].rpartition("failed: ")[2].removeprefix("failed to execute component: ")
        advice = "the graph does not fit this Kubeflow, see infra/README.md for the versions; submit it again"
        return f"{who}: {words}", advice if step.by_driver else ""
    if ENDED_FROM_OUTSIDE.search(text) and not run.stopped:
        return (
            "ended from outside (SIGTERM): the run was stopped, or its node went away",
            "submit again: a training goes on at its last checkpoint, what is finished comes from the cache",
        )
    if not WITHOUT_WORDS.match(step.message) and step.message:
        return step.message, ""
    return None


def _unknown(run: RunState, step: Step, log: str | None, read: bool) -> tuple[str, str]:
    """What is said where no word of the pod is left."""
    how = f" ({step.message})" if step.message else ""
    if step.name == START and log is None:
        account = f"the account {run.account}".rstrip()
        there = "lacks a right" if step.message.startswith("main:") else "is not there, or lacks a right"
        return (
            f"Kubeflow's driver failed before any step{how} and its log is gone; "
            f"most likely {account} {there}: the driver has to `get configmaps` (kfp-launcher)",
            f"kubectl apply -k {OVERLAYS} makes the account with the rights `get configmaps` and "
            "`create, patch workflowtaskresults`",
        )
    gone = "was not read" if not read else "is gone" if log is None else "has no error"
    return f"failed for a reason that is not known{how}, its log {gone}", ""


def _tail(log: str | None, by_driver: bool) -> tuple[str, ...]:
    if log is None:
        return ("(the log is gone: neither the pod's nor an archived one can be read)",)
    lines = [line for line in GIVEN.sub("", log).splitlines() if line.strip() and not NOISE.match(line)]
    lines = (
        [line for line in log.splitlines() if FATAL.match(line)] if by_driver else lines or log.splitlines()
    )
    return tuple(without_credentials(line[:500]) for line in lines[-TAIL:])


def _together(names: Sequence[str]) -> str:
    """`ingest a, ingest b` as `ingest a, b`."""
    first = names[0].partition(" ")[0]
    rest = [name.removeprefix(first).strip() for name in names]
    return f"{first} {', '.join(rest)}".strip()
