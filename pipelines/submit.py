"""Compiles pipelines, runs them on this machine, submits them to a cluster, lists and stops their runs."""

import json
import os
import shutil
import signal
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import psutil
import yaml
from kfp import compiler, local
from kfp.client import Client
from kfp.dsl.graph_component import GraphComponent
from kfp.dsl.types.type_utils import get_canonical_type_name_for_type
from kfp_server_api import ApiException
from urllib3.exceptions import HTTPError as ConnectionProblem

from crossearth.components.workspace import CHECKOUT_MARKS, FAILURES
from crossearth.data.config import nearest
from crossearth.data.errors import InputError
from crossearth.data.files import atomic_path
from crossearth.pipelines.benchmark import Inputs, benchmark
from crossearth.pipelines.inference import inference
from crossearth.pipelines.resources import LOCAL, Values
from crossearth.pipelines.training import training

PIPELINES = {"benchmark": benchmark, "training": training, "inference": inference}
TOKEN, COOKIE = "CROSSEARTH_KFP_TOKEN", "CROSSEARTH_KFP_COOKIE"
HEALTH = "/apis/v2beta1/healthz"
LOGIN = f"put a token into ${TOKEN} or a file for --token-file, or the session's cookie into ${COOKIE}"
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
PATIENCE_S = 300.0  # how long `watch` waits for a host that does not answer
# a container gets these of the caller's environment; their values are shown nowhere
FORWARDED = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "CROSSEARTH_DATA",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
)
RUN_LABEL = "crossearth-run"


class PipelineError(RuntimeError):
    """A pipeline ended in another state than success; the message names the steps that failed and why."""


def build(name: str, inputs: Inputs, values: Values) -> GraphComponent:
    """The pipeline of that name, with its defaults.

    Raises:
        InputError: an unknown name.
    """
    if name not in PIPELINES:
        raise InputError(f"unknown pipeline {name!r}", expected=nearest(name, PIPELINES))
    return PIPELINES[name](inputs, values)


def compile_pipeline(name: str, inputs: Inputs, values: Values, out: Path) -> Path:
    """Writes the pipeline's YAML; the same inputs give the same bytes.

    Raises:
        InputError: an unknown name.
    """
    pipeline = build(name, inputs, values)
    with atomic_path(out) as partial:
        # the compiler looks at the suffix
        compiled = partial.with_name(partial.name + ".yaml")
        compiler.Compiler().compile(pipeline, str(compiled))
        compiled.replace(partial)
    return out


def arguments(pipeline: GraphComponent, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a pipeline's parameters, checked.

    Args:
        given: parameter -> value.

    Raises:
        InputError: an unknown parameter, a value of another type, or no value and no default.
    """
    known = pipeline.component_spec.inputs or {}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"unknown parameter {name!r}", expected=nearest(name, known))
        wanted = known[name].type
        if get_canonical_type_name_for_type(type(value)) != wanted:
            raise InputError(
                f"{value!r} is no {wanted}", where=f"--set {name}", expected=f"a {wanted}, in YAML"
            )
    absent = [name for name, spec in known.items() if not spec.optional and name not in given]
    if absent:
        raise InputError(f"no value for {', '.join(absent)}", next_step=f"--set {absent[0]}=...")
    return dict(given)


@dataclass(frozen=True)
class Docker:
    """Containers of a local run.

    Attributes:
        image: image of every step.
        shm: size of /dev/shm.
    """

    image: str
    shm: str = "1g"


def run_local(
    name: str, inputs: Inputs, given: Mapping[str, Any], workspace: Path, docker: Docker | None = None
) -> None:
    """Runs a pipeline on this machine, each step in a process or a container of its own.

    Args:
        given: values of the pipeline's parameters.
        workspace: the shared folder; made if it is not there.
        docker: containers instead of processes.

    Raises:
        InputError: a wrong parameter, a workspace that is a checkout, an image that is not here.
        PipelineError: a step failed; the message names it and has its words.
    """
    workspace = workspace.resolve()
    values = replace(LOCAL, image=docker.image) if docker else LOCAL
    pipeline = build(name, inputs, values)
    given = arguments(pipeline, {**given, "workspace": str(workspace)})
    if any((workspace / mark).exists() for mark in CHECKOUT_MARKS):
        raise InputError("this is a checkout", where=workspace, expected="a folder of its own for the run")
    # two steps at a time have a thread a core each: one that waits leaves its core to the other
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # the user's own data lie where they lie for dvc, not below the workspace
    os.environ["CROSSEARTH_DATA"] = str(Path(os.environ.get("CROSSEARTH_DATA", "datasets")).resolve())
    with _runner(workspace, docker) as runner, warnings.catch_warnings():
        try:
            workspace.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the workspace: {error}", where=workspace) from error
        shutil.rmtree(workspace / FAILURES, ignore_errors=True)
        # the image plays no part where steps run as processes
        warnings.filterwarnings("ignore", message="You may be attemping", category=RuntimeWarning)
        local.init(runner=runner, pipeline_root=str(workspace / "artifacts" / "run" / "kfp"))
        try:
            pipeline(**given)
        except RuntimeError as error:
            raise PipelineError(_story(workspace) or str(error)) from error
    # kfp takes a container that was gone before it could ask for its exit code for one that succeeded
    if story := _story(workspace):
        raise PipelineError(story)


@contextmanager
def _runner(workspace: Path, docker: Docker | None) -> Iterator[local.SubprocessRunner | local.DockerRunner]:
    """What runs the steps; no container of theirs is there any more at the end."""
    if docker is None:
        with _stopping(_end_processes):
            yield local.SubprocessRunner(use_venv=False)
        return
    from docker.types import Mount

    client = _engine(docker.image)
    mounts = [Mount(str(workspace), str(workspace), type="bind")]
    environment = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    if Path(data := os.environ["CROSSEARTH_DATA"]).is_dir():
        mounts.append(Mount(data, data, type="bind", read_only=True))
    labels = {RUN_LABEL: uuid.uuid4().hex}
    with closing(client), _stopping(lambda: _end_containers(client, labels)):
        yield local.DockerRunner(
            mounts=mounts,
            environment=environment,
            labels=labels,
            user=f"{os.getuid()}:{os.getgid()}",
            network_mode="host",
            shm_size=docker.shm,
            read_only=True,
            tmpfs={"/tmp": "exec"},  # noqa: S108
        )


def _engine(image: str) -> Any:
    """A client of the Docker engine that has the image."""
    from docker import from_env
    from docker.errors import DockerException, ImageNotFound

    try:
        client = from_env()
        client.images.get(image)
    except ImageNotFound as error:
        raise InputError(
            f"no image {image!r} here", next_step="docker build -f infra/Containerfile, see infra/README.md"
        ) from error
    except DockerException as error:
        raise InputError(
            f"no Docker engine answers: {error}", next_step="start it, or leave --docker out"
        ) from error
    return client


def _end_processes() -> None:
    """Asks the steps that run as processes to leave, and what they started."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended by itself
            process.terminate()


def _end_containers(client: Any, labels: Mapping[str, str]) -> None:
    from docker.errors import APIError

    carrying = {"label": [f"{key}={value}" for key, value in labels.items()]}
    for container in client.containers.list(all=True, filters=carrying, ignore_removed=True):
        with suppress(APIError):  # it ended by itself
            container.remove(force=True)


@contextmanager
def _stopping(end: Callable[[], None]) -> Iterator[None]:
    """Ends the steps at the end, and on a signal at once: kfp's threads would wait for them."""

    def stop(number: int, frame: Any) -> None:
        end()
        handler = before[number]
        if callable(handler):
            handler(number, frame)
        raise KeyboardInterrupt

    before: dict[int, Any] = {
        number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        end()


def _story(workspace: Path) -> str:
    """The steps that failed, with their messages; the runner's own words say neither."""
    notes = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((workspace / FAILURES).glob("*.json"))
    ]
    return "\n".join(
        f"step {' '.join(part for part in (note['step'], note['item']) if part)} failed: {note['message']}"
        for note in notes
    )


def connect(host: str, namespace: str, token_file: Path | None = None) -> Client:
    """A client of Kubeflow Pipelines' API.

    The login is the token in `token_file` or $CROSSEARTH_KFP_TOKEN, or the session's cookie in
    $CROSSEARTH_KFP_COOKIE.

    Args:
        host: address of the API, for example https://kubeflow.example.com/pipeline.

    Raises:
        InputError: the host does not answer, answers something else, or wants a login.
    """
    token = _read_token(token_file) if token_file else os.environ.get(TOKEN, "")
    cookie = os.environ.get(COOKIE, "")
    _look_at(host, token, cookie)
    with asking(host), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return Client(host=host, namespace=namespace, existing_token=token or None, cookies=cookie or None)


@contextmanager
def asking(host: str) -> Iterator[None]:
    """Around calls of the API: what goes wrong in them becomes InputError."""
    try:
        yield
    except ApiException as error:
        try:
            words = json.loads(error.body)["error"]
        except (TypeError, ValueError, KeyError):
            words = error.reason
        raise InputError(
            f"Kubeflow Pipelines refuses (HTTP {error.status}): {str(words)[:1000]}",
            where=host,
            next_step=LOGIN if error.status in (401, 403) else "crossearth pipeline list shows the runs",
        ) from error
    except ConnectionProblem as error:
        raise InputError(f"does not answer any more: {error}", where=host) from error


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(f"cannot read the token: {error}", where=path) from error


class _NoRedirect(HTTPRedirectHandler):
    """A redirect of the API is a login page."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _look_at(host: str, token: str, cookie: str) -> None:
    if not host.startswith(("http://", "https://")):
        raise InputError(f"no address: {host!r}", where="--host", expected="http://... or https://...")
    headers = {"Accept": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if cookie:
        headers["Cookie"] = cookie
    # http or https, looked at above
    request = Request(host.rstrip("/") + HEALTH, headers=headers)  # noqa: S310
    try:
        with build_opener(_NoRedirect).open(request, timeout=10) as answer:
            if "json" not in answer.headers.get("Content-Type", ""):
                raise InputError(
                    "answers, but not as Kubeflow Pipelines does",
                    where=host,
                    next_step=f"look at the address; {LOGIN}",
                )
    except HTTPError as error:
        if error.code in (301, 302, 303, 307, 308, 401, 403):
            raise InputError(f"wants a login (HTTP {error.code})", where=host, next_step=LOGIN) from error
        raise InputError(f"answers HTTP {error.code}", where=host, next_step="look at the address") from error
    except (URLError, OSError) as error:
        raise InputError(
            f"does not answer: {getattr(error, 'reason', error)}",
            where=host,
            next_step="look at the address, or kubectl port-forward svc/ml-pipeline 8888:8888",
        ) from error


def submit(
    client: Client,
    name: str,
    inputs: Inputs,
    values: Values,
    given: Mapping[str, Any],
    experiment: str,
    service_account: str,
    cache: bool,
) -> str:
    """Starts a run on the cluster.

    Args:
        given: values of the pipeline's parameters.
        service_account: account of the pods.
        cache: whether steps whose inputs are those of an earlier run are skipped.

    Returns:
        The run's id.

    Raises:
        InputError: a wrong parameter, or the example's image.
    """
    if values.image.endswith("0" * 64):
        raise InputError(
            "the image is still the example's",
            where="values: image",
            next_step="build and push yours, see infra/README.md, and put its name and digest there",
        )
    pipeline = build(name, inputs, values)
    run = client.create_run_from_pipeline_func(
        pipeline,
        arguments=arguments(pipeline, given),
        experiment_name=experiment,
        service_account=service_account,
        enable_caching=None if cache else False,
    )
    return str(run.run_id)


def watch(client: Client, run_id: str, poll_s: float = 10.0) -> None:
    """Waits for a run's end, also through short times in which the host does not answer.

    Raises:
        PipelineError: it ended otherwise than with success.
    """
    answered = time.monotonic()
    while True:
        try:
            run = client.get_run(run_id)
        except ConnectionProblem:
            if time.monotonic() - answered > PATIENCE_S:
                raise
        else:
            if run.state in ENDED:
                break
            answered = time.monotonic()
        time.sleep(poll_s)
    if run.state != "SUCCEEDED":
        failed = [
            f"step {task.display_name} failed: {task.error.message if task.error else 'see its log'}"
            for task in (run.run_details.task_details if run.run_details else None) or []
            if task.state == "FAILED"
        ]
        message = run.error.message if run.error else ""
        raise PipelineError("\n".join([f"run {run_id}: {run.state} {message}".rstrip(), *failed]))


def parameter(text: str) -> tuple[str, Any]:
    """Reads `name=value`; the value is YAML, so that lists, numbers and truth values can be given.

    Raises:
        InputError: no "=", or a value that is not YAML.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"{text!r} gives no value", where="--set", expected="name=value")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {error}", where=f"--set {name}") from error
