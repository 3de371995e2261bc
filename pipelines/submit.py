"""Submits pipelines to a cluster with Kubeflow."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kfp import compiler
from kfp.client import Client
from kfp_server_api import ApiException
from urllib3.exceptions import HTTPError as ConnectionProblem

from crossearth.data.common.errors import InputError
from crossearth.pipelines.api import Api, refused
from crossearth.pipelines.benchmark import Inputs
from crossearth.pipelines.graphs import arguments, build
from crossearth.pipelines.resources import Values


def connect(host: str, namespace: str | None, token_file: Path | None = None) -> Client:
    """A client of Kubeflow Pipelines' API, with the login that `Api` reads.

    Args:
        host: address of the API, for example https://kubeflow.example.com/pipeline.
        namespace: the Profile's on a server with users, which is the one kind that has any.

    Raises:
        InputError: the host does not answer, answers something else, or wants a login; a namespace is
            missing, or would be ignored.
    """
    api = Api(host, token_file)
    api.expect_namespace(namespace)
    options = {"namespace": namespace} if namespace else {}
    with asking(host), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return Client(host=host, **options, existing_token=api.token or None, cookies=api.cookie or None)


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
        raise refused(host, error.status, words) from error
    except ConnectionProblem as error:
        raise InputError(f"does not answer any more: {error}", where=host) from error


def submit(
    client: Client,
    name: str,
    inputs: Inputs,
    values: Values,
    given: Mapping[str, Any],
    experiment: str,
    service_account: str,
    cache: bool,
    cron: str | None = None,
) -> str:
    """Starts a run on the cluster, or schedules it.

    Args:
        given: values of the pipeline's parameters.
        service_account: account of the pods.
        cache: whether steps whose inputs are those of an earlier run are skipped.
        cron: six fields, seconds first, of a schedule. One run at a time uses a workspace: the next waits,
            and times that were missed are not made up for.

    Returns:
        The id of the run, or of the recurring run.

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
    chosen = arguments(pipeline, given)
    experiment_id = client.create_experiment(experiment).experiment_id
    with TemporaryDirectory() as folder:
        package = str(Path(folder) / f"{pipeline.name}.yaml")
        compiler.Compiler().compile(pipeline, package)
        if cron is None:
            run = client.create_run_from_pipeline_package(
                package,
                chosen,
                run_name=f"{pipeline.name} {datetime.now():%Y-%m-%d %H-%M-%S}",
                experiment_id=experiment_id,
                service_account=service_account,
            )
            return str(run.run_id)
        recurring = client.create_recurring_run(
            experiment_id=experiment_id,
            job_name=f"crossearth-{name}",
            cron_expression=cron,
            max_concurrency=1,
            no_catchup=True,
            params=chosen,
            pipeline_package_path=package,
            service_account=service_account,
        )
        return str(recurring.recurring_run_id)
