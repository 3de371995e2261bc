"""What a tracking server that runs refuses, and why: its version, a login, another server at its address."""

import re
from importlib.metadata import version

from crossearth.components.runtime.tracking_internals import get_text

LOGIN = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to a user that may"
)
CERTIFICATE = "name the certificate of who signed the server's with MLFLOW_TRACKING_SERVER_CERT_PATH"
ELSEWHERE = "set MLFLOW_TRACKING_URI to the address of a server of MLflow, or unset it to use the local store"


def own_version() -> str:
    return version("mlflow")


def server_version(uri: str) -> str:
    """Of the server at an http address; empty where none that is MLflow's tells. Raises as `get_text`."""
    told = get_text(uri, "/version").strip()
    return told if re.fullmatch(r"\d+\.\d+[\w.+-]*", told) else ""


def same_release(theirs: str) -> bool:
    """Whether client and server are of one major and minor version."""
    return theirs.split(".")[:2] == own_version().split(".")[:2]


def wanted() -> str:
    """What to do about a server of another version."""
    return f"run a server of MLflow {own_version()}, or set MLFLOW_TRACKING_URI to one"


def refusal(error: Exception, uri: str) -> tuple[str, str] | None:
    """What is refused for good, and what to do about it; None where the server is away or busy: try again."""
    from mlflow.exceptions import MlflowException, RestException

    if not isinstance(error, MlflowException):
        return None
    words = (str(error).partition(" Response body:")[0].strip().splitlines() or [type(error).__name__])[0][
        :300
    ]
    if "database schema" in words:
        return f"another version than MLflow {own_version()} made it: {words}", f"mlflow db upgrade {uri}"
    if "CERTIFICATE_VERIFY_FAILED" in words:
        return words, CERTIFICATE
    status = error.get_http_status_code()
    if status in (401, 403):
        return f"the login is refused: {words}", LOGIN
    # MLflow's client itself tries 408, 429 and 5xx again, and then says that it failed
    answered = isinstance(error, RestException) or 400 <= status < 500 or "valid JSON" in words
    if not answered:
        return None
    if not uri.startswith("http"):
        return words, ELSEWHERE
    try:
        theirs = server_version(uri)
    except MlflowException:
        return None
    if not theirs:
        return f"no server of MLflow answers there: {words}", ELSEWHERE
    if same_release(theirs):
        return words, "look at the server's log"
    return f"the server is MLflow {theirs}, here is {own_version()}: {words}", wanted()
