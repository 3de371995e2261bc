"""Colours of classes that have no palette of their own."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

FIRST = (
    "#202020",
    "#ffcc00",
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#42d4f4",
    "#f032e6",
    "#bfef45",
)
STEPS = 16
DARKEST = 0.35  # of 0 to 1: OKLab tells darker ones better apart than screens do
# OKLab (B. Ottosson, 2020): distances in it are about those that an eye sees
TO_LMS = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
TO_LAB = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])


@cache
def distinct_colours(count: int) -> tuple[str, ...]:
    """`count` different colours "#rrggbb": each the farthest, to the eye, from all before it."""
    levels = np.linspace(0, 255, STEPS).round().astype(int)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    cube = cube[_lab(cube)[:, 0] > DARKEST]
    chosen = [[int(text[at : at + 2], 16) for at in (1, 3, 5)] for text in FIRST[:count]]
    looks, nearest = _lab(cube), np.full(len(cube), np.inf)
    for place in range(count):
        if place == len(chosen):
            chosen.append(cube[nearest.argmax()].tolist())
        distance = np.linalg.norm(looks - _lab(np.array(chosen[place])), axis=1)
        nearest = np.minimum(nearest, distance)
    return tuple("#{:02x}{:02x}{:02x}".format(*colour) for colour in chosen)


def _lab(colours: NDArray[np.int_]) -> NDArray[np.float64]:
    """OKLab of sRGB colours (..., 3) of 0..255."""
    share = colours / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ TO_LMS.T) @ TO_LAB.T
