"""The end of a pipeline: tells MLflow how it went and why, whatever it was that failed."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from crossearth.components.pods import own_pod
from crossearth.components.pods import workspace as shared
from crossearth.components.pods.reason import Reason, explain
from crossearth.components.pods.state import ENDED, FAILED, FINISHED, KILLED, UNKNOWN, RunState, read_run
from crossearth.components.runtime.tracking import end_runs, start_run
from crossearth.data.common.errors import InputError, without_credentials
from crossearth.data.common.files import digest

WORKFLOWS = ("argoproj.io", "v1alpha1")
WORKFLOW_LABEL = "workflows.argoproj.io/workflow"
TRIES, BACKOFF = 6, 1.0  # to reach an API that is away or busy: half a minute
LOG_LINES = 400
# of a pipeline -> MLflow's own; an end that is not known must not look like success
STATUS = {UNKNOWN: FAILED}
# what Kubeflow hands an exit handler; RUNNING says nothing: it stands there after every end
HANDED = {"COMPLETE": FINISHED, "SUCCEEDED": FINISHED, "FAILED": FAILED}


def finish_pipeline(workspace: str, pipeline: str, workflow: str, state: str, message: str) -> None:
    """Decides how a pipeline ended from the cluster's own record, else from what Kubeflow and the steps say.

    Args:
        workspace: the shared folder; it may be what failed.
        pipeline: name of the run.
        workflow: name of Argo's Workflow, "" = the label of this pod names it.
        state, message: what Kubeflow hands an exit handler.
    """
    here = True
    try:
        shared.enter(workspace)
    except InputError as error:
        here = False
        print(f"the workspace cannot be entered: {error}", flush=True)
    notes: list[dict[str, str]] = []
    if here:
        with suppress(InputError, OSError):
            notes = shared.failures()
    run, reasons, unread = _look(workflow, notes)
    if run.body not in ENDED:
        reasons = reasons or [_noted(note) for note in notes]
        run = replace(run, body=FAILED if reasons else HANDED.get(state, UNKNOWN))
    where = [each for reason in reasons for each in reason.steps]
    words = [str(reason) for reason in reasons]
    if run.body == KILLED:
        stopped = [str(step) for step in run.of(KILLED)]
        where = [*stopped, *where]
        words = [f"stopped by a person in {', '.join(stopped) or 'no step'}", *words]
    elif run.body != FINISHED and not words:
        words = [message or f"why is not known: {unread or 'no step says it'}"]
    tags = {
        "pipeline": pipeline,
        "pipeline_state": run.body,
        "failed_step": where[0] if where else "",
        "failure": without_credentials("\n".join(words))[:5000],
    }
    print(json.dumps(tags, indent=2), flush=True)
    if not here and not os.environ.get("MLFLOW_TRACKING_URI"):
        print("no MLflow: its file lies in the workspace", flush=True)
        return
    status = STATUS.get(run.body, run.body)
    failed = sum(len(reason.steps) for reason in reasons)
    with start_run(f"pipeline {pipeline}", key=digest([pipeline, workflow]), tags=tags) as record:
        record.log_metrics({"failed_steps": failed})
        record.end_as(status)
    if here and run.body != FINISHED:
        ended = end_runs(shared.run_id(), status, tags["failure"])
        print(f"ended {ended} runs of this pipeline in MLflow whose steps could not", flush=True)


def _noted(note: dict[str, str]) -> Reason:
    what, _, advice = note["message"].partition("\n  next: ")
    return Reason((f"{note['step']} {note['item']}".strip(),), what, advice)


def _look(workflow: str, notes: Sequence[dict[str, str]]) -> tuple[RunState, list[Reason], str]:
    """The run by its Workflow, the reasons, and why it cannot be read if it cannot."""
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        return RunState(), [], "no cluster, no record"
    try:
        cluster = _Cluster()
        record = cluster.workflow(workflow)
        run, reasons = explain(read_run(None, record), lambda step: cluster.log(step.pod), notes)
    except Exception as error:  # another release's record may look otherwise, and MLflow is told all the same
        words = without_credentials(str(error) or type(error).__name__)
        print(f"Argo's record of the run cannot be read: {words}", flush=True)
        return RunState(), [], words
    return run, reasons, ""


class _Cluster:
    """The cluster's API as this pod's account may use it."""

    def __init__(self) -> None:
        from kubernetes import client, config
        from urllib3.util import Retry

        try:
            config.load_incluster_config()
        except config.ConfigException as error:
            raise InputError(f"no account in this pod: {error}") from error
        configuration = client.Configuration.get_default_copy()
        configuration.retries = Retry(TRIES, backoff_factor=BACKOFF, status_forcelist=(500, 502, 503, 504))
        connection = client.ApiClient(configuration)
        self.pods, self.objects = client.CoreV1Api(connection), client.CustomObjectsApi(connection)
        self.namespace = own_pod.namespace()

    def workflow(self, name: str) -> dict[str, Any]:
        """The run's Workflow; InputError where it may not be read, or the API does not answer."""
        if not name:
            pod = self._ask("get pods", self.pods.read_namespaced_pod, own_pod.name(), self.namespace)
            name = (pod.metadata.labels or {}).get(WORKFLOW_LABEL, "")
        get = self.objects.get_namespaced_custom_object
        return dict(self._ask("get workflows", get, *WORKFLOWS, self.namespace, "workflows", name))

    def log(self, pod: str) -> str | None:
        """The log of a pod; None where it is gone or may not be read."""
        read, options = self.pods.read_namespaced_pod_log, {"container": "main", "tail_lines": LOG_LINES}
        with suppress(InputError):
            return str(self._ask("get pods/log", read, pod, self.namespace, **options))
        return None

    def _ask(self, right: str, question: Any, *arguments: Any, **options: Any) -> Any:
        """The answer; what is refused, or away for long, becomes InputError."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return question(*arguments, **options)
        except ApiException as error:
            raise InputError(
                f"the cluster's API refuses: {error.status} {error.reason}",
                next_step=f"infra/kustomize/base/rbac.yaml grants `{right}`",
            ) from error
        except HTTPError as error:
            raise InputError(f"the cluster's API is away: {error}") from error
