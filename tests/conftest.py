"""Marks each test by its folder and finds the shared fixtures, which are never part of the project."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SHARED = Path(os.environ.get("CROSSEARTH_FIXTURES", TESTS.parent.parent / "shared"))
FOLDERS = {"unit", "parity", "imagery", "pipeline", "container", "browser", "faults", "gpu"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in FOLDERS:
            item.add_marker(folder)


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here (set CROSSEARTH_FIXTURES)")
    return folder


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    return _shared("parity")


@pytest.fixture(scope="session")
def imagery_dir() -> Path:
    return _shared("imagery")


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    return _shared("weights")


@pytest.fixture(scope="session")
def readme() -> Callable[[str], list[str]]:
    """The README's code blocks of a language: what it shows is what tests run."""
    text = (TESTS.parent / "README.md").read_text()
    return lambda language: re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
