"""Class maps on disk: a Cloud Optimized GeoTIFF, its preview and its report."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetWriter

from crossearth.components.predict.style import attribute_table
from crossearth.components.runtime.palette import colour_table
from crossearth.data.raster.grid import Grid
from crossearth.data.raster.names import is_map_report
from crossearth.data.raster.pixel_area import Ground
from crossearth.data.raster.reading import thinned_size

NODATA = 255
PREVIEW_PX = 1024
CLASSES = "CLASSES"  # the map's tag that holds the names of its classes
# probabilities are stored as whole steps of this size: 255 stays free for nodata
PROBABILITY_STEP = 1 / 254
COG_OPTIONS = {"driver": "COG", "compress": "DEFLATE", "blocksize": 512, "bigtiff": "IF_SAFER"}


class Tally:
    """Counts pixels per value of a map and measures them on the ground, while the rows are written.

    Attributes:
        pixels: (256,) int64, per value.
        ground: sizes of the px; None where the grid has no place on the Earth.
    """

    def __init__(self, grid: Grid) -> None:
        self.pixels = np.zeros(256, np.int64)
        self.ground = Ground.of(grid.crs, grid.transform, grid.width, grid.height)
        self._areas_m2 = np.zeros(256)

    @property
    def areas_m2(self) -> NDArray[np.float64] | None:
        """(256,) float64, per value; None where the grid has no place on the Earth."""
        return None if self.ground is None else self._areas_m2

    def row_sizes_m2(self, top: int, height: int) -> NDArray[np.float64]:
        """Mean size of the px of each of some rows, (height,); 1 where the grid has no place on the Earth."""
        if self.ground is None:
            return np.ones(height)
        return np.array([self.ground.areas_m2(row).mean() for row in range(top, top + height)])

    def add(self, top: int, ids_HW: NDArray[np.uint8]) -> None:
        """Counts whole rows, the first of which is row `top` of the map."""
        self.pixels += np.bincount(ids_HW.ravel(), minlength=256)
        if self.ground is None:
            return
        # row by row: the areas of a whole strip would take as much memory as the scores of its classes
        for row, ids_W in enumerate(ids_HW, start=top):
            self._areas_m2 += np.bincount(ids_W, self.ground.areas_m2(row), minlength=256)


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
        blockxsize=1024,
        blockysize=64,  # a bunch of rows ends within a row of blocks, which then waits in memory
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
    colours = colour_table(palette)[: len(palette)].tolist()
    table = {index: (*colour, 255) for index, colour in enumerate(colours)}
    writer.write_colormap(1, {**table, NODATA: (0, 0, 0, 0)})
    writer.set_band_description(1, "class")
    writer.update_tags(**{CLASSES: json.dumps(classes, ensure_ascii=False)})
    writer.update_tags(1, **{f"CLASS_{index}": name for index, name in enumerate(classes)})


def describe_shares(writer: DatasetWriter, bands: list[str]) -> None:
    """Names the bands and says that value x scale is a share 0..1."""
    writer.scales = (PROBABILITY_STEP,) * len(bands)
    for index, name in enumerate(bands, start=1):
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


def write_side_file(
    raster: Path,
    crs: CRS | None,
    classes: Sequence[str] = (),
    palette: Sequence[str] = (),
    pixels: NDArray[np.int64] | None = None,
) -> None:
    """Writes `<raster>.aux.xml`, where GDAL and QGIS look for what GeoTIFF has no place for.

    That is the names of the classes and their table (the names stand in the map's tags, too), and a CRS that
    GeoTIFF cannot tell, such as one of a rotated pole. Where there is neither, no file stays.

    Args:
        pixels: px per value; None = no table.
    """
    dataset = ElementTree.Element("PAMDataset")
    if crs is not None and crs != _crs_inside(raster):
        system = ElementTree.SubElement(dataset, "SRS", dataAxisToSRSAxisMapping="1,2")
        system.text = crs.to_wkt(version="WKT2_2019")
    if classes:
        band = ElementTree.SubElement(dataset, "PAMRasterBand", band="1")
        names = ElementTree.SubElement(band, "CategoryNames")
        for name in classes:
            ElementTree.SubElement(names, "Category").text = name
        if pixels is not None:
            band.append(attribute_table(classes, palette, pixels))
    path = side_file(raster)
    path.unlink(missing_ok=True)  # GDAL may have written its own
    if len(dataset):
        ElementTree.indent(dataset)
        path.write_bytes(ElementTree.tostring(dataset, encoding="utf-8") + b"\n")


def _crs_inside(raster: Path) -> CRS | None:
    with rasterio.Env(GDAL_PAM_ENABLED=False), rasterio.open(raster) as file:
        return file.crs


def side_file(raster: Path) -> Path:
    """What GDAL reads with a raster: `<raster>.aux.xml`."""
    return raster.with_name(f"{raster.name}.aux.xml")


def write_preview(map_path: Path, out: Path, palette: list[str]) -> tuple[int, int]:
    """Writes the map in its colours as PNG, nodata transparent, the longer side at most `PREVIEW_PX`.

    Returns:
        Its rows and columns.
    """
    with rasterio.open(map_path) as scene:
        shape = thinned_size(scene.width, scene.height, PREVIEW_PX)
        ids_HW = scene.read(1, out_shape=shape, resampling=Resampling.nearest)
    opaque = np.where(np.arange(256) < len(palette), 255, 0)
    colours = np.column_stack([colour_table(palette), opaque]).astype(np.uint8)
    Image.fromarray(colours[ids_HW]).save(out, "PNG")
    return shape


def report(grid: Grid, classes: list[str], tally: Tally) -> dict[str, Any]:
    """Area and share per class.

    Returns:
        JSON-serialisable; shares are fractions of the pixels that are not nodata (None if there are none),
        areas are m2 on the Earth's ellipsoid (None where the grid has no place there), that of a pixel is the
        mean over the map.
    """
    pixels, areas_m2 = tally.pixels, tally.areas_m2
    mapped = int(pixels[:NODATA].sum())
    return {
        "width": grid.width,
        "height": grid.height,
        "crs": None if grid.crs is None else grid.crs.to_string(),
        "transform": list(grid.transform)[:6],
        "pixel_area_m2": None if areas_m2 is None else float(areas_m2.sum() / pixels.sum()),
        "nodata_pixels": int(pixels[NODATA]),
        "classes": [
            {
                "id": index,
                "name": name,
                "pixels": int(pixels[index]),
                "share": int(pixels[index]) / mapped if mapped else None,
                "area_m2": None if areas_m2 is None else float(areas_m2[index]),
            }
            for index, name in enumerate(classes)
        ],
        "notes": grid.notes(areas_m2 is not None),
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
