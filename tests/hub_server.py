"""A server of Kubeflow Hub's REST API: as much of it as its client asks for when a model is registered.

What it is sent and what it sends are read with the client's own types, which are made from the API's
description (`api/openapi/model-registry.yaml` of kubeflow/hub).
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from http_server import Handler, Server

mr_openapi = pytest.importorskip("mr_openapi", reason="pip install 'crossearth[cluster]'")

API = re.compile(r"/api/model_registry/v\w+/")  # v1, in older releases v1alpha3
PAGE = 1  # items at a time, where a client does not ask for more: a second page is seldom tested
ONE = {"registered_model": "registered_models", "model_version": "model_versions"}
KINDS = {
    ("POST", "registered_models"): mr_openapi.RegisteredModelCreate,
    ("POST", "model_versions"): mr_openapi.ModelVersionCreate,
    ("PATCH", "model_versions"): mr_openapi.ModelVersionUpdate,
    ("POST", "artifacts"): mr_openapi.Artifact,
}


class Hub:
    """What the server has and was asked.

    Attributes:
        kept: collection -> resources, as the API describes them.
        written: method and path of each request that changed something.
        fails: path -> how often the requests that write there are answered 503 from now on.
        token: that a client must have; "" = none.
    """

    def __init__(self) -> None:
        self.kept: dict[str, list[dict[str, Any]]] = {
            "registered_models": [],
            "model_versions": [],
            "artifacts": [],
        }
        self.written: list[str] = []
        self.fails: dict[str, int] = {}
        self.token = ""
        self.url = ""

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        """Status and body."""
        parts = path.split("/")
        if method == "GET":
            return self._read(parts, query)
        if self.fails.get(parts[-1], 0):
            self.fails[parts[-1]] -= 1
            return 503, {"code": "503", "message": "the database is away"}
        self.written.append(f"{method} {path}")
        if method == "PATCH":
            (found,) = [each for each in self.kept[parts[0]] if each["id"] == parts[1]]
            KINDS[method, parts[0]].from_dict(body)
            found.update({key: value for key, value in body.items() if value is not None})
            return 200, found
        KINDS[method, parts[-1]].from_dict(body)
        made = {key: value for key, value in body.items() if value is not None}
        made["id"] = str(1 + sum(map(len, self.kept.values())))
        if parts[-1] == "artifacts":
            made["version"] = parts[1]
        here = self.kept[parts[-1]]
        same = ("name", "registeredModelId", "version")
        if any(all(each.get(key) == made.get(key) for key in same) for each in here):
            return 409, {"code": "409", "message": f"{made['name']} exists"}
        here.append(made)
        return 201, made

    def _read(self, parts: list[str], query: dict[str, str]) -> tuple[int, Any]:
        name, parent = query.get("name"), query.get("parentResourceId")
        if parts == ["model_artifact"]:
            found = [
                each for each in self.kept["artifacts"] if (each["name"], each["version"]) == (name, parent)
            ]
            return self._one(found)
        if parts[0] in ONE:
            here = self.kept[ONE[parts[0]]]
            return self._one(
                [each for each in here if each["name"] == name and each.get("registeredModelId") == parent]
            )
        if parts[0] == "registered_models":
            here = self.kept["registered_models"]
            if parts[2:] == ["versions"]:
                here = [each for each in self.kept["model_versions"] if each["registeredModelId"] == parts[1]]
            first, size = int(query.get("nextPageToken") or 0), int(query.get("pageSize", PAGE))
            more = str(first + size) if first + size < len(here) else ""
            page = here[first : first + size]
            return 200, {"items": page, "size": len(page), "pageSize": size, "nextPageToken": more}
        return 404, {"code": "404", "message": "no such path"}

    def _one(self, found: list[dict[str, Any]]) -> tuple[int, Any]:
        return (200, found[0]) if found else (404, {"code": "404", "message": "not found"})


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serves an empty registry."""
    hub = Hub()

    class Asked(Handler):
        def _asked(self) -> None:
            address = urlsplit(self.path)
            text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, told = 404, {"code": "404", "message": "no such path"}
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                status, told = 401, {"code": "401", "message": "who are you"}
            elif API.match(address.path):
                body = json.loads(text) if text else None
                query = dict(parse_qsl(address.query))
                status, told = hub.answer(self.command, API.sub("", address.path), query, body)
            self.answer(status, told)

        do_GET = do_POST = do_PATCH = _asked  # noqa: N815

    with Server(Asked) as server:
        hub.url = server.address
        yield hub
