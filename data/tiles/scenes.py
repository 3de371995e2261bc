"""Scenes on disk and the windows that are their tiles.

A scene is stored once, as two GeoTIFFs (three uint8 planes; one plane of class ids), and a tile is a window
in it: Potsdam is 76 files instead of 10 944. The files are tiled 256 x 256, band by band, ZSTD level 1 with
horizontal differencing, and keep CRS and transform; data/README.md has the measurement behind it.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.io import DatasetWriter, MemoryFile

from crossearth.data.catalog.domains import Rule, Tiling, window_starts
from crossearth.data.catalog.labels import IGNORE
from crossearth.data.common.errors import InputError
from crossearth.data.raster.grid import Grid
from crossearth.data.raster.masks import Labels
from crossearth.data.raster.reader import Raster
from crossearth.data.raster.reading import Reading, fit

BLOCK_PX = 256
LOOK_CELLS = 16
SEEN_PX = "SEEN_PX"  # tag of a padded scene


class Window(NamedTuple):
    """A rectangle of pixels in a scene."""

    col_off: int
    row_off: int
    width: int
    height: int

    def slices(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """((row start, row stop), (col start, col stop)), as rasterio takes windows."""
        return (self.row_off, self.row_off + self.height), (self.col_off, self.col_off + self.width)


def windows(width: int, height: int, px: int, rule: Rule) -> list[Window]:
    """The windows of a stored scene, row by row. Rules "whole" and "fit" give one, as large as the scene.

    A side shorter than `px` is not padded: its windows are as long as the side.
    """
    if rule != "cut":
        return [Window(0, 0, width, height)]
    return [
        Window(left, top, min(px, width), min(px, height))
        for top in window_starts(height, px, px)
        for left in window_starts(width, px, px)
    ]


def dhash(plane: NDArray[np.uint8]) -> str:
    """256-bit gradient hash of one band as 64 hex digits: tells near-duplicates, stable under small changes.

    The plane is averaged over 16 x 17 cells; a bit says whether a cell is brighter than its left neighbour.
    """
    rows = np.linspace(0, plane.shape[0], LOOK_CELLS, endpoint=False).astype(int)
    cols = np.linspace(0, plane.shape[1], LOOK_CELLS + 1, endpoint=False).astype(int)
    sums = np.add.reduceat(np.add.reduceat(plane, rows, axis=0, dtype=np.int64), cols, axis=1)
    areas = np.outer(np.diff([*rows, plane.shape[0]]), np.diff([*cols, plane.shape[1]]))
    means = sums // np.maximum(areas, 1)
    return np.packbits(means[:, 1:] > means[:, :-1]).tobytes().hex()


def describe(
    image_CHW: NDArray[np.uint8],
    label_HW: NDArray[np.uint8] | None,
    masked_HW: NDArray[np.bool_] | None,
    num_classes: int,
) -> dict[str, Any]:
    """The columns of the manifest that hang on a tile's pixels alone.

    Args:
        image_CHW: (3, H, W).
        label_HW: (H, W) ids, 255 = ignore; None where the domain has no labels.
        masked_HW: (H, W) true where the publisher's file says no-data; None where it says nothing.
        num_classes: length of `class_pixels`.
    """
    blank = ~(image_CHW[0] | image_CHW[1] | image_CHW[2]).astype(bool)
    if masked_HW is not None:
        blank |= masked_HW
    counts = np.zeros(256, np.int64) if label_HW is None else np.bincount(label_HW.ravel(), minlength=256)
    return {
        "sha256_image": hashlib.sha256(image_CHW.tobytes()).hexdigest(),
        "sha256_label": "" if label_HW is None else hashlib.sha256(label_HW.tobytes()).hexdigest(),
        "bytes": image_CHW.nbytes + (0 if label_HW is None else label_HW.nbytes),
        "nodata_share": float(np.count_nonzero(blank)) / blank.size,
        "constant": all(bool(plane.min() == plane.max()) for plane in image_CHW),
        "dhash": dhash(image_CHW[1]),
        "class_pixels": [int(count) for count in counts[:num_classes]],
        "ignored_pixels": int(counts[255]),
    }


@dataclass(frozen=True)
class SceneTiling:
    """How a publisher's rasters become a stored scene and its tiles.

    Attributes:
        tile: size and rule of the tiles; images are fitted bilinearly, labels by nearest neighbour.
        reading: how its values are read; px that it does not count as valid are ignored in labels.
        num_classes: classes of the domain's class set.
        least_px: shorter sides of a scene are padded to it, at the right and at the bottom: black, ignored.
    """

    tile: Tiling
    reading: Reading
    num_classes: int
    least_px: int = 0


def tile_scene(
    image: Raster,
    image_path: Path,
    tiling: SceneTiling,
    labels: Labels | None = None,
    label_path: Path | None = None,
) -> list[dict[str, Any]]:
    """Stores a scene and describes its tiles in one pass over its pixels, a row of tiles at a time.

    Every pixel is decoded once. Memory holds one row of tiles and the compressed scene, however tall the
    scene is; rules "whole" and "fit" hold the scene.

    Args:
        labels, label_path: the image's labels and where their ids go; both or none.

    Returns:
        Per window the manifest's columns that the pixels and the window decide.

    Raises:
        InputError: damaged pixels, or label values outside the map.
    """
    seen = Grid.of(image.dataset).fitted(tiling.reading.fit_px)
    grid = seen.padded(tiling.least_px)
    px, rule = tiling.tile.px, tiling.tile.rule
    height = min(px, grid.height) if rule == "cut" else grid.height
    lefts = windows(grid.width, height, px, rule)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        stored = stack.enter_context(scene_writer(image_path, grid, 3))
        if grid != seen:
            stored.update_tags(**{SEEN_PX: f"{seen.width} {seen.height}"})
        stored_label = label_path and stack.enter_context(scene_writer(label_path, grid, 1))
        planes, first = np.empty((5 if labels else 4, 0, grid.width), np.uint8), 0
        for top in window_starts(grid.height, height, height):
            bottom = first + planes.shape[1]
            here = Window(0, bottom, grid.width, top + height - bottom)
            seen_here = Window(0, bottom, seen.width, min(here.height, seen.height))
            fresh = _read_planes(image, labels, here, seen_here, tiling)
            stored.write(fresh[:3], window=here.slices())
            if stored_label:
                stored_label.write(fresh[3], 1, window=here.slices())
            planes = fresh if top == bottom else np.concatenate([planes[:, top - first :], fresh], axis=1)
            first = top
            for window in lefts:
                tile = planes[:, :, window.col_off : window.col_off + window.width]
                place = grid.transform @ rasterio.Affine.translation(window.col_off, top)
                row = {
                    **window._replace(row_off=top)._asdict(),
                    "crs": grid.crs.to_string() if grid.crs else "",
                    "transform": list(place)[:6],
                    **describe(tile[:3], tile[3] if labels else None, tile[-1] > 0, tiling.num_classes),
                }
                rows.append(row)
    return rows


def _read_planes(
    image: Raster, labels: Labels | None, rows: Window, seen: Window, tiling: SceneTiling
) -> NDArray[np.uint8]:
    """Rows of the stored scene, (4 or 5, H, W): the image, ids where there are labels, 1 where it is masked.

    Args:
        seen: what of `rows` the file has; what it has not is black, ignored and counts as masked.
    """
    # rule "fit" knows one strip, and it is all of the source
    window = None if tiling.tile.rule == "fit" else seen.slices()
    values, valid = tiling.reading.read(image, window)
    if window is None:
        values, valid = fit(values, valid, seen.width, seen.height)
    planes = np.empty((5 if labels else 4, rows.height, rows.width), np.uint8)
    if (seen.width, seen.height) != (rows.width, rows.height):
        planes[:3], planes[3:], planes[-1] = 0, IGNORE, 1
    part = planes[:, : seen.height, : seen.width]
    part[:3], part[-1] = values, ~valid
    if labels:
        part[3] = np.where(valid, labels.read(window, valid.shape), IGNORE)
    return planes


@contextmanager
def scene_writer(path: Path, grid: Grid, bands: int) -> Iterator[DatasetWriter]:
    """Opens a stored scene of `bands` uint8 planes.

    GDAL writes into memory and Python to the disk: GDAL closes a file on a full disk without an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    small = max(grid.width, grid.height) <= BLOCK_PX
    layout: dict[str, Any] = {} if small else {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX}
    place: dict[str, Any] = {} if grid.transform.is_identity else {"transform": grid.transform}
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            width=grid.width,
            height=grid.height,
            count=bands,
            dtype="uint8",
            crs=grid.crs,
            compress="zstd",
            zstd_level=1,
            predictor=2 if bands > 1 else 1,
            interleave="band",
            bigtiff="if_safer",
            photometric="RGB" if bands == 3 else "MINISBLACK",
            **layout,
            **place,
        ) as writer:
            yield writer
        path.write_bytes(memory.getbuffer())


def unpadded(path: Path) -> tuple[int, int] | None:
    """Width and height of what a stored scene shows, if it was padded and is there."""
    try:
        with rasterio.open(path, driver="GTiff") as scene:
            said = scene.tags().get(SEEN_PX)
    except (RasterioError, OSError):
        return None
    if not said:
        return None
    width, height = map(int, said.split())
    return width, height


def read_window(path: Path, window: Window) -> NDArray[np.uint8]:
    """A window of a stored scene as uint8 (bands, H, W); InputError where it cannot be read."""
    try:
        with rasterio.open(path, driver="GTiff") as scene:
            return cast("NDArray[np.uint8]", scene.read(window=window.slices()))
    except (RasterioError, OSError) as error:
        raise InputError(
            f"cannot read the tile: {error}", where=path, next_step="ingest the domain again"
        ) from error
