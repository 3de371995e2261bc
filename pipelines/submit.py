"""Submits pipelines to a cluster with Kubeflow and follows their runs."""

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from kfp.client import Client
from kfp_server_api import ApiException
from urllib3.exceptions import HTTPError as ConnectionProblem

from crossearth.data.errors import InputError
from crossearth.pipelines.benchmark import Inputs
from crossearth.pipelines.graphs import PipelineError, arguments, build
from crossearth.pipelines.resources import Values

TOKEN, COOKIE = "CROSSEARTH_KFP_TOKEN", "CROSSEARTH_KFP_COOKIE"
HEALTH = "/apis/v2beta1/healthz"
LOGIN = f"put a token into ${TOKEN} or a file for --token-file, or the session's cookie into ${COOKIE}"
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
PATIENCE_S = 300.0  # how long `watch` waits for a host that does not answer


def connect(host: str, namespace: str, token_file: Path | None = None) -> Client:
    """A client of Kubeflow Pipelines' API.

    The login is the token in `token_file` or $CROSSEARTH_KFP_TOKEN, or the session's cookie in
    $CROSSEARTH_KFP_COOKIE.

    Args:
        host: address of the API, for example https://kubeflow.example.com/pipeline.

    Raises:
        InputError: the host does not answer, answers something else, or wants a login.
    """
    token = _read_token(token_file) if token_file else os.environ.get(TOKEN, "").strip()
    cookie = os.environ.get(COOKIE, "").strip()
    for name, secret in ((str(token_file or f"${TOKEN}"), token), (f"${COOKIE}", cookie)):
        if not (secret.isascii() and secret.isprintable()):
            raise InputError("holds what no header may hold", where=name, expected="printable ASCII")
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
    except UnicodeDecodeError:
        raise InputError("cannot read the token: it is no text", where=path) from None


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
    try:
        # http or https, looked at above
        request = Request(host.rstrip("/") + HEALTH, headers=headers)  # noqa: S310
        with build_opener(_NoRedirect).open(request, timeout=10) as answer:
            kind = answer.headers.get("Content-Type", "")
    except HTTPError as error:
        if error.code in (301, 302, 303, 307, 308, 401, 403):
            raise InputError(f"wants a login (HTTP {error.code})", where=host, next_step=LOGIN) from error
        raise InputError(f"answers HTTP {error.code}", where=host, next_step="look at the address") from error
    except (OSError, HTTPException, ValueError) as error:  # the last two: no port, no host, a space
        raise InputError(
            f"does not answer: {getattr(error, 'reason', error)}",
            where=host,
            next_step="look at the address, or kubectl port-forward svc/ml-pipeline 8888:8888",
        ) from error
    if "json" not in kind:
        raise InputError(
            "answers, but not as Kubeflow Pipelines does",
            where=host,
            next_step=f"look at the address; {LOGIN}",
        )


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
    pipeline = build(name, inputs, values, cache)
    run = client.create_run_from_pipeline_func(
        pipeline,
        arguments=arguments(pipeline, given),
        experiment_name=experiment,
        service_account=service_account,
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
        except (ConnectionProblem, ApiException) as error:
            refused = isinstance(error, ApiException) and error.status < 500  # a gateway's 503 is no answer
            if refused or time.monotonic() - answered > PATIENCE_S:
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
