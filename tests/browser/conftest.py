"""A real Chromium, and axe, which finds what keeps people from a page; without them these tests skip."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    playwright.expect.set_options(timeout=60_000)  # a page's scripts wait for their turn on a busy machine
    with playwright.sync_playwright() as session:
        chromium = session.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def violations() -> Callable[[Any], list[str]]:
    """Every rule that a page breaks, and where: contrast, order of headings, landmarks, names, keys."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def found(page: Any) -> list[str]:
        broken = axe.run(page).response["violations"]
        return [f"{rule['id']}: {node['html'][:120]}" for rule in broken for node in rule["nodes"]]

    return found
