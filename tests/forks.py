"""`crossearth` commands as forks of a process that has imported what they need: kills meet their work.

Each is a process of its own in all else: a group, a folder, an environment, an exit code.
"""

import multiprocessing
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from crossearth.components.steps import STEPS

PRELOADED = [
    "crossearth.pipelines.cli",
    *(f"crossearth.components.{step.module}" for step in STEPS.values() if step.function),
    "crossearth.data.tiles.store",
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store",
    "pytest",  # what a fork takes for its main module
]
FORKS = multiprocessing.get_context("forkserver")


class Fork:
    """A command; as much of `subprocess.Popen` as tests use."""

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], stderr: int | None = None
    ) -> None:
        """Starts it.

        Args:
            stderr: where its words go to [default: to `communicate`].
        """
        self._words, words = (None, os.dup(stderr)) if stderr is not None else os.pipe()
        with Connection(words) as shared, pytest.MonkeyPatch.context() as patch:
            # the process that forks has its libraries' threads from its own environment
            patch.setenv("OMP_NUM_THREADS", "1")
            FORKS.set_forkserver_preload(PRELOADED)
            self._process = FORKS.Process(
                target=_run, args=(list(command), folder, dict(environment), shared)
            )
            self._process.start()
        assert self._process.pid
        self.pid = self._process.pid
        while self.poll() is None and os.getpgid(self.pid) != self.pid:  # a group can be killed
            time.sleep(0.001)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"process {self.pid} runs after {timeout} s")
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[None, str]:
        """Its words, when it has ended and also whoever else writes to its standard error."""
        assert self._words is not None
        end, words = time.monotonic() + timeout, b""
        with os.fdopen(self._words, "rb", buffering=0) as pipe:
            while select.select([pipe], [], [], max(end - time.monotonic(), 0))[0]:
                part = pipe.read(4096)
                if not part:
                    self.wait(max(end - time.monotonic(), 1))
                    return None, words.decode()
                words += part
        raise TimeoutError(f"process {self.pid} or a child of it runs after {timeout} s: {words.decode()}")


def _run(command: list[str], folder: Path, environment: dict[str, str], stderr: Connection) -> None:
    from crossearth.pipelines.cli import main

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with stderr, Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = command
    os.setsid()  # ready: `Fork` waits for it
    main()
