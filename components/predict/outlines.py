"""Outlines of regions, traced along the sides of their px: from corners, which may come in any order.

A corner knows how the two sides that meet in it go on, and so whole outlines follow from nothing but corners:
regions that are still growing are kept as these, a few bytes each. `rasterio.features.shapes` on bunches of
rows, with a union of the parts that meet, gives equal polygons for 2.6 times the CPU seconds.

Legend: H W rows and columns of px, N corners, R regions.
"""

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

# x, y: place in px. right, down: whether the level side goes on to the right, and the upright one downwards.
# below, beyond: whether the region lies below the level side, and to the right of the upright one.
# pinch: whether four px meet here of which no two neighbours are of one region.
CORNER = np.dtype(
    [
        ("region", np.int32),
        ("x", np.int32),
        ("y", np.int32),
        *((name, np.bool_) for name in ("right", "down", "below", "beyond", "pinch")),
    ]
)

Corners = NDArray[np.void]


def corners(top: int, regions_HW: NDArray[Any]) -> Corners:
    """The corners of regions that lie between these rows, none of those on the first and last edge.

    Args:
        top: y of the edge between the first two rows.
        regions_HW: numbers of the regions, 0 = none; left and right of it there is none.

    Returns:
        (N,) of `CORNER`.
    """
    framed = np.pad(regions_HW, ((0, 0), (1, 1)))
    level, upright = framed[:, 1:] == framed[:, :-1], framed[1:] == framed[:-1]
    same_above, same_below, same_left, same_right = level[:-1], level[1:], upright[:, :-1], upright[:, 1:]
    y, x = np.nonzero(~((same_above & same_below) | (same_left & same_right)))
    pinch = ~(level[y, x] | level[y + 1, x] | upright[y, x] | upright[y, x + 1])
    around = {(down, right): framed[y + down, x + right] for down in (0, 1) for right in (0, 1)}
    found = []
    for (down, right), own in around.items():
        aside, over = around[down, 1 - right], around[1 - down, right]
        outer = (own != aside) & (own != over) & (own > 0)
        inner = (own == aside) & (own == over) & (own > 0)  # what is missing is the px across
        for chosen, is_outer in ((outer, True), (inner, False)):
            part = np.empty(np.count_nonzero(chosen), CORNER)
            part["region"], part["x"], part["y"] = own[chosen], x[chosen], y[chosen] + top
            part["right"], part["down"] = right == is_outer, down == is_outer
            part["below"], part["beyond"] = down, right
            part["pinch"] = pinch[chosen]
            found.append(part)
    return np.concatenate(found)


def trace(corners_N: Corners, num: int) -> NDArray[np.object_]:
    """Outlines of regions of which all corners are known.

    Args:
        corners_N: of regions 0 to num - 1, each connected along the sides of its px.

    Returns:
        Valid polygons (num,): where a region meets itself in a corner, a hole touches its outline there.
    """
    region, x, y = (corners_N[name].astype(np.int64) for name in ("region", "x", "y"))
    level = _partners(corners_N["below"], region, y, x)
    upright = _partners(corners_N["beyond"], region, x, y)
    across = np.arange(len(corners_N))
    pinched = np.flatnonzero(corners_N["pinch"])
    pinched = pinched[np.lexsort((x[pinched], y[pinched], region[pinched]))]
    first, second = pinched[:-1], pinched[1:]
    itself = (region[first] == region[second]) & (y[first] == y[second]) & (x[first] == x[second])
    first, second = first[itself], second[itself]
    across[first], across[second] = second, first
    # with the region at the left hand: along an upright side, round the corner, along a level one
    ends = across[upright]
    goes_on = across[level[ends]].tolist()
    begins_side = corners_N["down"] == corners_N["beyond"]
    left = begins_side.tolist()
    candidates = np.flatnonzero(begins_side)
    order: list[int] = []
    begins: list[int] = []
    # from the top left, so that an outline does not depend on the order of its corners
    for start in candidates[np.lexsort((x[candidates], y[candidates]))].tolist():
        if left[start]:
            begins.append(len(order))
            while left[start]:
                left[start] = False
                order.append(start)
                start = goes_on[start]
    sides = np.array(order, int)
    ring_of = np.repeat(np.arange(len(begins)), np.diff([*begins, len(order)]))
    points = np.stack([sides, upright[sides]], axis=1).ravel()
    rings = shapely.linearrings(
        np.stack([x[points], y[points]], axis=1).astype(float), indices=np.repeat(ring_of, 2)
    )
    areas = np.bincount(ring_of, x[sides] * (y[sides] - y[upright[sides]]), len(begins))
    owners = region[sides[begins]] if begins else np.zeros(0, np.int64)
    outer_first = np.lexsort((areas < 0, owners))
    polygons: NDArray[np.object_] = shapely.polygons(rings[outer_first], indices=owners[outer_first])
    return polygons


def _partners(
    side: NDArray[np.bool_], region: NDArray[np.int64], line: NDArray[np.int64], along: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Of each corner the one at the other end of its level, or upright, side."""
    lines, length = (int(each.max(initial=0)) + 1 for each in (line, along))
    order = np.argsort(((region * lines + line) * 2 + side) * length + along)
    partners = np.empty(len(order), np.int64)
    partners[order[::2]], partners[order[1::2]] = order[1::2], order[::2]
    return partners
