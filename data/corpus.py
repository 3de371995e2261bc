"""Folders and archives of unlabelled images as a source of style: what is there, and what is unusable."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile

from crossearth.data.archives import Member, index, read
from crossearth.data.errors import InputError
from crossearth.data.raster import gdal

MIN_PX = 32
# never a VRT, which could point anywhere
DRIVERS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".tif": "GTiff",
    ".tiff": "GTiff",
    ".bmp": "BMP",
    ".jp2": "JP2OpenJPEG",
    ".webp": "WEBP",
}


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
    members = [
        member for member in index(folder, scratch) if PurePosixPath(member.path).suffix.lower() in DRIVERS
    ]
    if not members:
        raise InputError(
            "no images here",
            where=folder,
            expected=f"files named {', '.join(f'*{suffix}' for suffix in DRIVERS)}",
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
    driver = DRIVERS[PurePosixPath(member.path).suffix.lower()]
    try:
        with (
            gdal(GDAL_ERROR_ON_LIBJPEG_WARNING=True),
            MemoryFile(content) as memory,
            memory.open(driver=driver) as source,
        ):
            if source.count < 3 or source.dtypes[0] != "uint8":
                problem = f"{source.count} bands of {source.dtypes[0]}, not three of uint8"
                return StyleImage(member.path, sha256, None, problem)
            if min(source.height, source.width) < MIN_PX:
                return StyleImage(member.path, sha256, None, f"smaller than {MIN_PX} px")
            image = source.read((1, 2, 3), **_how(source, max_px, resize))
    except RasterioError as error:
        return StyleImage(member.path, sha256, None, _said(error))
    if all(plane.min() == plane.max() for plane in image):
        return StyleImage(member.path, sha256, None, "one colour")
    return StyleImage(member.path, sha256, image)


def _said(error: RasterioError) -> str:
    """GDAL's words, without its name for a file in memory."""
    return "unreadable: " + re.sub(r"'?/vsimem/\S+?'? ", "", str(error.__cause__ or error))


def _how(source: DatasetReader, max_px: int, resize: bool) -> dict[str, Any]:
    if resize:
        return {"out_shape": (3, max_px, max_px), "resampling": Resampling.bilinear}
    height, width = min(source.height, max_px), min(source.width, max_px)
    top, left = (source.height - height) // 2, (source.width - width) // 2
    return {"window": ((top, top + height), (left, left + width))}
