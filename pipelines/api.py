"""Kubeflow Pipelines' API over HTTP: login, runs and logs. kfp's own client takes seconds to import."""

import json
import os
from base64 import b64decode
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import HTTPRedirectHandler, Request, build_opener

from crossearth.data.common.errors import InputError

TOKEN, COOKIE = "CROSSEARTH_KFP_TOKEN", "CROSSEARTH_KFP_COOKIE"
HEALTH = "/apis/v2beta1/healthz"
LOGIN = f"put a token into ${TOKEN} or a file for --token-file, or the session's cookie into ${COOKIE}"
EXPIRED = f"the token is wrong or has expired: {LOGIN}"
TIMEOUT_S = 30.0
LOG_ARTIFACT = "main-logs"  # as Argo calls the log that it archives
REDIRECTS = (301, 302, 303, 307, 308)  # to a login page


class UnreachableError(InputError):
    """The host does not answer, or a gateway answers in its place: it may again."""


class _NoRedirect(HTTPRedirectHandler):
    """A redirect of the API is a login page."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Api:
    """A host with its login.

    Attributes:
        host: address of the API.
        token: of the login, "" = none.
        cookie: of a session, "" = none.
        has_users: whether runs live in the namespaces of its users' Profiles.
    """

    def __init__(self, host: str, token_file: Path | None = None) -> None:
        """Reads the login from `token_file`, $CROSSEARTH_KFP_TOKEN or _COOKIE, and looks at the host.

        Raises:
            InputError: the host does not answer, answers something else, or wants a login.
        """
        self.host = host
        self.token = _read_token(token_file) if token_file else os.environ.get(TOKEN, "").strip()
        self.cookie = os.environ.get(COOKIE, "").strip()
        for name, secret in ((str(token_file or f"${TOKEN}"), self.token), (f"${COOKIE}", self.cookie)):
            if not (secret.isascii() and secret.isprintable()):
                raise InputError("holds what no header may hold", where=name, expected="printable ASCII")
        if not host.startswith(("http://", "https://")):
            raise InputError(f"no address: {host!r}", where="--host", expected="http://... or https://...")
        try:
            with self._open(HEALTH, timeout=10) as answer:
                kind, body = answer.headers.get("Content-Type", ""), answer.read()
        except HTTPError as error:
            if error.code in (*REDIRECTS, 401, 403):
                raise InputError(f"wants a login (HTTP {error.code})", where=host, next_step=LOGIN) from error
            raise InputError(
                f"answers HTTP {error.code}", where=host, next_step="look at the address"
            ) from error
        except (OSError, HTTPException, ValueError) as error:  # the last two: no port, no host, a space
            raise InputError(
                f"does not answer: {getattr(error, 'reason', error)}",
                where=host,
                next_step="look at the address, or kubectl port-forward svc/ml-pipeline 8888:8888",
            ) from error
        try:
            health = json.loads(body) if "json" in kind else None
        except ValueError:
            health = None
        if not isinstance(health, dict):
            raise InputError(
                "answers, but not as Kubeflow Pipelines does",
                where=host,
                next_step=f"look at the address; {LOGIN}",
            )
        self.has_users = health.get("multi_user") is True

    def expect_namespace(self, namespace: str | None) -> None:
        """Refuses (InputError) a namespace that the server would ignore, and none where it needs one."""
        if self.has_users and not namespace:
            raise InputError(
                "this server has users: a run lives in the namespace of one of their Profiles",
                where="--namespace",
                next_step="kubectl get profiles lists them; --namespace NAME",
            )
        if namespace and not self.has_users:
            raise InputError(
                f"{namespace}: this server has no users and would ignore it: runs live in its own namespace",
                where="--namespace",
                next_step="leave it out; infra/kustomize/standalone puts account, claim and Secrets there",
            )

    def runs(self, namespace: str | None, number: int) -> list[dict[str, Any]]:
        """The latest runs, of a Profile where the server has users."""
        asked = {"page_size": number, "sort_by": "created_at desc", "namespace": namespace or ""}
        return list(self._json(f"/apis/v2beta1/runs?{urlencode(asked)}").get("runs") or [])

    def run(self, run_id: str) -> dict[str, Any]:
        return self._json(f"/apis/v2beta1/runs/{_part(run_id)}")

    def stop(self, run_id: str) -> None:
        self._json(f"/apis/v2beta1/runs/{_part(run_id)}:terminate", b"")

    def workflow(self, run_id: str) -> dict[str, Any] | None:
        """Argo's record of a run, which only the older API hands out; None where the server does not."""
        try:
            answer = self._json(f"/apis/v1beta1/runs/{_part(run_id)}")
            record = json.loads((answer.get("pipeline_runtime") or {})["workflow_manifest"])
        except (LookupError, TypeError, ValueError):  # InputError is a ValueError
            return None
        return record if isinstance(record, dict) else None

    def log(self, run_id: str, node: str, pod: str) -> str | None:
        """The log of a run's pod; None where it is gone.

        Args:
            node: Argo's id of it, by which Kubeflow finds the log in the object store once the pod has ended.
            pod: its name, by which Kubeflow finds the pod as long as it is there; "" = not known.
        """
        nodes = f"runs/{_part(run_id)}/nodes"
        live = self._text(f"/apis/v1alpha1/{nodes}/{_part(pod)}/log") if pod else None
        if live is not None:
            return live
        path = f"/apis/v2beta1/{nodes}/{_part(node)}/artifacts/{LOG_ARTIFACT}:read"
        try:
            return str(b64decode(json.loads(self._text(path) or "")["data"]), errors="replace")
        except (LookupError, TypeError, ValueError):
            return None

    def _text(self, path: str) -> str | None:
        """What is answered; None where the server has not got it."""
        try:
            with self._open(path) as answer:
                text = str(answer.read(), errors="replace")
        except HTTPError as error:
            if error.code in (502, 503, 504):
                raise self._refusal(error) from error
            return None
        except (OSError, HTTPException) as error:
            raise self._lost(error) from error
        # the server may begin to answer before it knows that the log is gone
        return None if text.startswith('{"error_message"') else text

    def _json(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        try:
            with self._open(path, body) as answer:
                found = json.loads(answer.read() or b"{}")
        except HTTPError as error:
            raise self._refusal(error) from error
        except (OSError, HTTPException) as error:
            raise self._lost(error) from error
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise InputError("answers, but not as Kubeflow Pipelines does", where=f"{self.host}{path}")
        return found

    def _lost(self, error: Exception) -> InputError:
        return UnreachableError(
            f"does not answer any more: {getattr(error, 'reason', error)}", where=self.host
        )

    def _refusal(self, error: HTTPError) -> InputError:
        try:
            words = json.loads(error.read())["error"]
        except (OSError, HTTPException, TypeError, ValueError, KeyError):
            words = error.reason
        if error.code in (*REDIRECTS, 401):
            return InputError(f"wants a login again (HTTP {error.code})", where=self.host, next_step=EXPIRED)
        return refused(self.host, error.code, words)

    def _open(self, path: str, body: bytes | None = None, timeout: float = TIMEOUT_S) -> HTTPResponse:
        headers = {"Accept": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if self.cookie:
            headers["Cookie"] = self.cookie
        # http or https, looked at above
        request = Request(self.host.rstrip("/") + path, data=body, headers=headers)  # noqa: S310
        answer: HTTPResponse = build_opener(_NoRedirect).open(request, timeout=timeout)
        return answer


def refused(host: str, status: int, words: object) -> InputError:
    """What to say of an HTTP status that is an error, and of the server's words."""
    kind = UnreachableError if status >= 500 else InputError
    return kind(
        f"Kubeflow Pipelines refuses (HTTP {status}): {str(words)[:1000]}",
        where=host,
        next_step=LOGIN if status in (401, 403) else "crossearth pipeline list shows the runs",
    )


def _part(text: str) -> str:
    return quote(text, safe="")


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(f"cannot read the token: {error}", where=path) from error
    except UnicodeDecodeError:
        raise InputError("cannot read the token: it is no text", where=path) from None
