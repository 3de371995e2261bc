"""`crossearth train` as a person sees it: on a terminal."""

import os
import pty
import re
import subprocess
from pathlib import Path

from training_folder import RECIPE, environment, write_folder


def test_the_bar_shows_the_loss(tmp_path: Path) -> None:
    write_folder(tmp_path)
    terminal, stderr = pty.openpty()
    training = subprocess.Popen(
        ["crossearth", "train", RECIPE], cwd=tmp_path, env=environment() | {"TERM": "xterm"}, stderr=stderr
    )
    os.close(stderr)
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # what Linux says where nobody writes any more
        pass
    os.close(terminal)
    assert training.wait(timeout=60) == 0, shown.decode()
    assert re.search(rf"{RECIPE}.*8/8.*loss \d+\.\d{{3}}", shown.decode()), shown.decode()
