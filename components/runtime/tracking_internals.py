"""What MLflow has no public API for: views of its web page, tables of a new database, a plain request, and
where a server hands out the artifacts that it keeps."""

import base64
import json
import time
import zlib
from collections.abc import Sequence
from urllib.parse import urlsplit

PROXIED = "mlflow-artifacts"  # scheme of artifacts that a server hands out


def saved_view(key: str, name: str, columns: Sequence[str], order_by: str) -> tuple[str, str]:
    """Name and value of the experiment's tag that MLflow shows as a saved view (see `Run.save_view`)."""
    state = {
        "searchFilter": "",
        "orderByKey": f"metrics.`{order_by}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [f"metrics.`{column}`" for column in columns],
        "runsHiddenMode": "FIRST_10_RUNS",
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = int(time.time() * 1000)
    view = {"name": name, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
    return f"mlflow.sharedViewState.{key}", json.dumps(view)


def create_tables(database_uri: str, artifacts_uri: str) -> None:
    """Makes MLflow's tables in a new database.

    Args:
        database_uri: sqlite:///FILE.
        artifacts_uri: where its default experiment keeps artifacts.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(database_uri, artifacts_uri).engine.dispose()


def get_text(server_uri: str, path: str) -> str:
    """The body of a GET request, with the user's login as MLflow takes it; MlflowException: no answer."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    return http_request(get_default_host_creds(server_uri), path, "GET", max_retries=1, timeout=10).text


def served_at(uri: str, server_uri: str) -> str:
    """Address, without a login, of artifacts that a server hands out; `uri`: of the scheme `PROXIED`."""
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    server = urlsplit(server_uri)
    plain = server._replace(netloc=server.netloc.rpartition("@")[2]).geturl()
    return str(MlflowArtifactsRepository.resolve_uri(uri, plain))
