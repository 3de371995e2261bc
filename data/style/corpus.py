"""Folders and archives of unlabelled images as a source of style: what is there, and what is unusable."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from crossearth.data.common.errors import InputError
from crossearth.data.raster.archives import Member, index, rasters, read
from crossearth.data.raster.names import RASTER_SUFFIXES
from crossearth.data.raster.reader import gdal, open_raster
from crossearth.data.raster.reading import Reading, fit, raw_dtype

MIN_PX = 32
BANDS = (1, 2, 3)


@dataclass(frozen=True)
class StyleImage:
    """One image of a corpus.

    Attributes:
        path: below the corpus' folder, archives taken for folders.
        sha256: hex, of path and file bytes.
        image: uint8 (3,H,W), 0..255, or None where it is unusable.
        problem: why it is unusable, else empty.
    """

    path: str
    sha256: str
    image: NDArray[np.uint8] | None
    problem: str = ""


def list_images(folder: Path, scratch: Path) -> list[Member]:
    """Images under a folder, zip and tar archives looked into, sorted by path.

    Args:
        scratch: where tars are unpacked.

    Raises:
        InputError: no such folder, a broken archive, or no image.
    """
    members = rasters(index(folder, scratch))
    if not members:
        raise InputError(
            "no images here", where=folder, expected=f"files that end in {', '.join(RASTER_SUFFIXES)}"
        )
    return members


def read_style_image(
    member: Member, max_px: int, resize: bool, value_range: tuple[float, float] | None = None
) -> StyleImage:
    """Decodes the first three bands of an image.

    Args:
        value_range: values that become 0 and 255 in images that are not 8 bit, see `Reading`; None: such ones
            are unusable.
        max_px: with `resize`, the side of the square that it is resampled to; else the side of the central
            window that is read of a larger image, at its own resolution.
    """
    try:
        content = read(member)
    except (InputError, OSError) as error:
        return StyleImage(member.path, "", None, str(error))
    sha256 = hashlib.sha256(member.path.encode() + b"\0" + content).hexdigest()
    try:
        with gdal(), open_raster(member) as raster:
            source = raster.dataset
            if source.count < 3:
                raise InputError(f"{source.count} bands, not three")
            if min(source.height, source.width) < MIN_PX:
                raise InputError(f"smaller than {MIN_PX} px")
            dtype = raw_dtype(raster, BANDS)
            if dtype != "uint8" and value_range is None:
                raise InputError(f"{dtype}, not uint8, without a value_range")
            reading = Reading(BANDS, dtype, None if dtype == "uint8" else value_range)
            reading.refuse_outside(raster, "give another range")
            if resize:
                image, _ = fit(*reading.read(raster), max_px, max_px)
            else:
                image, _ = reading.read(raster, _centre(source, max_px))
        if all(plane.min() == plane.max() for plane in image):
            raise InputError("one colour")
    except InputError as error:
        return StyleImage(member.path, sha256, None, error.what)
    return StyleImage(member.path, sha256, image)


def _centre(source: DatasetReader, max_px: int) -> tuple[tuple[int, int], tuple[int, int]]:
    height, width = min(source.height, max_px), min(source.width, max_px)
    top, left = (source.height - height) // 2, (source.width - width) // 2
    return (top, top + height), (left, left + width)
