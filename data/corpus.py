"""Folders and archives of unlabelled images as a source of style: what is there, and what is unusable."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetReader

from crossearth.data.archives import Member, index, read
from crossearth.data.errors import InputError
from crossearth.data.raster import gdal, open_raster
from crossearth.data.raster_names import RASTER_SUFFIXES, rasters_among

MIN_PX = 32


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
    found = {member.path: member for member in index(folder, scratch)}
    members = [found[path] for path in rasters_among(list(found), lambda path: read(found[path]))]
    if not members:
        raise InputError(
            "no images here",
            where=folder,
            expected=f"files that end in {', '.join(RASTER_SUFFIXES)}",
        )
    return members


def read_style_image(member: Member, max_px: int, resize: bool) -> StyleImage:
    """Decodes the first three bands of an image.

    Args:
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
            if source.count < 3 or source.dtypes[0] != "uint8":
                problem = f"{source.count} bands of {source.dtypes[0]}, not three of uint8"
                return StyleImage(member.path, sha256, None, problem)
            if min(source.height, source.width) < MIN_PX:
                return StyleImage(member.path, sha256, None, f"smaller than {MIN_PX} px")
            image = raster.read((1, 2, 3), **_how(source, max_px, resize))
    except InputError as error:
        return StyleImage(member.path, sha256, None, error.what)
    if all(plane.min() == plane.max() for plane in image):
        return StyleImage(member.path, sha256, None, "one colour")
    return StyleImage(member.path, sha256, image)


def _how(source: DatasetReader, max_px: int, resize: bool) -> dict[str, Any]:
    if resize:
        return {"out_shape": (3, max_px, max_px), "resampling": Resampling.bilinear}
    height, width = min(source.height, max_px), min(source.width, max_px)
    top, left = (source.height - height) // 2, (source.width - width) // 2
    return {"window": ((top, top + height), (left, left + width))}
