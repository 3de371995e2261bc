"""Polygons of a map, made while its rows come: memory holds what goes on below them, not the map.

Each bunch of rows is cut into connected pieces. Pieces that reach the last of these rows wait until their
region ends. Until a polygon is written its corners are whole px of the map.

Legend: H W px of a bunch of whole rows, N its pieces (from 1; 0 = none), R regions: the pieces, and those
that waited above them, joined (from 1; 0 = none).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from crossearth.components.predict import maps
from crossearth.components.predict.outlines import CORNER, corners, trace
from crossearth.data.raster.pixel_area import Ground

# of the regions that wait; of more the largest is cut at a row
MOST_CORNERS = 2_000_000
TRACED_CORNERS = 100_000  # at a time, some 500 bytes each; a region is traced whole, however many it has
ROWS_AT_A_TIME = 32  # the areas of all px of a bunch would take as much memory as its probabilities
PART = np.dtype([("region", np.int32), ("outline", object)])

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Polygons:
    """Regions of one class each, connected along the sides of px.

    Attributes:
        outlines: (N,) shapely polygons in px of the map: x to the right, y down.
        class_ids: (N,) uint8.
        areas_m2: (N,), of their px on the Earth's ellipsoid; NaN where the map has no place there.
        confidences: (N,), mean probability of the class over the px, 0..1.
    """

    outlines: NDArray[np.object_]
    class_ids: NDArray[np.uint8]
    areas_m2: Floats
    confidences: Floats

    def __len__(self) -> int:
        return len(self.outlines)


class Regions:
    """Cuts the rows of a map into polygons and gives each to a sink as soon as its last row has come.

    Args:
        sink: takes the polygons that ended with the last rows.
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
        sink: Callable[[Polygons], None],
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
        # of what waits, from 1: where it is in the last row; class ids; px, areas and probabilities, summed;
        # its corners so far, or its parts where they are simplified
        self._above_W = np.zeros(width, np.int64)
        self._ids_R = np.zeros(1, np.uint8)
        self._sums_R = np.zeros((3, 1))
        self._shapes = np.empty(0, PART if simplify_px else CORNER)
        self._bottom = 0

    def add(self, top: int, ids_HW: NDArray[np.uint8], confidence_HW: NDArray[np.uint8]) -> None:
        """Takes whole rows, those below the ones before.

        Args:
            top: the first of them.
            ids_HW: class ids, 255 = nodata.
            confidence_HW: probability of that class in steps of `maps.PROBABILITY_STEP`.
        """
        # to simplify a side both of its neighbours are needed
        pieces_HW, ids_N = _pieces(ids_HW, np.ones(256, bool) if self._simplify_px else self._wanted)
        region_of_N, region_of_R, ids_R = self._joined(pieces_HW[0], ids_N)
        sums_R = np.stack(
            [
                np.bincount(region_of_N, of_pieces, len(ids_R)) + np.bincount(region_of_R, waited, len(ids_R))
                for of_pieces, waited in zip(
                    self._measure(top, pieces_HW, confidence_HW, len(ids_N)), self._sums_R, strict=True
                )
            ]
        )
        self._shapes["region"] = region_of_R[self._shapes["region"]]
        if self._simplify_px:
            fresh = self._simplified(top, pieces_HW, ids_N)
            fresh["region"] = region_of_N[fresh["region"]]
        else:
            inside = corners(top + 1, pieces_HW)
            inside["region"] = region_of_N[inside["region"]]
            seam = corners(top, np.stack([region_of_R[self._above_W], region_of_N[pieces_HW[0]]]))
            fresh = np.concatenate([seam, inside])
        self._shapes = np.concatenate([self._shapes, fresh])
        self._above_W, self._ids_R, self._sums_R = region_of_N[pieces_HW[-1]], ids_R, sums_R
        self._bottom = top + len(ids_HW)
        ended_R = self._wanted[ids_R]
        ended_R[self._above_W] = False
        self._emit(ended_R)
        self._cut_the_largest()

    def close(self) -> None:
        """After the last rows."""
        self._end(self._wanted[self._ids_R])

    def _joined(
        self, first_W: NDArray[np.int32], ids_N: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
        """Joins pieces to what waits above: the region of each piece and of all that waits, class ids."""
        above = self._above_W
        meet = (above > 0) & (first_W > 0) & (self._ids_R[above] == ids_N[first_W])
        num = len(ids_N) - 1, len(self._ids_R) - 1
        nodes = first_W[meet] - 1, above[meet] - 1 + num[0]
        links = coo_array((np.ones(len(nodes[0]), bool), nodes), shape=(sum(num), sum(num)))
        count, found = connected_components(links, directed=False)
        region_of_N, region_of_R = (
            np.concatenate([[0], part + 1]).astype(np.int64) for part in np.split(found, [num[0]])
        )
        ids_R = np.full(count + 1, maps.NODATA, np.uint8)
        ids_R[region_of_R], ids_R[region_of_N] = self._ids_R, ids_N
        return region_of_N, region_of_R, ids_R

    def _measure(
        self, top: int, pieces_HW: NDArray[np.int32], confidence_HW: NDArray[np.uint8], num: int
    ) -> Floats:
        """Of each piece the number of px, their area and the sum of their probabilities: (3, N + 1)."""
        sums = np.zeros((3, num))
        for first in range(0, len(pieces_HW), ROWS_AT_A_TIME):
            rows = slice(first, first + ROWS_AT_A_TIME)
            numbers = pieces_HW[rows].ravel().astype(np.intp)
            if self._ground is None:
                areas = np.full(numbers.shape, np.nan)
            else:
                height = len(pieces_HW[rows])
                areas = np.concatenate([self._ground.areas_m2(top + first + row) for row in range(height)])
            for total, weights in zip(sums, (None, areas, confidence_HW[rows].ravel()), strict=True):
                total += np.bincount(numbers, weights, num)
        sums[2] *= maps.PROBABILITY_STEP
        return sums

    def _simplified(self, top: int, pieces_HW: NDArray[np.int32], ids_N: NDArray[np.uint8]) -> NDArray[Any]:
        """The wanted pieces, their inner borders simplified."""
        of_all = corners(top, np.pad(pieces_HW, ((1, 1), (0, 0))))
        of_all["region"] -= 1
        outlines = trace(of_all, len(ids_N) - 1)
        if len(outlines):
            outlines = shapely.coverage_simplify(outlines, self._simplify_px, simplify_boundary=False)
        wanted = np.flatnonzero(self._wanted[ids_N[1:]])
        parts = np.empty(len(wanted), PART)
        parts["region"], parts["outline"] = wanted + 1, outlines[wanted]
        return parts

    def _cut_the_largest(self) -> None:
        counts = shapely.get_num_coordinates(self._shapes["outline"]) if self._simplify_px else None
        corners_R = np.bincount(self._shapes["region"], counts, len(self._ids_R))
        excess = corners_R.sum() - MOST_CORNERS
        if excess <= 0:
            return
        largest_first = np.argsort(-corners_R)
        num = 1 + int(np.searchsorted(np.cumsum(corners_R[largest_first]), excess))
        cut_R = np.zeros(len(corners_R), bool)
        cut_R[largest_first[:num]] = True
        self.cut += num
        self._end(cut_R)

    def _end(self, ended_R: NDArray[np.bool_]) -> None:
        """Ends regions that wait at the last row."""
        if not self._simplify_px:
            below = corners(self._bottom, np.stack([self._above_W, np.zeros_like(self._above_W)]))
            self._shapes = np.concatenate([self._shapes, below[ended_R[below["region"]]]])
        self._emit(ended_R)

    def _emit(self, ended_R: NDArray[np.bool_]) -> None:
        """Gives regions to the sink, and forgets them."""
        large_R = ended_R & ~(self._sums_R[1] < self._min_area_m2)
        self.left_out += int(ended_R.sum() - large_R.sum())
        ends = np.cumsum(np.bincount(self._shapes["region"], minlength=len(large_R)) * large_R)
        for first in range(0, int(ends[-1]), TRACED_CORNERS):
            self._give(large_R & (ends > first) & (ends <= first + TRACED_CORNERS))
        # what stays is numbered anew
        stays_R = self._wanted[self._ids_R] & ~ended_R
        stays_R[0] = True
        self._shapes = self._shapes[stays_R[self._shapes["region"]]]
        number_R = np.where(stays_R, np.cumsum(stays_R) - 1, 0)
        self._shapes["region"] = number_R[self._shapes["region"]]
        self._above_W = number_R[self._above_W]
        self._ids_R, self._sums_R = self._ids_R[stays_R], self._sums_R[:, stays_R]

    def _give(self, chosen_R: NDArray[np.bool_]) -> None:
        """Gives whole regions to the sink."""
        shapes = self._shapes[chosen_R[self._shapes["region"]]]
        shapes["region"] = (np.cumsum(chosen_R) - 1)[shapes["region"]]
        pixels, areas_m2, confidences = self._sums_R[:, chosen_R]
        outlines = self._outlines(shapes, len(pixels))
        self._sink(Polygons(outlines, self._ids_R[chosen_R], areas_m2, confidences / pixels))

    def _outlines(self, shapes: NDArray[Any], num: int) -> NDArray[np.object_]:
        if not self._simplify_px:
            return trace(shapes, num)
        parts: list[list[Any]] = [[] for _ in range(num)]
        for region, outline in shapes.tolist():
            parts[region].append(outline)
        # the joins leave corners in the middle of straight sides
        return np.array(
            [each[0] if len(each) == 1 else shapely.simplify(shapely.union_all(each), 0) for each in parts],
            object,
        )


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
