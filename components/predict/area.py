"""The part of a scene that the user asks for: a box, or the polygons of a vector file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.features import geometry_mask
from rasterio.transform import Affine

from crossearth.components.predict.maps import Grid
from crossearth.data.common.errors import InputError
from crossearth.data.raster.ground import in_crs

EDGE_PARTS = 64  # an edge that is straight in one CRS bends in another
Span = tuple[int, int]


@dataclass(frozen=True)
class Asked:
    """What the user asks for: shapely polygons of a CRS, and how the command named them."""

    polygons: Sequence[Any]
    crs: CRS
    where: str


@dataclass(frozen=True)
class Area:
    """Polygons in px of a scene (x = column, y = row).

    Attributes:
        rows, columns: the px that they touch.
    """

    polygons: Sequence[Any]
    rows: Span
    columns: Span

    def mask(
        self, rows: Span, columns: Span, scale: tuple[float, float] = (1, 1), touched: bool = False
    ) -> NDArray[np.bool_]:
        """(H, W), true where the middle of a px lies in a polygon.

        Args:
            rows, columns: spans of the grid that is asked, whose origin is the area's first row and column.
            scale: px of that grid per px of the scene, down and across.
            touched: true also where a polygon touches the px.
        """
        shape = (rows[1] - rows[0], columns[1] - columns[0])
        (down, across), (top, left) = scale, (self.rows[0], self.columns[0])
        frame = Affine.translation(left + columns[0] / across, top + rows[0] / down)
        low, high = frame @ (0, 0), frame @ (shape[1] / across, shape[0] / down)
        near = [each for each in self.polygons if _meets(each.bounds, (*low, *high))]
        if not near:
            return np.zeros(shape, bool)
        return geometry_mask(
            near, shape, frame @ Affine.scale(1 / across, 1 / down), all_touched=touched, invert=True
        )


def box(bounds: Sequence[float], crs: str) -> Asked:
    """A box west, south, east, north.

    Raises:
        InputError: not a CRS; a box without inside, or degrees that are none.
    """
    import shapely  # takes a while to import, and few ask for an area

    west, south, east, north = bounds
    where = "--bbox " + ",".join(f"{bound:.10g}" for bound in bounds)
    system = _crs(crs, where)
    if system.is_geographic and (max(abs(west), abs(east)) > 360 or max(abs(south), abs(north)) > 90):
        raise InputError(
            "no degrees of longitude and latitude",
            where=where,
            expected="west,south,east,north in degrees, or another CRS named behind them",
            next_step=f"{where},EPSG:32633 (the CRS of these numbers)",
        )
    if not (west < east and south < north):
        raise InputError("a box without inside", where=where, expected="west < east, south < north")
    return Asked([shapely.box(west, south, east, north)], system, where)


def polygons_of(path: Path) -> Asked:
    """The polygons of a vector file (of its first layer): GeoPackage, GeoJSON, Shapefile, GeoParquet, ...

    Raises:
        InputError: no such file, not a vector file, no polygons, no CRS.
    """
    import geopandas

    where = f"--aoi {path}"
    if not Path(path).exists():
        raise InputError("no such file", where=where)
    try:
        if Path(path).suffix.lower() in (".parquet", ".geoparquet"):
            found = geopandas.read_parquet(path)
        else:
            found = geopandas.read_file(path)
    except Exception as error:  # each library below raises its own
        raise InputError(
            f"not a vector file that can be read: {str(error).splitlines()[0][:200]}",
            where=where,
            expected="GeoPackage, GeoJSON, Shapefile, GeoParquet or another that GDAL reads",
        ) from error
    shapes = [] if "geometry" not in found else list(found.geometry.dropna())
    polygons = [each for each in shapes if each.area > 0]
    if not polygons:
        raise InputError("no polygon in it", where=where, expected="polygons of the area to be mapped")
    if found.crs is None:
        raise InputError(
            "polygons without a CRS",
            where=where,
            expected="one that says where they lie",
            next_step="ogr2ogr -a_srs EPSG:4326 PLACED.gpkg FILE, with their CRS",
        )
    return Asked(polygons, CRS.from_wkt(found.crs.to_wkt()), where)


def area_of(asked: Asked, grid: Grid, scene: object) -> Area:
    """What is asked for, in px of a scene.

    Raises:
        InputError: a scene that has no CRS or no geotransform; an area that does not meet it.
    """
    import shapely

    own = grid.crs
    if own is None or grid.transform.is_identity:
        raise InputError(
            f"the scene has no {'CRS' if own is None else 'geotransform'}: where {asked.where} lies in "
            "it is not known",
            where=scene,
            expected="a scene that is placed on the ground",
            next_step="place it with gdal_translate -a_srs or gdalwarp, or map all of it",
        )
    to_px = ~grid.transform
    polygons = []
    for polygon in asked.polygons:
        west, south, east, north = polygon.bounds
        dense = shapely.segmentize(polygon, max(east - west, north - south) / EDGE_PARTS)
        placed = shapely.transform(dense, lambda points: _moved(points, asked.crs, own, to_px))
        if np.isfinite(shapely.get_coordinates(placed)).all():
            polygons.append(shapely.make_valid(placed))
    inside = [each for each in polygons if _meets(each.bounds, (0, 0, grid.width, grid.height))]
    if not inside:
        raise InputError(
            f"{asked.where} does not meet the scene",
            where=scene,
            expected=f"something within {_extent(grid, own, asked.crs)}",
            next_step="look at both in a GIS; a box is in longitude and latitude unless its CRS is named",
        )
    left, top, right, bottom = shapely.total_bounds(inside)
    rows = (max(0, int(np.floor(top))), min(grid.height, int(np.ceil(bottom))))
    columns = (max(0, int(np.floor(left))), min(grid.width, int(np.ceil(right))))
    return Area(inside, rows, columns)


def _moved(points: NDArray[np.float64], crs: CRS, to: CRS, to_px: Affine) -> NDArray[np.float64]:
    moved = in_crs(points, crs, to)
    x, y = to_px @ (moved[:, 0], moved[:, 1])
    return np.stack([x, y], axis=1)


def _extent(grid: Grid, own: CRS, crs: CRS) -> str:
    """Bounds of a scene in a CRS, as `--bbox` takes them."""
    edge = np.linspace(0, 1, EDGE_PARTS)
    columns = np.concatenate([edge, edge, 0 * edge, 0 * edge + 1]) * grid.width
    rows = np.concatenate([0 * edge, 0 * edge + 1, edge, edge]) * grid.height
    points = in_crs(np.stack(grid.transform @ (columns, rows), axis=1), own, crs)
    bounds = (*points.min(0), *points.max(0))
    return ",".join(f"{bound:.8g}" for bound in bounds) + f" ({crs.to_string()[:40]})"


def _crs(text: str, where: str) -> CRS:
    try:
        return CRS.from_user_input(text)
    except CRSError as error:
        raise InputError(f"not a CRS: {text!r}", where=where, expected="for example EPSG:32633") from error


def _meets(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and one[2] > other[0] and one[1] < other[3] and one[3] > other[1]
