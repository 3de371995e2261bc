"""One MLflow run per recipe: curves, artifacts and tags, from a thread that never stops the training.

What is logged goes into a queue; a writer thread imports MLflow, finds or makes the run and sends the queue.
A server that goes away is tried again with growing pauses; nothing that it does raises in the caller.
"""

import getpass
import json
import logging
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossearth.components.runtime.tracking_internals import saved_view
from crossearth.components.runtime.tracking_server import refusal
from crossearth.components.runtime.tracking_store import (
    DATABASE,
    LOST_ARTIFACTS,
    SQLITE,
    artifact_root,
    create_database,
    database_of,
    experiment_id,
    first_use,
    keep_relative,
    lost_root,
)
from crossearth.data.common.errors import without_credentials

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient

EXPERIMENT_NAME = "crossearth"
UI = "http://127.0.0.1:5000"  # where `mlflow ui` answers
VIEW = "crossearth-recipes"  # key of the saved view that `show` links to
# set in each pod by Kubeflow Pipelines' MLflow plugin: ours lie below its run, which is its own to end
PARENT_RUN, EXPERIMENT = "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"
PARENT_TAG = "mlflow.parentRunId"
KEY_TAG = "input_hash"
PIPELINE_TAG = "pipeline_run"  # the pipeline's run that a run belongs to
PIPELINE_RUN = Path("artifacts/run/id")  # in a pipeline's workspace: of the run that it is in now
DESCRIPTION_LENGTH = 5000  # of a tag's value, the least that MLflow's stores take
DATASET_DIGEST_LENGTH = 36  # MLflow's own limit
METRICS_PER_REQUEST = 1000  # MLflow's own limit of one batch
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
FLUSH_SECONDS = 20.0  # how long a closed run waits for a server that does not answer
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
ANSWER_SECONDS = "10"
TRANSFER_SECONDS = "120"  # MLflow's own: before it answers, a server puts a whole model into its store
UPLOAD_SECONDS = 900.0  # and for one that does: a model is large

LOAD_SECONDS = 5.0  # between two looks at the load of the machine
# codes of a server that refuses a request for good; with others it is only unreachable or busy
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED")

log = logging.getLogger(__name__)

Operation = Callable[["MlflowClient", str], object]


def tracking_uri() -> str:
    """$MLFLOW_TRACKING_URI, else a SQLite file below ./artifacts/mlflow."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{DATABASE.resolve()}"


def runs_page(server: str) -> str:
    """Address of the saved view of the recipes' runs in the UI of MLflow at `server`.

    MLflow opens in its mode for agents unless an address says otherwise, and shows no runs there.
    """
    database = database_of(tracking_uri())
    try:
        if database:
            found = experiment_id(database, EXPERIMENT_NAME)
        else:
            experiment = connect(tracking_uri()).get_experiment_by_name(EXPERIMENT_NAME)
            found = str(experiment.experiment_id) if experiment else None
    except Exception:  # whatever a server or a file does: there is no page of it
        found = None
    page = f"experiments/{found}/runs?viewStateShareKey={VIEW}&" if found else "experiments?"
    return f"{server.rstrip('/')}/#/{page}workflowType=machine_learning"


def runs_told() -> list[str]:
    """How a person gets to the runs: where there is no server, one is to be started."""
    uri = tracking_uri()
    if uri.startswith("http"):
        return [f"runs:   open {without_credentials(runs_page(uri))}"]
    store = f"{SQLITE}{DATABASE}" if database_of(uri) == DATABASE.resolve() else without_credentials(uri)
    return [f"runs:   mlflow ui --backend-store-uri {store}", f"        then open {runs_page(UI)}"]


def connect(uri: str) -> "MlflowClient":
    """A client of the server at `uri`, whose requests fail within seconds where the server is away."""
    # by default MLflow retries for minutes inside one request, which nothing can interrupt
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault(TIMEOUT, ANSWER_SECONDS)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.tracking import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # that the server is away, ours says once
    database = database_of(uri)
    with first_use(database):
        if database:
            create_database(database)
        return MlflowClient(uri)


@contextmanager
def transferring() -> Iterator[None]:
    """Allows the server a longer time to answer, unless the user's environment sets the time."""
    before = os.environ.get(TIMEOUT)
    if before == ANSWER_SECONDS:
        os.environ[TIMEOUT] = TRANSFER_SECONDS
    try:
        yield
    finally:
        if before is not None:
            os.environ[TIMEOUT] = before


def find_run(client: "MlflowClient", tags: Mapping[str, str]) -> str | None:
    """Id of a run of any experiment that has these tags; None where there is none."""
    experiments = [each.experiment_id for each in client.search_experiments()]
    query = " and ".join(f"tags.{key} = '{value}'" for key, value in tags.items())
    found = client.search_runs(experiments, query, max_results=1)
    return str(found[0].info.run_id) if found else None


class Run:
    """A run that is being written; every method returns at once and none raises what the server does."""

    def __init__(self, writer: "_Writer") -> None:
        self._writer = writer

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Logs one point of several curves; values that are no finite number are left out."""
        now = int(time.time() * 1000)
        self._writer.metrics.extend(
            (key, float(value), now, step) for key, value in values.items() if np.isfinite(value)
        )
        self._writer.wake()

    def log_image(self, image_HW3: NDArray[np.uint8], name: str) -> None:
        """Logs an image (H, W, 3), 0..255, as the artifact `name` (e.g. "panels/000100.png")."""
        image = np.ascontiguousarray(image_HW3)
        self._writer.keep(lambda client, run_id: client.log_image(run_id, image, artifact_file=name))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Logs a file, or a folder with all in it; it must stay unchanged until the run is closed."""
        path = Path(path)
        upload = "log_artifacts" if path.is_dir() else "log_artifact"

        def send(client: "MlflowClient", run_id: str) -> None:
            with transferring():
                getattr(client, upload)(run_id, str(path), folder)

        self._writer.keep(send)

    def log_dataset(self, name: str, digest: str, folder: Path, context: str, tiles: int) -> None:
        """Notes tiles that the step read, as an input of the run.

        Args:
            name: of the domain and the split.
            digest, folder, tiles: of their manifest: its digest, where it lies, its number of tiles.
            context: what they were for: "training" or "testing".
        """

        def send(client: "MlflowClient", run_id: str) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            dataset = Dataset(
                name=name,
                digest=digest[:DATASET_DIGEST_LENGTH],
                source_type="local",
                source=json.dumps({"uri": str(folder)}),
                profile=json.dumps({"tiles": tiles, "manifest": digest}),
            )
            client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

        self._writer.do(send)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags; a later value of a key takes the place of an earlier one."""
        values = dict(tags)
        self._writer.do(
            lambda client, run_id: [client.set_tag(run_id, key, value) for key, value in values.items()]
        )

    def describe(self, markdown: str) -> None:
        """Sets the text that MLflow shows on the run's page, cut off at a line where it is too long."""
        if len(markdown) > DESCRIPTION_LENGTH:
            markdown = markdown[:DESCRIPTION_LENGTH].rpartition("\n")[0]
        self.set_tags({"mlflow.note.content": markdown})

    def save_view(self, key: str, name: str, columns: Sequence[str], order_by: str) -> None:
        """Saves a view of the experiment's table of runs, which MLflow offers under Views.

        Sorted by a metric, children stand in the table beside their parents.

        Args:
            key: identity of the view: saving it again replaces it.
            columns: metrics to show, in this order.
            order_by: the metric that sorts the table, highest first.
        """
        tag, view = saved_view(key, name, columns, order_by)

        def save(client: "MlflowClient", run_id: str) -> None:
            experiment_id = client.get_run(run_id).info.experiment_id
            client.set_experiment_tag(experiment_id, tag, view)

        self._writer.do(save)

    def end_as(self, status: str) -> None:
        """What the run ends as if nothing is raised in it: FINISHED (as without this), FAILED or KILLED."""
        self._writer.status = status

    def adopt(self, keys: Sequence[str]) -> None:
        """Makes the runs of this experiment whose `input_hash` is among `keys` children of this one."""

        def tag_children(client: "MlflowClient", run_id: str) -> None:
            experiment_id = client.get_run(run_id).info.experiment_id
            for key in keys:
                for child in client.search_runs([experiment_id], filter_string=f"tags.{KEY_TAG} = '{key}'"):
                    client.set_tag(child.info.run_id, PARENT_TAG, run_id)

        self._writer.do(tag_children)


@contextmanager
def start_run(
    name: str,
    *,
    key: str,
    tags: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
    experiment: str = EXPERIMENT_NAME,
    adds: bool = False,
) -> Iterator[Run]:
    """Opens the run whose tag `input_hash` is `key`, or creates it; closes it as FINISHED, FAILED or KILLED.

    While it is open, the load of the machine is logged as MLflow's system metrics.

    Args:
        name: the run's name, that of the recipe.
        key: identity of the run's inputs: a restarted training and a later evaluation find their run by it.
        tags: set on the run, also on one that is found.
        params: logged when the run is created.
        experiment: created on first use; $MLFLOW_EXPERIMENT_ID goes before. With $MLFLOW_RUN_ID the run lies
            below that one, which is left as it is.
        adds: whether a run that has ended stays so, with its status and duration: this adds to what another
            step did.

    Yields:
        The run. On leaving, what is queued is sent; a warning says what a server that is away did not take.
    """
    writer = _Writer(name, experiment, key, dict(tags or {}), dict(params or {}), adds)
    writer.start()
    try:
        yield Run(writer)
    except (KeyboardInterrupt, SystemExit):
        writer.status = "KILLED"
        raise
    except BaseException:
        writer.status = "FAILED"
        raise
    finally:
        writer.close()


def end_runs(pipeline_run: str, status: str, why: str) -> int:
    """Ends the runs of a pipeline's run that are RUNNING still: whoever wrote them was killed.

    Args:
        pipeline_run: the tag `pipeline_run` of the runs, "" = of none.
        status: FAILED or KILLED.
        why: becomes their tag `failure`.

    Returns:
        Number of runs that were ended; none where the server does not answer.
    """
    if not pipeline_run:
        return 0
    try:
        client = connect(tracking_uri())
        found = _given_experiment(client) or client.get_experiment_by_name(EXPERIMENT_NAME)
        query = f"tags.{PIPELINE_TAG} = '{pipeline_run}' and attributes.status = 'RUNNING'"
        runs = client.search_runs([found.experiment_id], query) if found else []
        for run in runs:
            client.set_tag(run.info.run_id, "failure", why[:DESCRIPTION_LENGTH])
            client.set_terminated(run.info.run_id, status)
        return len(runs)
    except Exception as error:  # a server may fail in any way, and how the pipeline ended is told already
        log.warning("runs stay RUNNING: %s", without_credentials(str(error)))
        return 0


class _Writer(threading.Thread):
    """Sends the queues of one run in order, one request at a time, until it is closed and they are empty."""

    def __init__(
        self, name: str, experiment: str, key: str, tags: dict[str, str], params: dict[str, Any], adds: bool
    ) -> None:
        super().__init__(name="mlflow-writer", daemon=True)
        self.run_name, self.experiment, self.key, self.tags, self.params = name, experiment, key, tags, params
        self.adds, self.has_ended = adds, False
        self.lost: Path | None = None
        self.load: _Load | None = None
        self.uri = tracking_uri()
        self.pipeline_run = PIPELINE_RUN.read_text().strip() if PIPELINE_RUN.is_file() else ""
        self.metrics: deque[tuple[str, float, int, int]] = deque()
        self.operations: deque[Operation] = deque()
        self.client: MlflowClient | None = None
        self.run_id = ""
        self.status = "FINISHED"
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._gave_up = threading.Event()
        self._last_error = ""
        self._refused = False
        self._sending: deque[Any] = self.operations

    def do(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.wake()

    def keep(self, operation: Operation) -> None:
        """As `do`, with what writes artifacts: not where their folder is lost."""
        self.do(lambda client, run_id: None if self.lost else operation(client, run_id))

    def wake(self) -> None:
        self._wake.set()

    def close(self) -> None:
        self.do(self._end)
        self._closing.set()
        began = time.monotonic()
        while self.is_alive() and time.monotonic() - began < UPLOAD_SECONDS:
            self.join(0.1)
            if self._last_error and (self._refused or time.monotonic() - began > FLUSH_SECONDS):
                break
        if self.is_alive() or self.metrics or self.operations:
            self._gave_up.set()
            self.wake()
            left = len(self.metrics) + len(self.operations)
            warnings.warn(
                without_credentials(
                    f"MLflow at {self.uri} did not take {left} records of {self.run_name}: {self._last_error}"
                ),
                RuntimeWarning,
                stacklevel=4,
            )

    def _end(self, client: "MlflowClient", run_id: str) -> None:
        if not self.has_ended:
            client.set_terminated(run_id, self.status)

    def run(self) -> None:
        failures = 0
        while not self._gave_up.is_set():
            self._wake.clear()
            if self.load is not None and not self._closing.is_set():
                self.metrics.extend(self.load.points())
            if self.client is not None and not self.metrics and not self.operations:
                if self._closing.is_set():
                    return
                self._wake.wait(timeout=1.0)
                continue
            try:
                self._send()
                failures, self._last_error, self._refused = 0, "", False
            except Exception as error:  # a server may fail in any way, and none may reach the training
                self._last_error = (
                    f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                )
                refusal_for_good = getattr(error, "error_code", "") in REFUSED
                if self.client is not None and (refusal_for_good or isinstance(error, FileNotFoundError)):
                    log.warning("MLflow refused a record: %s", without_credentials(str(self._last_error)))
                    self._sending.popleft()
                    continue
                refused = refusal(error, self.uri)
                if refused:
                    self._last_error = "; next: ".join(refused)
                # a training keeps trying, the server may come back; at its end no command waits for that
                self._refused = refused is not None
                self._gave_up.wait(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)])
                failures += 1

    def _send(self) -> None:
        """Sends the oldest of each queue and takes it off only when the server has it."""
        if self.client is None:
            self.client = self._open()
        if self.metrics:
            from mlflow.entities import Metric

            self._sending = self.metrics
            batch = [self.metrics[index] for index in range(min(len(self.metrics), METRICS_PER_REQUEST))]
            self.client.log_batch(self.run_id, metrics=[Metric(*point) for point in batch])
            for _ in batch:
                self.metrics.popleft()
        elif self.operations:
            self._sending = self.operations
            self.operations[0](self.client, self.run_id)
            self.operations.popleft()

    def _open(self) -> "MlflowClient":
        """Connects, and finds the run by its key or creates it."""
        client = connect(self.uri)
        from mlflow.entities import Param, RunStatus, RunTag

        with first_use(database_of(self.uri)):
            experiment_id = _experiment(client, self.experiment, self.uri)
        found = client.search_runs(
            [experiment_id], filter_string=f"tags.{KEY_TAG} = '{self.key}'", max_results=1
        )
        tags = {**self.tags, KEY_TAG: self.key}
        if self.pipeline_run:
            tags[PIPELINE_TAG] = self.pipeline_run
        if parent := os.environ.get(PARENT_RUN):
            tags[PARENT_TAG] = parent
        if found:
            self.run_id = found[0].info.run_id
            self.has_ended = self.adds and RunStatus.is_terminated(
                RunStatus.from_string(found[0].info.status)
            )
            if not self.has_ended:
                client.update_run(self.run_id, status="RUNNING")
            client.log_batch(self.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])
        else:
            origin = {
                "mlflow.user": user_name(),
                "mlflow.source.name": "crossearth",
                "mlflow.source.type": "LOCAL",
            }
            created = client.create_run(experiment_id, run_name=self.run_name, tags={**origin, **tags})
            self.run_id = created.info.run_id
            client.log_batch(
                self.run_id, params=[Param(key, str(value)) for key, value in self.params.items()]
            )
        self.lost = lost_root(client.get_experiment(experiment_id).artifact_location)
        if self.lost:
            log.warning(
                "files and pictures of %s are not kept: MLflow looks for them in %s, which is not here; %s",
                self.run_name,
                self.lost,
                LOST_ARTIFACTS,
            )
        if not self.has_ended:
            with suppress(Exception):  # a by-product, too
                self.load = _Load(self.run_id, self.uri)
        return client


class _Load:
    """The load of the machine, as MLflow's own monitor finds it.

    The thread of that one would ask the server every few seconds, and end with its first failure.
    """

    def __init__(self, run_id: str, uri: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self.monitor = SystemMetricsMonitor(run_id, tracking_uri=uri)
        self.began = self.looked = time.monotonic()
        self.monitor.collect_metrics()  # the first look has no time before it to tell of
        self._forget()

    def points(self) -> list[tuple[str, float, int, int]]:
        """A point of each curve, its step the seconds since the run was opened; none before it is time."""
        if time.monotonic() - self.looked < LOAD_SECONDS:
            return []
        self.looked = time.monotonic()
        try:
            self.monitor.collect_metrics()
            found = self.monitor.aggregate_metrics()
            self._forget()
        except Exception as error:  # a by-product: whatever a monitor does, curves and models are sent
            log.warning("the machine's load is not known: %s", error)
            return []
        now, step = int(time.time() * 1000), round(self.looked - self.began)
        return [(f"system/{name}", float(value), now, step) for name, value in found.items()]

    def _forget(self) -> None:
        for each in self.monitor.monitors:
            each.clear_metrics()


def _given_experiment(client: "MlflowClient") -> "Experiment | None":
    """The experiment of $MLFLOW_EXPERIMENT_ID; None without one, or where this server does not know it."""
    from mlflow.exceptions import MlflowException

    given = os.environ.get(EXPERIMENT)
    try:
        return client.get_experiment(given) if given else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        log.warning("no experiment %s here, as %s has it", given, EXPERIMENT)
        return None


def _experiment(client: "MlflowClient", name: str, uri: str) -> str:
    found = _given_experiment(client) or client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    database = database_of(uri)
    beside = artifact_root(database) if database else None
    # the kind decides which pages MLflow's UI opens with: runs and their charts, not traces of agents
    tags = {"mlflow.experimentKind": "custom_model_development"}
    made = str(client.create_experiment(name, artifact_location=beside, tags=tags))
    if database:
        keep_relative(database, database)
    return made


def user_name() -> str:
    """Who runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"
