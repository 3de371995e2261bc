"""`crossearth train` as a person sees it: on a terminal."""

import re
from pathlib import Path

from pseudo_terminal import run_on_terminal
from training_folder import RECIPE, environment, write_folder


def test_the_bar_shows_the_loss(tmp_path: Path) -> None:
    write_folder(tmp_path)
    shown = run_on_terminal(["crossearth", "train", RECIPE], tmp_path, environment())
    assert re.search(rf"{RECIPE}.*8/8.*loss \d+\.\d{{3}}", shown), shown
