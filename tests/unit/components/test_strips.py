"""Scenes that cannot be opened are refused by their names."""

import os
import shutil
from pathlib import Path

import pytest
from own_domain import draw, save

from crossearth.components.predict.strips import open_scene
from crossearth.data.common.errors import InputError


def test_a_name_that_is_not_utf8_is_shown_escaped(tmp_path: Path) -> None:
    save(tmp_path / "scene.tif", draw(0)[0])
    odd = tmp_path / os.fsdecode(b"a\xff.tif")
    shutil.copy(tmp_path / "scene.tif", odd)
    with pytest.raises(InputError, match=r"a\\xff\.tif: the path is not UTF-8") as caught:
        open_scene(odd)
    str(caught.value).encode()
