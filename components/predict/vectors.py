"""Polygons of a map, made while its rows come: memory holds what goes on below them, not the map.

Each bunch of rows is cut into connected pieces. Pieces that reach the last of these rows wait until their
region ends, then they are joined. Until a polygon is written its corners are whole px of the map.

Legend: H W px of a bunch of whole rows, N its pieces (from 1; 0 = none).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray
from rasterio.transform import Affine
from scipy import ndimage
from scipy.cluster.hierarchy import DisjointSet

from crossearth.components.predict import maps
from crossearth.data.raster.pixel_area import Ground

# corners of the regions that wait, some 100 bytes each; when there are more, the largest is cut at a row
MOST_CORNERS = 4_000_000
ROWS_AT_A_TIME = 32  # the areas of all px of a bunch would take as much memory as its probabilities

Geometries = NDArray[np.object_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Polygon:
    """A region of one class, connected along the sides of px.

    Attributes:
        geometry: in px of the map: x to the right, y down.
        area_m2: of its px on the Earth's ellipsoid; NaN where the map has no place there.
        confidence: mean probability of its class over its px, 0..1.
    """

    geometry: Any
    class_id: int
    area_m2: float
    confidence: float


class Sink(Protocol):
    """Takes polygons."""

    def add(self, polygons: Sequence[Polygon]) -> None:
        """The polygons that ended with the last rows."""


@dataclass
class _Region:
    """What is known so far of a region that goes on below."""

    class_id: int
    parts: list[Any] = field(default_factory=list)
    pixels: int = 0
    area_m2: float = 0.0
    confidence: float = 0.0  # sum over its px

    @property
    def corners(self) -> int:
        return int(shapely.get_num_coordinates(self.parts).sum())

    def merge(self, other: "_Region") -> None:
        self.parts += other.parts
        self.pixels += other.pixels
        self.area_m2 += other.area_m2
        self.confidence += other.confidence

    def polygon(self) -> Polygon:
        # the joins leave corners in the middle of straight sides
        whole = self.parts[0] if len(self.parts) == 1 else shapely.simplify(shapely.union_all(self.parts), 0)
        return Polygon(whole, self.class_id, self.area_m2, self.confidence / self.pixels)


class Regions:
    """Cuts the rows of a map into polygons and gives each to a sink as soon as its last row has come.

    Args:
        width: of the map.
        ground: sizes of its px; None = unknown.
        classes: ids to make polygons of.
        min_area_m2: smaller polygons are left out.
        simplify_px: tolerance of `shapely.coverage_simplify`, in px; 0 = outlines follow the px. Neighbours
            keep their common sides. Corners on the first and last row of a bunch stay.

    Attributes:
        left_out: number of polygons below `min_area_m2`.
        cut: regions that were cut at a row because they had too many corners.
    """

    def __init__(
        self,
        sink: Sink,
        width: int,
        ground: Ground | None,
        classes: Sequence[int],
        min_area_m2: float = 0,
        simplify_px: float = 0,
    ) -> None:
        self.left_out = self.cut = 0
        self._sink, self._ground = sink, ground
        self._wanted = np.zeros(256, bool)
        self._wanted[list(classes)] = True
        self._min_area_m2, self._simplify_px = min_area_m2, simplify_px
        self._waiting: dict[int, _Region] = {}  # by a number that `_above_W` holds
        self._above_W = np.full(width, -1)  # of each px of the last row: the region that it is of, -1 = none

    def add(self, top: int, ids_HW: NDArray[np.uint8], confidence_HW: NDArray[np.uint8]) -> None:
        """Takes whole rows, those below the ones before.

        Args:
            top: the first of them.
            ids_HW: class ids, 255 = nodata.
            confidence_HW: probability of that class in steps of `maps.PROBABILITY_STEP`.
        """
        # to simplify a side both of its neighbours are needed
        pieces_HW, ids_N = _pieces(ids_HW, np.ones(256, bool) if self._simplify_px else self._wanted)
        regions = self._measure(top, pieces_HW, ids_N, confidence_HW)
        for geometry, piece in zip(*self._outlines(top, pieces_HW, ids_N), strict=True):
            regions[piece].parts.append(geometry)
        self._join(regions, pieces_HW)
        self._cut_the_largest()

    def close(self) -> None:
        """After the last rows."""
        self._emit(list(self._waiting.values()))
        self._waiting = {}

    def _measure(
        self,
        top: int,
        pieces_HW: NDArray[np.int32],
        ids_N: NDArray[np.uint8],
        confidence_HW: NDArray[np.uint8],
    ) -> dict[int, _Region]:
        """The wanted pieces by number, without outlines."""
        sums = np.zeros((3, len(ids_N)))
        for first in range(0, len(pieces_HW), ROWS_AT_A_TIME):
            rows = slice(first, first + ROWS_AT_A_TIME)
            numbers = pieces_HW[rows].ravel()
            shares = confidence_HW[rows].ravel() * maps.PROBABILITY_STEP
            if self._ground is None:
                areas = np.full(numbers.shape, np.nan)
            else:
                height = len(pieces_HW[rows])
                areas = np.concatenate([self._ground.areas_m2(top + first + row) for row in range(height)])
            for total, weights in zip(sums, (None, areas, shares), strict=True):
                total += np.bincount(numbers, weights, len(ids_N))
        return {
            int(piece): _Region(int(ids_N[piece]), [], int(sums[0, piece]), sums[1, piece], sums[2, piece])
            for piece in np.flatnonzero(self._wanted[ids_N] & (sums[0] > 0))
            if piece
        }

    def _outlines(
        self, top: int, pieces_HW: NDArray[np.int32], ids_N: NDArray[np.uint8]
    ) -> tuple[Geometries, list[int]]:
        """Outlines of the wanted pieces, and whose they are."""
        found = list(
            rasterio.features.shapes(
                pieces_HW, pieces_HW > 0, connectivity=4, transform=Affine.translation(0, top)
            )
        )
        numbers = np.array([int(number) for _, number in found], int)
        outlines = _polygons([outline["coordinates"] for outline, _ in found])
        if self._simplify_px and len(found):
            outlines = shapely.coverage_simplify(outlines, self._simplify_px, simplify_boundary=False)
        wanted = self._wanted[ids_N[numbers]]
        return outlines[wanted], numbers[wanted].tolist()

    def _join(self, pieces: dict[int, _Region], pieces_HW: NDArray[np.int32]) -> None:
        """Joins pieces to what waits above them; what does not reach the last row ends."""
        # pieces go by their numbers, what waits by numbers below 0
        regions = {-1 - number: region for number, region in self._waiting.items()} | pieces
        same = DisjointSet(regions)
        for number, piece in np.unique(np.stack([self._above_W, pieces_HW[0]]), axis=1).T.tolist():
            above, below = regions.get(-1 - number), pieces.get(piece)
            if number >= 0 and above and below and above.class_id == below.class_id:
                same.merge(-1 - number, piece)
        joined: dict[int, _Region] = {}
        for number, region in regions.items():
            root = same[number]
            if root in joined:
                joined[root].merge(region)
            else:
                joined[root] = region
        last = [piece for piece in np.unique(pieces_HW[-1]).tolist() if piece in pieces]
        going_on = {root: number for number, root in enumerate(dict.fromkeys(same[piece] for piece in last))}
        numbers_N = np.full(int(pieces_HW[-1].max()) + 1, -1)
        numbers_N[last] = [going_on[same[piece]] for piece in last]
        self._above_W = numbers_N[pieces_HW[-1]]
        self._waiting = {number: joined[root] for root, number in going_on.items()}
        self._emit([region for root, region in joined.items() if root not in going_on])

    def _cut_the_largest(self) -> None:
        corners = {number: region.corners for number, region in self._waiting.items()}
        while sum(corners.values()) > MOST_CORNERS:
            largest = max(corners, key=corners.__getitem__)
            del corners[largest]
            self._emit([self._waiting.pop(largest)])
            self._above_W[self._above_W == largest] = -1
            self.cut += 1

    def _emit(self, regions: Sequence[_Region]) -> None:
        ended = [region for region in regions if not region.area_m2 < self._min_area_m2]
        self.left_out += len(regions) - len(ended)
        self._sink.add([region.polygon() for region in ended])


def _polygons(rings_N: Sequence[Sequence[Any]]) -> Geometries:
    """Polygons of their rings, the outer one first: all at once, as one by one takes ten times as long."""
    rings = list(chain.from_iterable(rings_N))
    points = np.array(list(chain.from_iterable(rings)), float).reshape(-1, 2)
    lines = shapely.linearrings(points, indices=np.repeat(np.arange(len(rings)), list(map(len, rings))))
    polygons: Geometries = shapely.polygons(
        lines, indices=np.repeat(np.arange(len(rings_N)), list(map(len, rings_N)))
    )
    return polygons


def _pieces(
    ids_HW: NDArray[np.uint8], wanted: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Numbers of the connected pieces (H, W), and of each number the class id (N + 1)."""
    pieces_HW = np.zeros(ids_HW.shape, np.int32)
    ids_N = [np.full(1, maps.NODATA, np.uint8)]
    num = 0
    for value in np.flatnonzero(np.bincount(ids_HW.ravel(), minlength=256) * wanted):
        inside_HW = ids_HW == value
        labels_HW, count = ndimage.label(inside_HW)
        np.add(labels_HW, num, out=pieces_HW, where=inside_HW)
        ids_N.append(np.full(count, value, np.uint8))
        num += count
    return pieces_HW, np.concatenate(ids_N)
