"""The pages beside report and map in a real Chromium: everybody can read them, and they ask nobody."""

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crossearth.components.validate.first_page import first_page
from crossearth.components.watch import step as watch
from crossearth.components.watch.step import ALL, Finding
from crossearth.data.common.errors import InputError

SITE = Path(__file__).parents[2] / "docs/site.py"


def data_docs(folder: Path) -> Path:
    checks = [{"passed": True}, {"passed": False}]
    docs = "docs/validations/town/page & more.html"
    town = {"docs": docs, "checks": checks, "provenance": "own", "splits": {"train": {"tiles": 1200}}}
    counts = {"domains": 1, "tiles": 1200, "checks": 2, "failed": 1}
    (folder / "index.html").write_text(first_page(counts, {"town": town}))
    return folder / "index.html"


def drift(folder: Path) -> Path:
    reference: Any = SimpleNamespace(farthest=3.0, confidence=0.6, window_px=64, windows=(40, 8))
    seen = Finding("town.tif", 40, 0.9, 0.8, 0.1, (0.1, -0.2, 0.0))
    other = Finding("x/a very long name of a scene of another town.tif", 30, 0.1, None, 0.7, (2.0, 1.5, 0.9))
    empty = Finding("sea.tif", 0, None, None, None, (None, None, None))
    all_scenes = Finding(ALL, 70, 0.5, 0.8, 0.4, (1.0, 0.7, 0.4))
    meta = {"sha256": "a" * 64, "recipe": "town"}
    errors = [InputError("damaged", where="half.tif")]
    watch._write(folder, "artifacts/models/town", meta, reference, all_scenes, [seen, other, empty], errors)
    return folder / "watch.html"


def documents(folder: Path) -> Path:
    runpy.run_path(str(SITE))["write_site"](folder)
    return folder / "index.html"


def results(folder: Path) -> Path:
    return documents(folder).with_name("docs") / "results.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("written", [data_docs, drift, documents, results])
def test_everybody_can_read_and_use_it(
    written: Callable[[Path], Path],
    scheme: str,
    browser: Any,
    tmp_path: Path,
    violations: Callable[[Any], list[str]],
) -> None:
    # tables and code are wider than a phone: they must scroll without a mouse, too
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(written(tmp_path).as_uri())
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert [url for url in asked if not url.startswith("file:")] == []
    page.close()
