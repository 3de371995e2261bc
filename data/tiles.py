"""Scenes on disk and the windows that are their tiles.

A scene is stored once, as two GeoTIFFs (three uint8 planes; one plane of class ids), and a tile is a window
in it: no pixel of overlapping tiles is written twice, and Potsdam is 76 files instead of 10 944. The files
are tiled 256 x 256, band by band, ZSTD level 1 with horizontal differencing; they keep CRS and transform and
open in any GIS. The measurement behind the choice stands in data/README.md.
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
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, DatasetWriter, MemoryFile

from crossearth.data.domains import Rule, window_starts
from crossearth.data.errors import InputError
from crossearth.data.labels import IGNORE, LabelSpec, Unknown
from crossearth.data.raster import Raster

BLOCK_PX = 256
LOOK_CELLS = 16


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


def look(plane: NDArray[np.uint8]) -> str:
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
        "look": look(image_CHW[1]),
        "class_pixels": [int(count) for count in counts[:num_classes]],
        "ignored_pixels": int(counts[255]),
    }


@dataclass(frozen=True)
class Cutting:
    """How a publisher's rasters become a stored scene and its tiles.

    Attributes:
        px: tile size; without meaning for rule "whole".
        rule: "cut" = windows of `px`; "whole" = the scene as it is; "fit" = the scene resampled so that its
            longer side is `px`, images bilinearly, labels by nearest neighbour.
        bands: 1-based bands of the publisher's image, in the order that the network sees.
        value_range: source values that become 0 and 255, linear between, clipped; None = uint8 as it is.
        nodata: source value; px where all three bands have it are ignored in labels, as are px that the file
            masks in all three (its own nodata value, transparency) or that are no number in some band.
        num_classes: classes of the domain's class set.
        unknown_labels: what becomes of label values outside the map.
    """

    px: int
    rule: Rule
    bands: tuple[int, int, int]
    value_range: tuple[float, float] | None
    nodata: float | None
    num_classes: int
    unknown_labels: Unknown


@dataclass(frozen=True)
class Grid:
    """Size of a stored scene in px and its place: `transform` maps px to units of `crs`."""

    width: int
    height: int
    transform: rasterio.Affine
    crs: CRS | None

    @classmethod
    def of(cls, source: DatasetReader, cutting: Cutting) -> "Grid":
        """The grid that `source` is stored on: its own, but for rule "fit"."""
        if cutting.rule != "fit":
            return cls(source.width, source.height, source.transform, source.crs)
        scale = cutting.px / max(source.width, source.height)
        width, height = max(1, round(source.width * scale)), max(1, round(source.height * scale))
        shrink = rasterio.Affine.scale(source.width / width, source.height / height)
        placed = not source.transform.is_identity
        return cls(width, height, source.transform @ shrink if placed else source.transform, source.crs)


def cut_scene(
    image: Raster,
    image_path: Path,
    cutting: Cutting,
    label: Raster | None = None,
    label_path: Path | None = None,
    spec: LabelSpec | None = None,
) -> list[dict[str, Any]]:
    """Stores a scene and describes its tiles in one pass over its pixels, a row of tiles at a time.

    Every pixel is decoded once. Memory holds one row of tiles and the compressed scene, however tall the
    scene is; rules "whole" and "fit" hold the scene.

    Args:
        label, label_path, spec: the label raster, where its ids go and what its values mean; all or none.

    Returns:
        Per window the manifest's columns that the pixels and the window decide.

    Raises:
        InputError: damaged pixels, or label values outside the map.
    """
    grid = Grid.of(image.dataset, cutting)
    height = min(cutting.px, grid.height) if cutting.rule == "cut" else grid.height
    lefts = windows(grid.width, height, cutting.px, cutting.rule)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        stored = stack.enter_context(scene_writer(image_path, grid, 3))
        stored_label = label_path and stack.enter_context(scene_writer(label_path, grid, 1))
        strip = _Strip.empty(grid.width, label is not None)
        for top in window_starts(grid.height, height, height):
            rows_here = Window(0, strip.bottom, grid.width, top + height - strip.bottom)
            fresh = _read_strip(image, label, spec, rows_here, cutting)
            stored.write(fresh.image, window=rows_here.slices())
            if stored_label and fresh.label is not None:
                stored_label.write(fresh.label, 1, window=rows_here.slices())
            strip = strip.advance(fresh, top)
            rows.extend(strip.describe(window._replace(row_off=top), grid, cutting) for window in lefts)
    return rows


@dataclass(frozen=True)
class _Strip:
    """Whole rows of a stored scene, from `top` on."""

    top: int
    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    masked: NDArray[np.bool_]

    @classmethod
    def empty(cls, width: int, labelled: bool) -> "_Strip":
        nothing = np.empty((0, width), np.uint8)
        return cls(0, np.empty((3, 0, width), np.uint8), nothing if labelled else None, nothing.astype(bool))

    @property
    def bottom(self) -> int:
        return self.top + self.image.shape[1]

    def advance(self, fresh: "_Strip", top: int) -> "_Strip":
        """This strip from row `top` on, and `fresh` below it."""
        kept = slice(top - self.top, None)
        label = None
        if self.label is not None and fresh.label is not None:
            label = np.concatenate([self.label[kept], fresh.label])
        return _Strip(
            top,
            np.concatenate([self.image[:, kept], fresh.image], axis=1),
            label,
            np.concatenate([self.masked[kept], fresh.masked]),
        )

    def describe(self, window: Window, grid: Grid, cutting: Cutting) -> dict[str, Any]:
        across = slice(window.col_off, window.col_off + window.width)
        place = grid.transform @ rasterio.Affine.translation(window.col_off, window.row_off)
        return {
            **window._asdict(),
            "crs": grid.crs.to_string() if grid.crs else "",
            "transform": list(place)[:6],
            **describe(
                self.image[:, :, across],
                None if self.label is None else self.label[:, across],
                self.masked[:, across],
                cutting.num_classes,
            ),
        }


def _read_strip(
    image: Raster, label: Raster | None, spec: LabelSpec | None, rows: Window, cutting: Cutting
) -> _Strip:
    """Reads `rows` of the stored grid; rule "fit" knows one strip, and it is all of the source."""
    window = None if cutting.rule == "fit" else rows.slices()
    shape = (rows.height, rows.width)
    size = (3, *shape)
    found = image.read(
        cutting.bands, window=window, out_shape=size, resampling=Resampling.bilinear, masked=True
    )
    raw = np.ma.getdata(found)
    # as in mapping: one band alone at the file's nodata value is a colour, not a hole
    masked = np.all(np.ma.getmaskarray(found), axis=0)
    if cutting.nodata is not None:
        masked |= (raw == cutting.nodata).all(axis=0)
    # a pixel that is no number was not seen, whatever the nodata value
    if raw.dtype.kind == "f":
        masked |= ~np.isfinite(raw).all(axis=0)
    if cutting.value_range is not None:
        low, high = cutting.value_range
        scaled = (raw.astype(np.float32) - low) * (255 / (high - low))
        raw = np.rint(np.clip(np.where(masked, 0, scaled), 0, 255)).astype(np.uint8)
    ids = None
    if label is not None and spec is not None:
        ids = _read_label(label, spec, window, shape, cutting.unknown_labels)
        ids[masked] = IGNORE
    return _Strip(rows.row_off, raw, ids, masked)


def _read_label(
    label: Raster, spec: LabelSpec, window: Any, shape: tuple[int, int], unknown: Unknown
) -> NDArray[np.uint8]:
    bands = label.dataset.indexes
    raw = label.read(bands, window=window, out_shape=(len(bands), *shape), resampling=Resampling.nearest)
    try:
        return spec.decode(_colours(raw, label, spec), label.where, unknown)
    except InputError:
        # the message counts pixels: say how many there are in the scene, not in this strip
        spec.decode(_colours(label.read(bands), label, spec), label.where, unknown)
        raise


def _colours(raw: NDArray[Any], label: Raster, spec: LabelSpec) -> NDArray[Any]:
    """Where colours are wanted, a label with a palette is read as its colours, else as its indexes."""
    if spec.kind != "colour" or label.dataset.colorinterp != (ColorInterp.palette,):
        return raw
    table = np.zeros((256, 3), np.uint8)
    for index, colour in label.dataset.colormap(1).items():
        table[index] = colour[:3]
    return np.moveaxis(table[raw[0]], -1, 0)


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


def read_window(path: Path, window: Window) -> NDArray[np.uint8]:
    """Reads a window of a stored scene as uint8 (bands, H, W).

    Raises:
        InputError: the file is missing or unreadable.
    """
    try:
        with rasterio.open(path, driver="GTiff") as scene:
            return cast("NDArray[np.uint8]", scene.read(window=window.slices()))
    except (RasterioError, OSError) as error:
        raise InputError(
            f"cannot read the tile: {error}", where=path, next_step="ingest the domain again"
        ) from error
