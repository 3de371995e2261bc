"""How large pixels are on the ground: on the Earth's ellipsoid, whatever their CRS makes of areas."""

import math

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from rasterio.warp import transform
from scipy.interpolate import BSpline, make_interp_spline

from crossearth.data.raster.gdal import GdalError

Floats = NDArray[np.float64]

GEOCENTRIC = CRS.from_epsg(4978)  # metres from the Earth's centre: no pole and no antimeridian in it
EARTH_M = 6.4e6
STEP_M = 100  # far above the tenths of a millimetre to which PROJ inverts some projections
NODES = 33  # a side: cubic between them, a map of the whole world is right to 1e-4


class Ground:
    """Pixel areas of a raster of `height` rows and `width` columns that has a place on the Earth."""

    def __init__(self, areas: Floats, rows: Floats, columns: Floats, width: int) -> None:
        """Of the areas at the nodes (rows, columns); a cubic spline lies between them."""
        along = make_interp_spline(rows, areas)
        across = make_interp_spline(columns, along.c.T)
        # what each px takes of its row's spline is the same for all rows
        self._row = BSpline(along.t, across.c.T, along.k)
        self._shares = BSpline.design_matrix(np.arange(width) + 0.5, across.t, across.k)

    @classmethod
    def of(cls, crs: CRS | None, affine: Affine, width: int, height: int) -> "Ground | None":
        """The raster's; None where its CRS and transform do not place all of it on the Earth."""
        rows, columns = _nodes(height), _nodes(width)
        areas = _areas_m2(crs, affine, np.repeat(rows, NODES), np.tile(columns, NODES))
        return None if areas is None else cls(areas.reshape(NODES, NODES), rows, columns, width)

    def areas_m2(self, row: int) -> Floats:
        """Areas of the pixels of one row, (width,)."""
        # a pole may lie within: no cubic goes below 0 there
        return np.maximum(self._shares @ self._row(row + 0.5), 0)


def _nodes(length: int) -> Floats:
    """From the middle of the first pixel to that of the last, or a little farther: a pole may be the edge."""
    inset = 0.5 - 0.5 / length
    return np.linspace(inset, length - inset, NODES)


def pixel_side_m(crs: CRS | None, affine: Affine, width: int, height: int) -> float | None:
    """Side of a square as large as a raster's middle pixel; None where it has no place on the Earth."""
    areas = _areas_m2(crs, affine, np.array([height / 2]), np.array([width / 2]))
    return None if areas is None else math.sqrt(areas[0])


def pixel_sides_m(crs: CRS | None, affine: Affine, width: int, height: int) -> tuple[float, float] | None:
    """Metres on the ground from one row to the next, and from one column to the next, amid a raster.

    None where it has no place on the Earth.
    """
    corners = _around(crs, affine, np.array([height / 2]), np.array([width / 2]))
    if corners is None:
        return None
    around_m, step = corners  # of a square in units of the CRS, counter-clockwise from its lower left
    right_m = (around_m[:, 1] + around_m[:, 2] - around_m[:, 0] - around_m[:, 3])[:, 0] / (4 * step)
    up_m = (around_m[:, 2] + around_m[:, 3] - around_m[:, 0] - around_m[:, 1])[:, 0] / (4 * step)
    down, across = affine.b * right_m + affine.e * up_m, affine.a * right_m + affine.d * up_m
    return float(np.linalg.norm(down)), float(np.linalg.norm(across))


def _areas_m2(crs: CRS | None, affine: Affine, rows: Floats, columns: Floats) -> Floats | None:
    """Area of a pixel around each point; None where a point is not on the Earth."""
    around = _around(crs, affine, rows, columns)
    if around is None:
        return None
    corners, step = around
    across = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1], axis=0)
    return np.linalg.norm(across, axis=0) / 2 * abs(affine.determinant) / (2 * step) ** 2


def _around(crs: CRS | None, affine: Affine, rows: Floats, columns: Floats) -> tuple[Floats, float] | None:
    """Geocentric places (3, 4, points) of the corners of a small square around each point, and half its side.

    The side is in units of the CRS. None where a point is not on the Earth.
    """
    if crs is None or affine.is_identity or not (crs.is_projected or crs.is_geographic):
        return None
    unit = crs.units_factor[1]  # metres or radians
    step = STEP_M / unit / (1 if crs.is_projected else EARTH_M)
    x, y = affine @ (columns, rows)
    around_x, around_y = (step * np.array(signs)[:, None] for signs in ((-1, 1, 1, -1), (-1, -1, 1, 1)))
    xs, ys = x + around_x, y + around_y
    if crs.is_geographic:
        pole = math.pi / 2 / unit
        # grids of pixel centres reach beyond a pole by half a pixel; what lies farther is no latitude
        if np.abs(y).max() > pole + abs(affine.d) + abs(affine.e):
            return None
        ys = ys.clip(-pole, pole)
    try:
        places = transform(crs, GEOCENTRIC, xs.ravel(), ys.ravel(), np.zeros(xs.size))
    except (GdalError, RasterioError):
        return None
    corners = np.reshape(places, (3, 4, -1))
    return (corners, step) if np.isfinite(corners).all() else None
