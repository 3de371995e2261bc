"""What keeps the unit tests quick, and a keyboard."""

import shlex
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from kfp.dsl import pipeline_task

from crossearth.components.runtime import tracking, tracking_store
from crossearth.components.runtime.tracking_internals import create_tables
from crossearth.pipelines.cli import main


@pytest.fixture(autouse=True, scope="session")
def short_stacks() -> Iterator[None]:
    """kfp asks for the whole stack at every setting of a task, and a process of pytest-xdist has a frame
    without a file there, which `inspect` looks for in thousands of modules: 14 s a compiled pipeline.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_task, "inspect", SimpleNamespace(stack=lambda: [[""] * 4] * 2))
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
    template = tmp_path_factory.mktemp("tables") / "mlflow.db"

    def copy(database_uri: str, artifacts_uri: str) -> None:
        if not template.exists():
            create_tables(f"{tracking.SQLITE}{template}", artifacts_uri)
        path = database_uri.removeprefix(tracking.SQLITE)
        shutil.copyfile(template, path)
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("update experiments set artifact_location = ?", [f"{artifacts_uri}/0"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking_store, "create_tables", copy)
        yield
