"""Colours that colour-blind readers tell apart."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

# Okabe and Ito, Color Universal Design, 2008, with light and dark grey in place of black
SAFE = ("#e6e6e6", "#0072b2", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#e69f00", "#cc79a7", "#333333")


def colour_table(palette: Sequence[str], ignored: tuple[int, int, int] = (0, 0, 0)) -> NDArray[np.uint8]:
    """RGB of every id, (256, 3) uint8: an array of ids as index gives a picture.

    Args:
        palette: "#rrggbb" per class.
        ignored: RGB of every id that is no class.
    """
    table = np.full((256, 3), ignored, dtype=np.uint8)
    table[: len(palette)] = [ImageColor.getrgb(colour) for colour in palette]
    return table


def safe_palette(palette: Sequence[str]) -> tuple[str, ...]:
    """The safe colours nearest to a class set's own, all different: water stays blue, trees stay green.

    Class sets of more than 9 classes keep their own colours.

    Args:
        palette: "#rrggbb" per class.
    """
    from scipy.optimize import linear_sum_assignment  # half a second that evaluation need not wait for

    if len(palette) > len(SAFE):
        return tuple(palette)
    own, safe = (
        np.array([ImageColor.getrgb(colour) for colour in each], dtype=float) for each in (palette, SAFE)
    )
    distance = ((own[:, None] - safe[None]) ** 2).sum(-1)
    _, chosen = linear_sum_assignment(distance)
    return tuple(SAFE[index] for index in chosen)
