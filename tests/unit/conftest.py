"""What keeps the unit tests quick, and a keyboard."""

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from kfp.dsl import pipeline_task

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

    def run(command: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("CROSSEARTH_DATA", str(tmp_path))
        monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        assert (stop.value.code or 0) == 0, printed.out + printed.err
        return printed.out

    return run
