"""Runs a pipeline on this machine, each step in a process or a container of its own."""

import os
import shutil
import signal
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from kfp import local

from crossearth.components.pods.workspace import CHECKOUT_MARKS, FAILURES
from crossearth.components.runtime.places import data_dir
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import file_lock, read_json
from crossearth.data.style.weights import style_weights_dir
from crossearth.pipelines.benchmark import Inputs
from crossearth.pipelines.containers import kept_exit_codes
from crossearth.pipelines.graphs import PipelineError, arguments, build
from crossearth.pipelines.resources import LOCAL

FOLDERS = ("CROSSEARTH_DATA", "CROSSEARTH_STYLE_WEIGHTS")
# a container gets these of the caller's environment; their values are shown nowhere
FORWARDED = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "CROSSEARTH_HUB_URL",
    "CROSSEARTH_HUB_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    *FOLDERS,
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
)
RUN_LABEL = "crossearth-run"
SHM_SIZE = "1g"  # of /dev/shm, in which the data loader's workers hand batches over


def run_local(
    name: str, inputs: Inputs, given: Mapping[str, Any], workspace: Path, image: str | None = None
) -> None:
    """Runs a pipeline on this machine, each step in a process or a container of its own.

    Waits for another run in the same workspace.

    Args:
        given: values of the pipeline's parameters.
        workspace: the shared folder; made if it is not there.
        image: of the containers that run the steps; none = they run as processes.

    Raises:
        InputError: a wrong parameter, a workspace that is a checkout, an image that is not here.
        PipelineError: a step failed; the message names it and has its words.
    """
    workspace = workspace.resolve()
    values = replace(LOCAL, image=image) if image else LOCAL
    pipeline = build(name, inputs, values)
    if "workspace" in given:
        raise InputError(
            "workspace: a local run's is a folder of this machine", next_step="--workspace FOLDER"
        )
    given = arguments(pipeline, {**given, "workspace": str(workspace)})
    if any((workspace / mark).exists() for mark in CHECKOUT_MARKS):
        raise InputError("this is a checkout", where=workspace, expected="a folder of its own for the run")
    # two steps at a time have a thread a core each: one that waits leaves its core to the other
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # the user's own files lie where they lie for dvc, not below the workspace
    for variable, folder in zip(FOLDERS, (data_dir(), style_weights_dir()), strict=True):
        if folder:
            os.environ[variable] = str(folder.resolve())
    run_dir = workspace / "artifacts" / "run"
    try:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the workspace: {error}", where=workspace) from error
    with file_lock(run_dir), _runner(workspace, image) as runner, warnings.catch_warnings():
        shutil.rmtree(workspace / FAILURES, ignore_errors=True)
        # the image plays no part where steps run as processes
        warnings.filterwarnings("ignore", message="You may be attemping", category=RuntimeWarning)
        local.init(runner=runner, pipeline_root=str(run_dir / "kfp"))
        try:
            pipeline(**given)
        except RuntimeError as error:
            raise PipelineError(_story(workspace) or str(error)) from error


@contextmanager
def _runner(workspace: Path, image: str | None) -> Iterator[local.SubprocessRunner | local.DockerRunner]:
    """What runs the steps; no container of theirs is there any more at the end."""
    if image is None:
        with _stopping(_end_processes):
            yield local.SubprocessRunner(use_venv=False)
        return
    from docker.types import Mount

    client = _engine(image)
    mounts = [Mount(str(workspace), str(workspace), type="bind")]
    environment = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    folders = {environment[name] for name in FOLDERS if name in environment}
    mounts += [Mount(each, each, type="bind", read_only=True) for each in folders if Path(each).is_dir()]
    labels = {RUN_LABEL: uuid.uuid4().hex}
    with closing(client), kept_exit_codes(), _stopping(lambda: _end_containers(client, labels)):
        yield local.DockerRunner(
            mounts=mounts,
            environment=environment,
            labels=labels,
            user=f"{os.getuid()}:{os.getgid()}",
            network_mode="host",
            shm_size=SHM_SIZE,
            read_only=True,
            cap_drop=["ALL"],
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
    notes = map(read_json, sorted((workspace / FAILURES).glob("*.json")))
    return "\n".join(
        f"step {' '.join(part for part in (note['step'], note['item']) if part)} failed: {note['message']}"
        for note in notes
    )
