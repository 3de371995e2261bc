"""What keeps the unit tests quick, and a keyboard."""

import gc
import os
import shlex
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.testing
from filelock import FileLock
from jinja2 import Environment

from crossearth.components.cli.app import app
from crossearth.components.cli.help import describe
from crossearth.components.runtime import tracking, tracking_store
from crossearth.components.runtime.tracking_internals import create_tables
from crossearth.pipelines.cli import main


@pytest.fixture(autouse=True, scope="session")
def short_stacks() -> Iterator[None]:
    """kfp asks for the whole stack at every setting of a task, and a process of pytest-xdist has a frame
    without a file there, which `inspect` looks for in thousands of modules: 14 s a compiled pipeline.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kfp.dsl.pipeline_task.inspect", SimpleNamespace(stack=lambda: [[""] * 4] * 2))
        yield


def pytest_collection() -> None:
    """What imports make stays: looking through it for garbage takes half a second a time."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def commands_made_once() -> Iterator[None]:
    """typer makes all commands of its functions anew whenever one is typed."""
    describe(app)
    made = cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", made)
        patch.setattr(typer.testing, "_get_command", made)
        yield


@pytest.fixture(autouse=True, scope="session")
def templates_compiled_once() -> Iterator[None]:
    """Great Expectations compiles the same templates for each page."""
    compile_, compiled = Environment.compile, {}

    def once(self: Environment, source: Any, *given: Any, **named: Any) -> Any:
        settings = (
            type(self),
            self.autoescape,
            self.trim_blocks,
            self.lstrip_blocks,
            *self.filters,
            *self.extensions,
        )
        key = (source, given, *named.items(), *settings)
        if key not in compiled:
            compiled[key] = compile_(self, source, *given, **named)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Environment, "compile", once)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_authorities() -> Iterator[None]:
    """Each connection reads the system's certificates anew, and these tests know no address outside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", os.devnull)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_power_failures() -> Iterator[None]:
    """Files must be on the disk before the machine fails, which no unit test lets it do; a wait is long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """Types a command in the test's folder, where it must succeed; gives what it prints."""
    return _typing(0, 0, tmp_path, monkeypatch, capsys)


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """Types a command in the test's folder that must be refused; gives the message."""
    return _typing(2, 1, tmp_path, monkeypatch, capsys)


def _typing(
    code: int, stream: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    def run(command: str) -> str:
        ended, *said = _type(command, folder, monkeypatch, capsys)
        assert ended == code, "".join(said)
        return said[stream]

    return run


def _type(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CROSSEARTH_DATA", str(folder))
    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


@pytest.fixture(autouse=True, scope="session")
def tables_made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow makes its tables by all migrations of its history; the tests' databases are copies of one."""
    folder = tmp_path_factory.getbasetemp()
    # the folder of all processes of pytest-xdist
    template = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "mlflow.db"

    def copy(database_uri: str, artifacts_uri: str) -> None:
        with FileLock(f"{template}.lock"):
            if not template.exists():
                create_tables(f"{tracking.SQLITE}{template}", artifacts_uri)
        path = database_uri.removeprefix(tracking.SQLITE)
        shutil.copyfile(template, path)
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("update experiments set artifact_location = ?", [f"{artifacts_uri}/0"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking_store, "create_tables", copy)
        yield
