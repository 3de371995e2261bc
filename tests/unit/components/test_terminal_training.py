"""`crossearth train` as a person sees it: on a terminal."""

import os
import pty
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pseudo_terminal import shown_on
from training_folder import RECIPE, write_folder


def test_the_bar_shows_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Callable[[str], str]
) -> None:
    write_folder(tmp_path)
    monkeypatch.setenv("TERM", "xterm")
    terminal, end = pty.openpty()
    with ThreadPoolExecutor(1) as reader, os.fdopen(end, "w") as stderr:
        shown = reader.submit(shown_on, terminal)
        monkeypatch.setattr(sys, "stderr", stderr)
        typed(f"crossearth train {RECIPE}")
        stderr.close()
    assert re.search(rf"{RECIPE}.*8/8.*loss \d+\.\d{{3}}", shown.result()), shown.result()
