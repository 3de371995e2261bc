"""Labels that were drawn as shapes: they become class ids on an image's grid, a window at a time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.features import rasterize
from shapely import clip_by_rect
from shapely.geometry.base import BaseGeometry

from crossearth.data.common.errors import InputError
from crossearth.data.raster.reader import Raster, middles

FAR_PX = 10_000


class Bitmap(NamedTuple):
    """Px of a shape that has no outline: `mask` (H, W) lies with its first px at (`left`, `top`)."""

    left: int
    top: int
    mask: NDArray[np.bool_]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        height, width = self.mask.shape
        return self.left, self.top, self.left + width, self.top + height


class Shape(NamedTuple):
    """A name, and the area that has it: in px of the image, x to the right and y down from its corner."""

    name: str
    area: BaseGeometry | Bitmap


@dataclass(frozen=True)
class DrawnLabels:
    """Labels of one image as shapes, from the lowest to the topmost.

    Attributes:
        where: how to name them to the user.
        width, height: of the image, px.
        shapes: (class id, area).
        outside: id of px that no shape covers.
        all_touched: whether outlines take every px that they touch, else those whose middle they cover.
    """

    where: str
    width: int
    height: int
    shapes: tuple[tuple[int, BaseGeometry | Bitmap], ...]
    outside: int
    all_touched: bool = False

    def read(self, window: Any, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Class ids, as `Labels` has it."""
        (top, bottom), (left, right) = window or ((0, self.height), (0, self.width))
        ids = np.full((bottom - top, right - left), self.outside, np.uint8)
        here = [each for each in self.shapes if _meets(each[1].bounds, (left, top, right, bottom))]
        for drawn, run in groupby(here, key=lambda each: not isinstance(each[1], Bitmap)):
            if drawn:
                near = [(_near(area, (left, top, right, bottom)), id) for id, area in run]
                near = [(area, id) for area, id in near if not area.is_empty]
                place = Affine.translation(left, top)
                if near:
                    rasterize(near, out=ids, transform=place, all_touched=self.all_touched)
            else:
                for id, area in run:
                    _stamp(ids, id, area, left, top)
        if ids.shape == shape:
            return ids
        rows, cols = (middles((0, side), cells) for side, cells in zip(ids.shape, shape, strict=True))
        return ids[rows][:, cols]


def refuse_other_size(size: tuple[Any, Any], image: Raster, where: object) -> None:
    """Refuses shapes that were drawn on an image of another (width, height)."""
    ours = image.dataset.width, image.dataset.height
    if size != ours:
        raise InputError(
            f"labels of {size[0]} x {size[1]} px for an image of {ours[0]} x {ours[1]} px",
            where=where,
            expected=f"the size of {image.where}",
        )


def in_order(
    shapes: Iterable[tuple[int, BaseGeometry | Bitmap]], order: Sequence[int] | None
) -> tuple[tuple[int, BaseGeometry | Bitmap], ...]:
    """Shapes from the lowest to the topmost; of one class, and without an order, as they come."""
    there = tuple(each for each in shapes if isinstance(each[1], Bitmap) or not each[1].is_empty)
    return there if order is None else tuple(sorted(there, key=lambda each: order.index(each[0])))


def _meets(bounds: Sequence[float], window: Sequence[float]) -> bool:
    # px that a shape only touches count where all_touched is said
    left, top, right, bottom = bounds
    return left <= window[2] and right >= window[0] and top <= window[3] and bottom >= window[1]


def _near(area: BaseGeometry, window: Sequence[float]) -> BaseGeometry:
    """An outline without what lies far outside: GDAL walks along all of its edges, px by px."""
    around = window[0] - FAR_PX, window[1] - FAR_PX, window[2] + FAR_PX, window[3] + FAR_PX
    left, top, right, bottom = area.bounds
    if left >= around[0] and top >= around[1] and right <= around[2] and bottom <= around[3]:
        return area
    return clip_by_rect(area, *around)


def _stamp(ids: NDArray[np.uint8], id: int, area: Bitmap, left: int, top: int) -> None:
    height, width = ids.shape
    first_row, first_col = max(area.top - top, 0), max(area.left - left, 0)
    mask = area.mask[max(top - area.top, 0) :, max(left - area.left, 0) :]
    mask = mask[: max(height - first_row, 0), : max(width - first_col, 0)]
    rows, cols = mask.shape
    ids[first_row : first_row + rows, first_col : first_col + cols][mask] = id
