"""Scenes on disk and the windows that are their tiles.

A scene is stored once, as two GeoTIFFs (three uint8 planes; one plane of class ids), and a tile is a window in it:
no pixel of overlapping tiles is written twice, and Potsdam is 76 files instead of 10 944. The files are tiled
256 x 256, band by band, ZSTD level 1 with horizontal differencing; they keep CRS and transform and open in any GIS.
The measurement behind the choice stands in data/README.md.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, DatasetWriter, MemoryFile

from crossearth.data.errors import InputError

# much of the benchmark's imagery is PNG and JPEG without a place on the ground: that is no news
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

Rule = Literal["cut", "whole"]
BLOCK_PX = 256
GDAL_CACHE_MB = 128
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


def starts(length: int, px: int) -> list[int]:
    """Where windows of `px` start on a side of `length`: step `px`, the last one shifted back inside."""
    if length <= px:
        return [0]
    return [*range(0, length - px, px), length - px]


def windows(width: int, height: int, px: int, rule: Rule) -> list[Window]:
    """The windows of a scene, row by row. Rule "whole" gives one, as large as the scene, at any size.

    A side shorter than `px` is not padded: its windows are as long as the side.
    """
    if rule == "whole":
        return [Window(0, 0, width, height)]
    return [
        Window(left, top, min(px, width), min(px, height))
        for top in starts(height, px)
        for left in starts(width, px)
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
        "sha256_image": hashlib.sha256(np.ascontiguousarray(image_CHW)).hexdigest(),
        "sha256_label": ""
        if label_HW is None
        else hashlib.sha256(np.ascontiguousarray(label_HW)).hexdigest(),
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
        bands: 1-based bands of the publisher's image, in the order that the network sees.
        value_range: source values that become 0 and 255, linear between, clipped; None = stored as they are (uint8 only).
        encode: raw labels (bands, H, W) -> uint8 ids (H, W); raises InputError for unknown values.
        num_classes: classes of the domain's class set.
    """

    px: int
    rule: Rule
    bands: tuple[int, int, int]
    value_range: tuple[float, float] | None
    encode: Callable[[NDArray[Any]], NDArray[np.uint8]]
    num_classes: int


def cut_scene(
    image: DatasetReader, label: DatasetReader | None, image_path: Path, label_path: Path, cutting: Cutting
) -> list[dict[str, Any]]:
    """Stores a scene and describes its tiles in one pass over its pixels, a row of tiles at a time.

    Every pixel is decoded once and memory holds one row of tiles, however tall the scene is. Rule "whole" holds the scene.

    Returns:
        Per window the manifest's columns that the pixels and the window decide.
    """
    height = image.height if cutting.rule == "whole" else min(cutting.px, image.height)
    tops = [0] if cutting.rule == "whole" else starts(image.height, cutting.px)
    lefts = windows(image.width, height, cutting.px, cutting.rule)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        stored = stack.enter_context(scene_writer(image_path, image, 3))
        stored_label = label and stack.enter_context(scene_writer(label_path, image, 1))
        strip = _Strip.empty(image.width, label is not None)
        for top in tops:
            fresh = Window(0, strip.bottom, image.width, top + height - strip.bottom)
            pixels = _read_strip(image, label, fresh, cutting)
            stored.write(pixels.image, window=fresh.slices())
            if stored_label is not None and pixels.label is not None:
                stored_label.write(pixels.label, 1, window=fresh.slices())
            strip = strip.advance(pixels, top)
            rows.extend(strip.describe(window._replace(row_off=top), image, cutting) for window in lefts)
    return rows


@dataclass(frozen=True)
class _Strip:
    """Whole rows of a scene, from `top` on."""

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
        return _Strip(
            top,
            np.concatenate([self.image[:, kept], fresh.image], axis=1),
            None
            if self.label is None or fresh.label is None
            else np.concatenate([self.label[kept], fresh.label]),
            np.concatenate([self.masked[kept], fresh.masked]),
        )

    def describe(self, window: Window, source: DatasetReader, cutting: Cutting) -> dict[str, Any]:
        across = slice(window.col_off, window.col_off + window.width)
        place = source.transform @ rasterio.Affine.translation(window.col_off, window.row_off)
        return {
            **window._asdict(),
            "crs": source.crs.to_string() if source.crs else "",
            "transform": list(place)[:6],
            **describe(
                self.image[:, :, across],
                None if self.label is None else self.label[:, across],
                self.masked[:, across],
                cutting.num_classes,
            ),
        }


def _read_strip(image: DatasetReader, label: DatasetReader | None, rows: Window, cutting: Cutting) -> _Strip:
    raw = image.read(cutting.bands, window=rows.slices())
    flags = image.mask_flag_enums[cutting.bands[0] - 1]
    masked = np.zeros(raw.shape[1:], bool)
    if MaskFlags.all_valid not in flags:
        masked = image.dataset_mask(window=rows.slices()) == 0
    if cutting.value_range is not None:
        low, high = cutting.value_range
        if raw.dtype.kind == "f":
            masked |= ~np.isfinite(raw).all(axis=0)
        scaled = np.clip((raw.astype(np.float32) - low) * (255 / (high - low)), 0, 255)
        raw = np.rint(np.where(masked, 0, scaled)).astype(np.uint8)
    encoded = None if label is None else cutting.encode(label.read(window=rows.slices()))
    return _Strip(rows.row_off, raw, encoded, masked)


@contextmanager
def gdal() -> Iterator[None]:
    """GDAL as ingest wants it: a small block cache, no side files, no listing of folders."""
    with rasterio.Env(
        GDAL_CACHEMAX=GDAL_CACHE_MB,
        GDAL_PAM_ENABLED=False,
        GDAL_DISABLE_READDIR_ON_OPEN="TRUE",
        GDAL_NUM_THREADS=1,
    ):
        yield


@contextmanager
def scene_writer(path: Path, source: DatasetReader, bands: int) -> Iterator[DatasetWriter]:
    """Opens a stored scene of `bands` uint8 planes with the size, CRS and transform of `source`.

    GDAL writes into memory and Python to the disk: GDAL closes a file on a full disk without an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    small = max(source.width, source.height) <= BLOCK_PX
    layout: dict[str, Any] = {} if small else {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX}
    georeference: dict[str, Any] = {} if source.transform.is_identity else {"transform": source.transform}
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            width=source.width,
            height=source.height,
            count=bands,
            dtype="uint8",
            crs=source.crs,
            compress="zstd",
            zstd_level=1,
            predictor=2 if bands > 1 else 1,
            interleave="band",
            bigtiff="if_safer",
            photometric="RGB" if bands == 3 else "MINISBLACK",
            **layout,
            **georeference,
        ) as writer:
            yield writer
        path.write_bytes(memory.getbuffer())


def read_window(path: Path, window: Window) -> NDArray[np.uint8]:
    """Reads a window of a stored scene as uint8 (bands, H, W).

    Raises:
        InputError: the file is missing or unreadable.
    """
    try:
        with rasterio.open(path) as scene:
            return cast("NDArray[np.uint8]", scene.read(window=window.slices()))
    except (RasterioError, OSError) as error:
        raise InputError(
            f"cannot read the tile: {error}", where=path, next_step="ingest the domain again"
        ) from error
