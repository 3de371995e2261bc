"""A tuning on a cluster: an OptimizationJob of Kubeflow Trainer, or an Experiment of Katib over TrainJobs.

Either one runs all combinations of the grid, each in a TrainJob that trains with the values that it finds in
its variables (`runtime.trial`), and chooses by the one metric that a trial reports. All parameters of a trial
stand in the object: the workspace may hold the params.yaml of another preset.
"""

import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from crossearth.components.ablate.grid import Job
from crossearth.components.pods.launch import kubernetes_name
from crossearth.components.pods.train_job import LONGEST_NAME, NODE, TrainJobConfig, train_job_spec
from crossearth.components.runtime.trial import METRIC, parameter, variable, written
from crossearth.components.train.setup import flat
from crossearth.data.common.errors import InputError

GROUPS = {  # kind -> group, version, plural; the first one that is there is taken
    "OptimizationJob": ("trainer.kubeflow.org", "v1alpha1", "optimizationjobs"),
    "Experiment": ("kubeflow.org", "v1beta1", "experiments"),
}
# what an OptimizationJob takes at most
MOST_TRIALS, LONGEST_VALUE = 100, 64
TRIAL_TAIL = 10  # "-trial-100", and Katib's eight letters: what follows its name in those of its TrainJobs
TAKEN_UP_S = 30.0


def manifest(
    kind: str,
    recipe: str,
    trials: Sequence[Job],
    config: TrainJobConfig,
    workspace: str,
    runtime_kind: str,
    parallel: int,
) -> dict[str, Any]:
    """The object that runs all trials.

    Args:
        kind: OptimizationJob or Experiment.
        trials: all combinations of one grid.
        workspace: folder of the pods with params.yaml, ingested tiles and styles.
        runtime_kind: of `config.runtime`.
        parallel: trials at a time.

    Raises:
        InputError: more trials or a longer value than an OptimizationJob takes, or a name that no variable
            has.
    """
    # the grid's values in their order; all combinations of them are the trials
    space = {
        key: list(dict.fromkeys(written(each.cell.values[key]) for each in trials))
        for key in trials[0].cell.values
    }
    others = {key: value for key, value in flat(trials[0].parameters).items() if key not in {*space, "seed"}}
    fixed = {variable(key): written(value) for key, value in others.items()}
    arguments = ["train", recipe]
    name = kubernetes_name(
        ["crossearth", "tune", recipe], [space, fixed, workspace, config.image], LONGEST_NAME - TRIAL_TAIL
    )
    spec = train_job_spec(config, runtime_kind, arguments, workspace)
    spec["trainer"]["env"] += [{"name": each, "value": value} for each, value in fixed.items()]
    number, parallel = len(trials), min(parallel, len(trials))
    if kind == "OptimizationJob":
        made = _optimization_job(space, spec, number, parallel)
    else:
        made = _experiment(space, spec, number, parallel)
    group, version, _ = GROUPS[kind]
    return {
        "apiVersion": f"{group}/{version}",
        "kind": kind,
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/name": "crossearth"},
            **({"namespace": config.namespace} if config.namespace else {}),
        },
        "spec": made,
    }


def _optimization_job(
    space: dict[str, list[str]], spec: dict[str, Any], trials: int, parallel: int
) -> dict[str, Any]:
    """Its controller makes the variables of the parameters' names."""
    if trials > MOST_TRIALS:
        raise InputError(f"{trials} combinations", expected=f"at most {MOST_TRIALS} in an OptimizationJob")
    for key, values in space.items():
        for value in values:
            if not 1 <= len(value) <= LONGEST_VALUE:
                expected = f"1 to {LONGEST_VALUE} letters in an OptimizationJob"
                raise InputError(f"{key}: {value!r}", expected=expected)
    return {
        "objectives": [{"metric": METRIC, "direction": "Maximize"}],
        "searchAlgorithm": {"grid": {}},
        "parameters": [
            {"name": parameter(key), "searchSpace": {"categorical": {"choices": values}}}
            for key, values in space.items()
        ],
        "numTrials": trials,
        "parallelTrials": parallel,
        "trainJobTemplate": {"spec": spec},
    }


def _experiment(
    space: dict[str, list[str]], spec: dict[str, Any], trials: int, parallel: int
) -> dict[str, Any]:
    """Katib writes the values into the TrainJob, and reads the metric from what the first node prints."""
    found = [{"name": variable(key), "value": f"${{trialParameters.{parameter(key)}}}"} for key in space]
    trainer = {**spec["trainer"], "env": [*spec["trainer"]["env"], *found]}
    return {
        "objective": {
            "type": "maximize",
            "objectiveMetricName": METRIC,
            # else the highest: a trial that was started again reports twice
            "metricStrategies": [{"name": METRIC, "value": "latest"}],
        },
        "algorithm": {"algorithmName": "grid"},
        "metricsCollectorSpec": {"collector": {"kind": "StdOut"}},
        "parameters": [
            {"name": parameter(key), "parameterType": "categorical", "feasibleSpace": {"list": values}}
            for key, values in space.items()
        ],
        "maxTrialCount": trials,
        "parallelTrialCount": parallel,
        "maxFailedTrialCount": trials,  # as in a grid here: what can be trained is
        "trialTemplate": {
            "primaryContainerName": NODE,
            "trialParameters": [{"name": parameter(key), "reference": parameter(key)} for key in space],
            "trialSpec": {
                "apiVersion": "trainer.kubeflow.org/v1alpha1",
                "kind": "TrainJob",
                "spec": {**spec, "trainer": trainer},
            },
        },
    }


class Cluster:
    """A cluster's objects of custom kinds, in one namespace."""

    def __init__(self, namespace: str | None) -> None:
        """The cluster of kubectl's current context, or that of this pod; None = the context's namespace.

        Raises:
            InputError: kubectl has no context.
        """
        from kubeflow.common.utils import get_default_target_namespace
        from kubernetes import client, config

        try:
            config.load_config()
        except config.ConfigException as error:
            raise InputError(
                f"no cluster: {error}",
                where="kubectl's configuration",
                next_step="kubectl config get-contexts; without a cluster: --kind and --output",
            ) from error
        self.api = client.CustomObjectsApi()
        self.namespace = namespace or get_default_target_namespace()

    def kind(self) -> str:
        """What the cluster has for tunings.

        Raises:
            InputError: neither kind, or no answer.
        """
        for kind, (group, version, plural) in GROUPS.items():
            found = self._ask("get_api_resources", group, version)
            if found and plural in {each.name for each in found.resources}:
                return kind
        raise InputError(
            "the cluster has neither OptimizationJobs nor Experiments",
            where="kinds",
            next_step="install Katib, or a Kubeflow Trainer after 2.3",
        )

    def runtime_kind(self, name: str) -> str:
        """Of a training runtime: that of the namespace goes before the cluster's, as in Kubeflow's SDK.

        Raises:
            InputError: there is none of this name, or it may not be read.
        """
        group, version, _ = GROUPS["OptimizationJob"]
        if self._ask(
            "get_namespaced_custom_object", group, version, self.namespace, "trainingruntimes", name
        ):
            return "TrainingRuntime"
        if self._ask("get_cluster_custom_object", group, version, "clustertrainingruntimes", name):
            return "ClusterTrainingRuntime"
        raise InputError(
            f"namespace {self.namespace} has no training runtime {name!r}, nor has the cluster",
            where="values: trainer.runtime",
            next_step="kubectl get clustertrainingruntimes,trainingruntimes; see infra/kustomize/trainer",
        )

    def create(self, wanted: dict[str, Any]) -> None:
        """Creates an object.

        Raises:
            InputError: it is there already, or may not be created.
        """
        group, version, plural = GROUPS[wanted["kind"]]
        name = wanted["metadata"]["name"]
        if self._ask("get_namespaced_custom_object", group, version, self.namespace, plural, name):
            raise InputError(
                "is there already: the same grid, image and workspace",
                where=f"{wanted['kind']} {self.namespace}/{name}",
                next_step=f"kubectl -n {self.namespace} get {plural}.{group} {name} -o yaml",
            )
        self._ask("create_namespaced_custom_object", group, version, self.namespace, plural, wanted)

    def is_taken_up(self, wanted: dict[str, Any], seconds: float = TAKEN_UP_S) -> bool:
        """Whether a controller has written into the object's status, within so many seconds.

        Kubeflow Trainer had the kind OptimizationJob in its master for a time without a controller of it.
        """
        group, version, plural = GROUPS[wanted["kind"]]
        name, end = wanted["metadata"]["name"], time.monotonic() + seconds
        while True:
            found = self._ask("get_namespaced_custom_object", group, version, self.namespace, plural, name)
            if found and found.get("status"):
                return True
            if time.monotonic() > end:
                return False
            time.sleep(1)

    def _ask(self, call: str, *words: Any) -> Any:
        """What the cluster answers; None where it has no such thing."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        where = self.api.api_client.configuration.host
        try:
            return getattr(self.api, call)(*words)
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND and call.startswith("get"):
                return None
            raise InputError(
                f"HTTP {error.status}: {error.reason}",
                where=f"{where}: {' '.join(str(word) for word in words if isinstance(word, str))}",
                next_step="look at `kubectl auth can-i create trainjobs`, and at your context",
            ) from error
        except HTTPError as error:
            raise InputError(f"does not answer: {error}", where=where) from error
