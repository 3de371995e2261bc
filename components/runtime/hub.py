"""Kubeflow Hub, the model registry of a Kubeflow platform: where it is, and asking it."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from crossearth.data.common.errors import InputError

if TYPE_CHECKING:
    from model_registry.core import ModelRegistryAPIClient

URL, TOKEN = "CROSSEARTH_HUB_URL", "CROSSEARTH_HUB_TOKEN"
TOKEN_PATH = "KF_PIPELINES_SA_TOKEN_PATH"  # noqa: S105 Kubeflow's own name for a token that it mounts
ANSWER_SECONDS = 30.0  # for all that is asked at once
EXAMPLE = "its REST API, for example http://model-registry-service:8080"
LOGIN = f"a login is a token in ${TOKEN}, or in the file that ${TOKEN_PATH} names"


def address() -> str:
    """$CROSSEARTH_HUB_URL without its last slash, "" = no Hub; InputError: no address, or a login in it."""
    text = os.environ.get(URL, "").rstrip("/")
    try:
        parts = urlsplit(text)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in text
    except ValueError:
        fine = False
    if text and not fine:
        raise InputError(f"{text!r} is no address", where=f"${URL}", expected=EXAMPLE, next_step=LOGIN)
    return text


def refuse_own(uri: str) -> None:
    """Refuses (InputError) an address of this machine alone: it means another one to everybody else."""
    parts = urlsplit(uri)
    own = parts.scheme in ("", "file", "sqlite") or parts.hostname == "localhost"
    with suppress(ValueError):  # a name
        own = own or ip_address(parts.hostname or "").is_loopback
    if own:
        raise InputError(
            "Kubeflow Hub is told of models that everybody finds, this is an address of this machine alone",
            where=uri,
            next_step="set MLFLOW_TRACKING_URI to a server, by the name that it has in the cluster",
        )


def ask(work: Callable[["ModelRegistryAPIClient"], Awaitable[None]], pauses: Sequence[float] = ()) -> None:
    """Does `work` with a client, again after each pause while the server is away.

    Args:
        work: may be done again where it was cut short.
        pauses: seconds.

    Raises:
        InputError: the server stays away, or refuses.
    """
    hub = _client()
    import aiohttp
    from mr_openapi.exceptions import OpenApiException

    for pause in (*pauses, None):
        try:
            asyncio.run(asyncio.wait_for(work(hub), ANSWER_SECONDS))
            return
        except InputError:
            raise
        except (aiohttp.ClientError, OSError, OpenApiException, ValueError) as error:
            status = getattr(error, "status", None) or 0
            if pause is None or 400 <= status < 500:
                raise _refusal(error, status) from error
            time.sleep(pause)


async def look(hub: "ModelRegistryAPIClient") -> None:
    """Asks for one model: the least that a registry answers."""
    from model_registry.types import ListOptions

    await hub.get_registered_models(ListOptions(limit=1))


def _refusal(error: Exception, status: int) -> InputError:
    if status in (401, 403):
        return InputError(f"the login is refused (HTTP {status})", where=address(), next_step=LOGIN)
    if status == 404 or isinstance(error, ValueError):
        ours = version("model-registry")
        return InputError(
            f"what answers there is no model registry of Kubeflow that the client {ours} knows",
            where=address(),
            expected=EXAMPLE,
            next_step=f"set ${URL}, or pip install the model-registry of the server's release",
        )
    words = str(getattr(error, "body", "") or error).strip() or type(error).__name__
    what = f"refuses (HTTP {status}): {words[:300]}" if status else f"does not answer: {words[:300]}"
    return InputError(f"Kubeflow Hub {what}", where=address(), next_step=f"start it, or unset ${URL}")


def _client() -> "ModelRegistryAPIClient":
    root = logging.getLogger()
    handlers = list(root.handlers)
    from model_registry.core import ModelRegistryAPIClient
    from mr_openapi import Configuration

    root.handlers[:] = handlers  # the library sets up logging for the whole process when it is imported
    return ModelRegistryAPIClient(Configuration(host=address(), access_token=_token()))


def _token() -> str | None:
    token, path = os.environ.get(TOKEN, ""), os.environ.get(TOKEN_PATH)
    if path and not token:
        try:
            token = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be read: {error}", where=f"${TOKEN_PATH}", next_step=LOGIN) from error
    return token.strip() or None
