"""Colours that colour-blind readers tell apart."""

from collections.abc import Sequence

import numpy as np
from PIL import ImageColor

# Okabe and Ito, Color Universal Design, 2008, with light and dark grey in place of black
SAFE = ("#e6e6e6", "#0072b2", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#e69f00", "#cc79a7", "#333333")


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
