"""Commands whose standard error is a terminal, on which long work shows its progress."""

import os
import pty
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path


def run_on_terminal(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> str:
    """Runs a command, which must succeed; returns what the terminal was told."""
    terminal, stderr = pty.openpty()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, "TERM": "xterm"},
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
    )
    os.close(stderr)
    shown = shown_on(terminal)
    assert process.wait(timeout=120) == 0, shown
    return shown


def shown_on(terminal: int) -> str:
    """What a terminal is told until nobody writes to it any more; its descriptor is closed then."""
    shown = b""
    with os.fdopen(terminal, "rb", buffering=0) as screen, suppress(OSError):  # EIO once nobody writes to it
        while part := screen.read(4096):
            shown += part
    return shown.decode()
