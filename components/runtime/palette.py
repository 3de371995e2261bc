"""Colours of classes, the same on maps, previews, sheets and the report's pages."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor


def colour_table(palette: Sequence[str], ignored: tuple[int, int, int] = (0, 0, 0)) -> NDArray[np.uint8]:
    """RGB of every id, (256, 3) uint8: "#rrggbb" per class of `palette`, `ignored` of all other ids."""
    table = np.full((256, 3), ignored, dtype=np.uint8)
    table[: len(palette)] = [ImageColor.getrgb(colour) for colour in palette]
    return table
