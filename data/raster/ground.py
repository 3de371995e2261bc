"""Which rasters lie on the same ground, whatever their coordinate systems."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import transform

from crossearth.data.raster.gdal import GdalError

# along a side: an overlap of less than a 32nd of a side may go unseen, so that neighbours may touch
POINTS = 16
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Place:
    """Where a raster lies: `transform` (a, b, c, d, e, f) maps its px to units of `crs`; sides in px."""

    crs: str
    transform: tuple[float, ...]
    width: int
    height: int


def overlaps(ours: Sequence[Place], theirs: Sequence[Place]) -> list[tuple[int, int, float]]:
    """Rasters of both sides that share ground: each with the one that it shares most with.

    Args:
        ours, theirs: places; those without a CRS are nowhere.

    Returns:
        (index in `ours`, index in `theirs`, share of the smaller one's ground, 0..1), largest share first.
    """
    share_of: dict[tuple[Place, Place], float] = {}
    for crs in sorted({place.crs for place in ours} - {""}):
        for other in sorted({place.crs for place in theirs} - {""}):
            one, two = _distinct(ours, crs), _distinct(theirs, other)
            found = [(one[i], two[j], share) for i, j, share in _covered(one, two)]
            found += [(one[i], two[j], share) for j, i, share in _covered(two, one)]
            for our, their, share in found:
                share_of[our, their] = max(share, share_of.get((our, their), 0))
    best: dict[Place, tuple[Place, float]] = {}
    for (our, their), share in share_of.items():
        for place, partner in ((our, their), (their, our)):
            if share > best.get(place, (None, 0.0))[1]:
                best[place] = (partner, share)
    ours_at = {place: index for index, place in reversed(list(enumerate(ours)))}
    theirs_at = {place: index for index, place in reversed(list(enumerate(theirs)))}
    pairs = {(i, theirs_at[best[our][0]], best[our][1]) for i, our in enumerate(ours) if our in best}
    pairs |= {(ours_at[best[their][0]], j, best[their][1]) for j, their in enumerate(theirs) if their in best}
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))


def _distinct(places: Sequence[Place], crs: str) -> list[Place]:
    """The different places of a CRS that have an extent: many rasters may lie at one."""
    unique = dict.fromkeys(place for place in places if place.crs == crs)
    return [place for place in unique if not Affine(*place.transform).is_degenerate]


def _covered(ours: Sequence[Place], theirs: Sequence[Place]) -> Iterator[tuple[int, int, float]]:
    """(index of ours, of theirs, share of theirs that lies in ours) where there is some; one CRS a side."""
    if not ours or not theirs:
        return
    points = in_crs(_points(theirs, (np.arange(POINTS) + 0.5) / POINTS), theirs[0].crs, ours[0].crs)
    corners = _points(ours, np.array([0.0, 1.0]))
    for start in range(0, len(ours), ROWS_AT_ONCE):
        boxes = corners[start : start + ROWS_AT_ONCE, None]
        near = (points.max(1) > boxes.min(2)) & (points.min(1) < boxes.max(2))
        for row, other in np.argwhere(near.all(-1)).tolist():
            if share := _share_inside(ours[start + row], points[other]):
                yield start + row, other, share


def _share_inside(place: Place, points: NDArray[np.float64]) -> float:
    a, b, c, d, e, f = (~Affine(*place.transform))[:6]
    x, y = points.T
    cols, rows = a * x + b * y + c, d * x + e * y + f
    return float(((cols > 0) & (cols < place.width) & (rows > 0) & (rows < place.height)).mean())


def _points(places: Sequence[Place], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """(places, points, 2): x and y of a grid over each place, `shares` along its sides."""
    rows, cols = (part.ravel() for part in np.meshgrid(shares, shares, indexing="ij"))
    sides = np.array([(place.width, place.height) for place in places], float)
    a, b, c, d, e, f = np.array([place.transform for place in places]).T[:, :, None]
    cols, rows = cols * sides[:, :1], rows * sides[:, 1:]
    return np.stack([a * cols + b * rows + c, d * cols + e * rows + f], axis=-1)


def in_crs(points: NDArray[np.float64], crs: CRS | str, to: CRS | str) -> NDArray[np.float64]:
    """Points (..., 2) of one CRS in another; not finite where there is no way."""
    if crs == to:
        return points
    flat: Any = points.reshape(-1, 2).T
    try:
        moved = transform(CRS.from_user_input(crs), CRS.from_user_input(to), *flat)
    except (CRSError, RasterioError, GdalError):
        return np.full(points.shape, np.nan)
    return np.array(moved).T.reshape(points.shape)
