"""Class maps on disk: a Cloud Optimized GeoTIFF, its preview and its report."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.rpc import RPC
from rasterio.transform import Affine

from crossearth.data.raster_names import is_map_report

NODATA = 255
CLASSES = "CLASSES"  # the map's tag that holds the names of its classes
# probabilities are stored as whole steps of this size: 255 stays free for nodata
PROBABILITY_STEP = 1 / 254
COG_OPTIONS = {"driver": "COG", "compress": "DEFLATE", "blocksize": 512, "bigtiff": "IF_SAFER"}


@dataclass(frozen=True)
class Grid:
    """Where a raster's pixels lie.

    Attributes:
        width, height: size in px.
        crs, transform: where known, else None and identity.
        gcps, gcps_crs: ground control points, where there is no transform.
        rpcs: rational polynomial coefficients, where there is no transform.
    """

    width: int
    height: int
    crs: CRS | None
    transform: Affine
    gcps: tuple[GroundControlPoint, ...] = ()
    gcps_crs: CRS | None = None
    rpcs: RPC | None = None

    @classmethod
    def of(cls, source: DatasetReader) -> "Grid":
        """The grid of an open raster."""
        size = (source.width, source.height)
        if not source.transform.is_identity:
            return cls(*size, source.crs, source.transform)
        gcps, gcps_crs = source.gcps
        return cls(*size, source.crs, source.transform, tuple(gcps), gcps_crs, source.rpcs)

    def pixel_area_m2(self) -> float | None:
        """Ground area of a pixel; None where the CRS is absent or geographic."""
        if self.crs is None or not self.crs.is_projected:
            return None
        _, metres_per_unit = self.crs.linear_units_factor
        return float(abs(self.transform.determinant) * metres_per_unit**2)

    def notes(self) -> list[str]:
        """What a user of the map should know about its place on the ground."""
        notes = []
        if self.gcps or self.rpcs:
            how, warp = ("ground control points", "-tps") if self.gcps else ("an RPC model", "-rpc")
            return [
                f"the scene is placed by {how} only: the map keeps that, areas are not known; "
                f"gdalwarp {warp} MAP.tif PLACED.tif lays it on the ground"
            ]
        if self.crs is None:
            notes.append("the scene has no CRS: the map has none either, and areas are not known")
        elif not self.crs.is_projected:
            notes.append("the CRS is geographic: areas are not computed")
        if self.transform.is_identity:
            notes.append("the scene has no geotransform: the map is in pixels")
        elif not self.transform.is_rectilinear:
            notes.append("the grid is rotated or sheared: the map keeps the scene's transform")
        return notes


@contextmanager
def rows_writer(path: Path, grid: Grid, bands: int) -> Iterator[DatasetWriter]:
    """Opens an intermediate tiled GeoTIFF of uint8 bands, nodata 255, that takes rows from top to bottom."""
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=grid.width,
        height=grid.height,
        count=bands,
        dtype="uint8",
        nodata=NODATA,
        crs=grid.crs,
        transform=None if grid.transform.is_identity else grid.transform,
        tiled=True,
        blockxsize=512,
        blockysize=512,
        compress="zstd",
        zstd_level=1,
        bigtiff="if_safer",
    ) as writer:
        if grid.gcps:
            writer.gcps = (list(grid.gcps), grid.gcps_crs)
        if grid.rpcs:
            writer.rpcs = grid.rpcs
        yield writer


def describe_classes(writer: DatasetWriter, classes: list[str], palette: list[str]) -> None:
    """Gives band 1 its colour table and its class names; call before writing pixels."""
    table = {index: (*_rgb(colour), 255) for index, colour in enumerate(palette)}
    writer.write_colormap(1, {**table, NODATA: (0, 0, 0, 0)})
    writer.set_band_description(1, "class")
    writer.update_tags(**{CLASSES: json.dumps(classes, ensure_ascii=False)})
    writer.update_tags(1, **{f"CLASS_{index}": name for index, name in enumerate(classes)})


def describe_probabilities(writer: DatasetWriter, classes: list[str]) -> None:
    """Names the bands after the classes and says that value x scale is a share 0..1."""
    writer.scales = (PROBABILITY_STEP,) * len(classes)
    for index, name in enumerate(classes, start=1):
        writer.set_band_description(index, name)


def write_cog(rows: Path, out: Path, resampling: str) -> None:
    """Copies the intermediate GeoTIFF to a Cloud Optimized GeoTIFF with overviews.

    Args:
        resampling: of the overviews; "MODE" for classes, "AVERAGE" for shares.
    """
    rasterio.shutil.copy(rows, out, overview_resampling=resampling, **COG_OPTIONS)


def count_pixels(map_path: Path) -> NDArray[np.int64]:
    """Pixels per value of a map, (256,) int64, read back from the file."""
    pixels = np.zeros(256, np.int64)
    with rasterio.open(map_path) as scene:
        for _, window in scene.block_windows(1):
            pixels += np.bincount(scene.read(1, window=window).ravel(), minlength=256)
    return pixels


def write_category_names(path: Path, classes: list[str]) -> None:
    """Writes the class names where GDAL and QGIS look for them: `<map>.aux.xml` beside the map.

    GeoTIFF has no place of its own for category names; the same names stand in the map's tags.
    """
    dataset = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(dataset, "PAMRasterBand", band="1")
    names = ElementTree.SubElement(band, "CategoryNames")
    for name in classes:
        ElementTree.SubElement(names, "Category").text = name
    ElementTree.indent(dataset)
    path.write_bytes(ElementTree.tostring(dataset, encoding="utf-8") + b"\n")


def write_preview(map_path: Path, out: Path, palette: list[str], size_px: int) -> None:
    """Writes the map in its colours as PNG, nodata transparent, the longer side at most `size_px`."""
    with rasterio.open(map_path) as scene:
        shrink = max(1.0, max(scene.width, scene.height) / size_px)
        shape = (max(1, round(scene.height / shrink)), max(1, round(scene.width / shrink)))
        ids_HW = scene.read(1, out_shape=shape, resampling=Resampling.nearest)
    colours = np.zeros((256, 4), np.uint8)
    colours[: len(palette)] = [(*_rgb(colour), 255) for colour in palette]
    image_4HW = colours[ids_HW].transpose(2, 0, 1)
    with (
        rasterio.Env(GDAL_PAM_ENABLED=False),
        rasterio.open(
            out, "w", driver="PNG", width=shape[1], height=shape[0], count=4, dtype="uint8"
        ) as preview,
    ):
        preview.write(image_4HW)


def report(grid: Grid, classes: list[str], pixels: NDArray[np.int64]) -> dict[str, Any]:
    """Area and share per class.

    Args:
        pixels: (256,) int64, pixels per value of the map; index 255 counts nodata.

    Returns:
        JSON-serialisable; shares are fractions of the pixels that are not nodata (None if there are none),
        areas are m2 (None where the CRS does not give them).
    """
    mapped = int(pixels[:NODATA].sum())
    area_m2 = grid.pixel_area_m2()
    return {
        "width": grid.width,
        "height": grid.height,
        "crs": None if grid.crs is None else grid.crs.to_string(),
        "transform": list(grid.transform)[:6],
        "pixel_area_m2": area_m2,
        "nodata_pixels": int(pixels[NODATA]),
        "classes": [
            {
                "id": index,
                "name": name,
                "pixels": int(pixels[index]),
                "share": int(pixels[index]) / mapped if mapped else None,
                "area_m2": None if area_m2 is None else int(pixels[index]) * area_m2,
            }
            for index, name in enumerate(classes)
        ],
        "notes": grid.notes(),
    }


def is_map(path: Path) -> bool:
    """Whether a file is a map that `describe_classes` named the classes of."""
    try:
        with rasterio.open(path) as raster:
            return CLASSES in raster.tags()
    except (RasterioError, OSError):
        return False


def is_report(path: Path) -> bool:
    """Whether a file is the report of a map."""
    try:
        return is_map_report(path.read_bytes())
    except OSError:
        return False


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue
