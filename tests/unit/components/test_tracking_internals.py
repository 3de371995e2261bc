"""What MLflow must go on having for components/runtime/tracking_internals.py."""

import base64
import json
import zlib
from pathlib import Path

import mlflow
import pytest
from http_server import Handler, Server

from crossearth.components.runtime.tracking_internals import get_text, saved_view


def test_mlflows_page_knows_every_word_of_a_saved_view() -> None:
    scripts = (Path(mlflow.__file__).parent / "server/js/build/static/js").glob("*.js")
    page = "".join(script.read_text(encoding="utf-8") for script in scripts)
    tag, text = saved_view("key", "name", ["a", "b"], "a")
    view = json.loads(text)
    packing, _, packed = view.pop("state").partition(";")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert state["orderByKey"] == "metrics.`a`" and state["selectedColumns"] == ["metrics.`a`", "metrics.`b`"]
    words = [tag.removesuffix("key"), f'"{packing};"', *view, *state, state["runsHiddenMode"]]
    assert [word for word in words if word not in page] == []


def test_a_plain_request_carries_the_users_login(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []

    class Hearing(Handler):
        def do_GET(self) -> None:
            heard.append((self.path, self.headers["Authorization"]))
            self.answer(200, "3.1.4")

    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    with Server(Hearing) as server:
        assert get_text(server.address, "/version") == "3.1.4"
    assert heard == [("/version", "Bearer secret")]
