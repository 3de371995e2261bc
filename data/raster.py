"""Raster files of publishers and users: how they are opened, read and found damaged."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.session import DummySession

from crossearth.data.archives import Member, read
from crossearth.data.errors import InputError
from crossearth.data.files import digest

# what GDAL may take an archive's member for: never a VRT, which could point anywhere
ARCHIVE_DRIVERS = ["GTiff", "PNG", "JPEG", "BMP", "JP2OpenJPEG"]
WORLD_FILES = (".tfw", ".tifw", ".pgw", ".pngw", ".jgw", ".jpgw", ".wld")
GDAL_CACHE_MB = 128


class Raster(NamedTuple):
    """An open raster and how to name it to the user."""

    dataset: DatasetReader
    where: str

    def read(self, bands: Sequence[int] | int, **options: Any) -> NDArray[Any]:
        """Reads bands; damage becomes an InputError that names the file."""
        with self._whole():
            return cast("NDArray[Any]", self.dataset.read(bands, **options))

    def read_masks(self, bands: Sequence[int], **options: Any) -> NDArray[np.uint8]:
        """Reads the bands' masks, 0 = nothing there; damage becomes an InputError that names the file."""
        with self._whole():
            return cast("NDArray[np.uint8]", self.dataset.read_masks(bands, **options))

    @contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except RasterioError as error:
            cause = error.__cause__ or error
            raise InputError(
                f"cannot read its pixels, truncated or damaged: {cause}",
                where=self.where,
                next_step="fetch the file again",
            ) from error


@contextmanager
def gdal(**more: Any) -> Iterator[None]:
    """GDAL as ingest wants it: a small block cache, no side files, no listing of folders."""
    with rasterio.Env(
        # where AWS_ACCESS_KEY_ID is set, rasterio would make a boto3 session here, 6 ms for each file
        session=DummySession(),
        GDAL_CACHEMAX=GDAL_CACHE_MB,
        GDAL_PAM_ENABLED=False,
        GDAL_DISABLE_READDIR_ON_OPEN="TRUE",
        GDAL_NUM_THREADS=1,
        **more,
    ):
        yield


@contextmanager
def open_raster(member: Member, sidecars: Sequence[Member] = ()) -> Iterator[Raster]:
    """Opens a file or an archive's member, the latter in memory with its world files beside it.

    Raises:
        InputError: not a raster, or a broken archive.
    """
    with ExitStack() as stack:
        try:
            if not member.packed:
                dataset = stack.enter_context(rasterio.open(member.container))
            else:
                memory = stack.enter_context(_in_memory(member, member.stem))
                for sidecar in sidecars:
                    stack.enter_context(_in_memory(sidecar, member.stem, beside=memory))
                dataset = stack.enter_context(memory.open(driver=ARCHIVE_DRIVERS))
        except RasterioError as error:
            raise InputError(
                f"not an image that can be read: {error}",
                where=member,
                next_step="fetch the file again, or make it readable",
            ) from error
        yield Raster(dataset, str(member))


def _in_memory(member: Member, stem: str, beside: MemoryFile | None = None) -> MemoryFile:
    folder = digest(str(member))[:16] if beside is None else PurePosixPath(beside.name).parent.name
    return MemoryFile(read(member), dirname=folder, filename=stem + PurePosixPath(member.path).suffix.lower())


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what GDAL says of a scene that is opened or read into an InputError that names it."""
    try:
        yield
    except RasterioError as error:
        raise InputError(
            f"cannot read the scene: {error}", where=path, expected="a whole raster that GDAL can read"
        ) from error
    except UnicodeEncodeError as error:
        name = os.fsencode(path).decode(errors="backslashreplace")
        raise InputError(
            "the scene's path is not UTF-8, which GDAL needs", where=name, next_step="rename it"
        ) from error
