"""Raster files of publishers and users: how they are opened, read and found damaged.

Ingest, predict and styles open every image and mask here, so that all of them see one place, one no-data
value and one mask of a file, and refuse the same damage in the same words.
"""

import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from xml.etree import ElementTree

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.session import DummySession

from crossearth.data.common.errors import InputError
from crossearth.data.common.files import digest
from crossearth.data.raster.archives import Member, read, walk
from crossearth.data.raster.gdal import GdalError, hearing
from crossearth.data.raster.names import rasters_among

# what comes from an archive or a store is opened as one of these, each whole in one file: other kinds, a VRT
# above all, could point anywhere
LONE_DRIVERS = ["GTiff", "PNG", "JPEG", "BMP", "JP2OpenJPEG", "WEBP", "GIF", "PNM"]
LONE_KINDS = "GeoTIFF, PNG, JPEG, JPEG 2000, BMP, WebP, GIF or PNM"
# what an .aux.xml of a stranger may say: its metadata could name another file as the image's overviews
PAM_PLACE = {"SRS", "GeoTransform", "GCPList"}
PAM_BAND = {"NoDataValue", "Offset", "Scale", "ColorInterp", "Description", "CategoryNames"}
# values as they are, one after the other: GDAL takes zeros for those that a file lacks
RAW_DRIVERS = ("ENVI", "EHdr", "PNM")
GDAL_CACHE_BYTES = 64 << 20  # rasterio takes bytes, however few
MOST_CACHE_BYTES = 256 << 20
THINNING_BYTES = 64 << 20
OPTIONS: dict[str, Any] = {
    # a file's .aux.xml is read; it would be written only with statistics, which nobody computes here
    "GDAL_PAM_ENABLED": True,
    # files beside it are looked for by name; to list its folder takes long where thousands lie in it
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
    # the quick way to decode a PNG whole fills up what a cut one lacks, without a word
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": False,
}


# of servers: read by ranges, no look for files beside a file, faults that pass are tried again
REMOTE: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_CONNECTTIMEOUT": 20,
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1,
    "GDAL_HTTP_LOW_SPEED_TIME": 60,
    "GDAL_HTTP_MAX_RETRY": 4,
    "GDAL_HTTP_RETRY_DELAY": 1,
}
AGAIN = "Retrying again"
# what a server answers, in GDAL's words, and what to do
ANSWERS = {
    r"\b(?:401|403)\b|AccessDenied|Forbidden": (
        "the server wants a login, or refuses this one",
        "s3://: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_NO_SIGN_REQUEST=YES for open data; "
        "https://: GDAL_HTTP_USERPWD=user:password or GDAL_HTTP_BEARER=token",
    ),
    r"\b404\b|NoSuchKey|does not exist": ("there is nothing at this address", "correct the address"),
    "[Rr]ange downloading": ("the server does not send parts of a file", "download the file, and map that"),
}


# where AWS_ACCESS_KEY_ID is set, rasterio would make a boto3 session, 6 ms for each file
SESSION = DummySession()
Span = tuple[int, int]


@contextmanager
def gdal(**more: Any) -> Iterator[None]:
    """GDAL as workers want it who each read one of many files: a small block cache and one thread."""
    with rasterio.Env(SESSION, GDAL_CACHEMAX=GDAL_CACHE_BYTES, GDAL_NUM_THREADS=1, **OPTIONS, **more):
        yield


@dataclass(frozen=True)
class Address:
    """A raster that is read from a server by ranges.

    Attributes:
        where: as the user named it, without a query, which may hold a key.
        gdal: what GDAL opens: a path below /vsicurl/ or /vsis3/, or a VRT of several.
        drivers: what it may be.
        bands: names of its bands, where it was put together of a STAC item's.
    """

    where: str
    gdal: str
    drivers: tuple[str, ...] = tuple(LONE_DRIVERS)
    bands: tuple[str, ...] = ()

    @property
    def remote(self) -> bool:
        """Whether a server has it: a STAC item may lie beside files of this machine."""
        return "/vsicurl/" in self.gdal or "/vsis3/" in self.gdal

    def __str__(self) -> str:
        return self.where

    @property
    def name(self) -> str:
        return PurePosixPath(self.where).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.where).stem


class UnreachableError(InputError):
    """A server that does not answer, or not so that its file can be read: another time it may."""


def refused(words: str, where: str) -> UnreachableError:
    """What to say of a server's answer, in `words` of GDAL or of the server."""
    for pattern, (what, next_step) in ANSWERS.items():
        if re.search(pattern, words):
            return UnreachableError(f"{what}: {words}", where=where, next_step=next_step)
    return UnreachableError(
        f"the server breaks off or does not answer: {words}",
        where=where,
        next_step="run the command again, it goes on where it stopped",
    )


def _answer(said: Sequence[str]) -> str:
    """What a server answered that GDAL could not open a file of; "" = a file that is no image."""
    words = [_words(each) for each in said if AGAIN not in each]
    known = [each for each in words if any(re.search(pattern, each) for pattern in ANSWERS)]
    if known:
        return known[0]
    return "" if any("not recognized as" in each for each in words) else words[-1]


class Raster(NamedTuple):
    """An open raster and how to name it to the user; its pixels are read by these methods.

    Attributes:
        said: what GDAL said when it was opened: of its header, and so not of its pixels when said again.
        remote: whether it is read from a server.
    """

    dataset: DatasetReader
    where: str
    said: frozenset[str] = frozenset()
    remote: bool = False

    def read(
        self,
        bands: Sequence[int],
        window: tuple[Span, Span] | None = None,
        out_shape: tuple[int, ...] | None = None,
    ) -> NDArray[Any]:
        """Reads bands as rasterio does, but never from overviews: those of a mask may be averaged.

        Args:
            bands: 1-based.
            window: ((row start, row stop), (col start, col stop)); None = all.
            out_shape: (bands, H, W), or (H, W); of each of so many cells the pixel in the middle.

        Returns:
            (bands, H, W) of the file's dtype.

        Raises:
            InputError: damage, in GDAL's own words; also what it fills up and only warns about.
        """
        return self._whole_or_thinned(self.dataset.read, bands, window, out_shape)

    def read_masks(
        self,
        bands: Sequence[int],
        window: tuple[Span, Span] | None = None,
        out_shape: tuple[int, ...] | None = None,
    ) -> NDArray[np.uint8]:
        """What the file says is valid: uint8 (bands, H, W), 0 where not. Arguments and errors as `read`."""
        return self._whole_or_thinned(self.dataset.read_masks, bands, window, out_shape)

    def _whole_or_thinned(
        self,
        read: Callable[..., NDArray[Any]],
        bands: Sequence[int],
        window: tuple[Span, Span] | None,
        out_shape: tuple[int, ...] | None,
    ) -> NDArray[Any]:
        """All pixels, or those in the middle of coarser cells, which are read in strips of bounded memory."""
        rows, cols = window or ((0, self.dataset.height), (0, self.dataset.width))
        size = (rows[1] - rows[0], cols[1] - cols[0])
        cells = size if out_shape is None else tuple(out_shape[-2:])
        if cells == size:
            with self._undamaged():
                return read(bands, window=(rows, cols))
        taken_rows, taken_cols = (middles(*each) for each in zip((rows, cols), cells, strict=True))
        pixel_bytes = sum(np.dtype(self.dataset.dtypes[band - 1]).itemsize for band in bands)
        at_once = max(1, int(THINNING_BYTES * len(taken_rows) / (pixel_bytes * size[0] * size[1])))
        strips = []
        for first in range(0, len(taken_rows), at_once):
            taken = taken_rows[first : first + at_once]
            top, bottom = int(taken[0]), int(taken[-1]) + 1
            with self._undamaged():
                strip = read(bands, window=((top, bottom), cols))
            strips.append(strip[:, taken - top][:, :, taken_cols - cols[0]])
        return np.concatenate(strips, axis=1)

    @contextmanager
    def _undamaged(self) -> Iterator[None]:
        """Makes an InputError of whatever GDAL complains about meanwhile.

        It fills up much that is missing and only warns, or says it as an error and returns none.
        """
        cause: Exception | None = None
        said: list[str] = []
        try:
            with rasterio.Env(SESSION, **_options(self.remote)), hearing(said, silent=True):
                yield
        except (RasterioError, GdalError) as error:
            cause = error
        said = [words for words in said if words not in self.said]
        if self.remote:
            said = [words for words in said if AGAIN not in words]
            if cause is not None:
                raise refused(_words(str(cause.__cause__ or cause)), self.where) from cause
        if cause is not None:
            said.append(str(cause.__cause__ or cause))
        if said:
            raise InputError(
                f"cannot read its pixels, truncated or damaged: {_words(said[0])}",
                where=self.where,
                next_step="fetch or export the file again",
            ) from cause


def refuse_palette(raster: Raster, bands: Sequence[int]) -> None:
    """Refuses images whose values are places in a table of colours: taken for grey they would mean nothing.

    Raises:
        InputError: one of the bands has a palette; of one that does not exist this says nothing.
    """
    kinds = raster.dataset.colorinterp
    if any(band <= len(kinds) and kinds[band - 1] == ColorInterp.palette for band in (1, *bands)):
        raise InputError(
            "an image of colour indexes (a palette)",
            where=raster.where,
            expected="its colours, a band each",
            next_step="gdal_translate -expand rgb IN OUT.tif, and take bands 1, 2, 3 of that",
        )


def middles(span: Span, cells: int) -> NDArray[np.int64]:
    """Indexes of the pixels in the middle of `cells` equal parts of a span."""
    start, stop = span
    return start + np.floor((np.arange(cells) + 0.5) * (stop - start) / cells + 1e-10).astype(np.int64)


def rasters_in(folder: Path) -> list[Path]:
    """The images in a folder and in the folders below it, sorted; `rasters_among` says what is left out."""
    names = sorted(file.relative_to(folder).as_posix() for file in walk(folder))
    return [folder / name for name in rasters_among(names, lambda name: (folder / name).read_bytes())]


@contextmanager
def open_raster(
    source: Member | Path | Address, own: bool = True, page: int | None = None
) -> Iterator[Raster]:
    """Opens a raster as every step does; an archive's member in memory, with its sidecars beside it.

    Args:
        page: of a TIFF of several, from 1; None = the first.
        own: whether the file is the user's own, which GDAL may open as whatever it is; one that came from a
            store, and every member of an archive, is opened as one of `LONE_DRIVERS`.

    Raises:
        InputError: not a raster, complex numbers, shorter than its header says, or a broken archive.
        UnreachableError: a server that does not answer, wants a login or sends no parts of files.
    """
    where = str(source)
    packed = isinstance(source, Member) and source.packed
    remote = isinstance(source, Address) and source.remote
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(SESSION, **_options(remote)))
        said: list[str] = []
        try:
            if isinstance(source, Address):
                path = source.gdal
            elif isinstance(source, Path):
                path = str(source)
            else:
                path = stack.enter_context(_in_memory(source)) if packed else str(source.container)
            # GDAL does without a damaged one, and so without the place and the nodata value that it says
            if (beside := Path(f"{path}.aux.xml")).is_file():
                _xml(beside.read_bytes(), beside)
            drivers = LONE_DRIVERS if packed or not own else None
            if page is not None:
                path, where = f"GTIFF_DIR:{page}:{path}", f"{where}: page {page}"
            if isinstance(source, Address):
                drivers = list(source.drivers)
            with hearing(said):
                dataset = stack.enter_context(DatasetReader(path, driver=drivers))
        except RasterioError as error:
            if remote and (answer := _answer([*said, str(error)])):
                raise refused(answer, where) from error
            lone = packed or not own or remote
            raise InputError(
                f"not an image that can be read: {_words(str(error))}",
                where=where,
                expected=f"{LONE_KINDS}: others are read from folders of your own only" if lone else "",
                next_step="fetch the file again, or make it readable",
            ) from error
        except UnicodeEncodeError as error:
            raise InputError(
                "the path is not UTF-8, which GDAL needs",
                where=os.fsencode(where).decode(errors="backslashreplace"),
                next_step="rename it",
            ) from error
        _refuse_complex(dataset, where)
        _refuse_short(dataset, where, source.size if isinstance(source, Member) else None)
        yield Raster(dataset, where, frozenset(said), remote)


def _options(remote: bool) -> dict[str, Any]:
    if not remote:
        return OPTIONS
    options = OPTIONS | REMOTE
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        address = urlsplit(endpoint)
        options |= {
            "AWS_S3_ENDPOINT": address.netloc + address.path.rstrip("/"),
            "AWS_HTTPS": "NO" if address.scheme == "http" else "YES",
            "AWS_VIRTUAL_HOSTING": "FALSE",
        }
    return options


@contextmanager
def _in_memory(member: Member) -> Iterator[str]:
    """Path of a member among GDAL's files in memory, its sidecars beside it as GDAL looks for them."""
    folder = digest(str(member))[:16]
    path = PurePosixPath(member.path)
    name = path.stem + path.suffix.lower()
    with ExitStack() as stack:
        memory = stack.enter_context(MemoryFile(read(member), dirname=folder, filename=name))
        for sidecar in member.sidecars:
            # scene.tfw goes by the name without suffix, scene.tif.aux.xml by the whole
            tail = sidecar.path[len(member.path) :].lower()
            beside = name + tail if sidecar.path.lower() == member.path.lower() + tail else ""
            beside = beside or path.stem + PurePosixPath(sidecar.path).suffix.lower()
            content = read(sidecar)
            if beside.endswith(".aux.xml"):
                content = harmless(content, sidecar)
            stack.enter_context(MemoryFile(content, dirname=folder, filename=beside))
        yield memory.name


def harmless(content: bytes, where: object) -> bytes:
    """An .aux.xml with nothing in it that names other files; InputError where it is not XML."""
    root = _xml(content, where)
    for child in list(root):
        for part in list(child) if child.tag == "PAMRasterBand" else []:
            if part.tag not in PAM_BAND:
                child.remove(part)
        if child.tag not in (*PAM_PLACE, "PAMRasterBand"):
            root.remove(child)
    return ElementTree.tostring(root)


def _xml(content: bytes, where: object) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(content)  # noqa: S314  (expat stops entities that grow without bounds)
    except ElementTree.ParseError as error:
        raise InputError(
            f"not XML: {error}", where=where, next_step="fetch the file again, or remove it"
        ) from error


def _refuse_complex(dataset: DatasetReader, where: str) -> None:
    if not any(dtype.startswith("complex") for dtype in dataset.dtypes):
        return
    path = Path(dataset.name)
    amplitude = str(path.with_name(f"{path.stem}_amplitude.tif"))
    copy = f"copy({f'DERIVED_SUBDATASET:AMPLITUDE:{path}'!r}, {amplitude!r}, driver='GTiff')"
    command = f"python -c {shlex.quote(f'from rasterio.shutil import copy; {copy}')}"
    if dataset.name.startswith("/vsimem/"):
        command = "unpack the archive, and start again: the message then says how to make an amplitude"
    raise InputError(
        f"complex numbers ({dataset.dtypes[0]}), such as of a radar's single look complex",
        where=where,
        expected="real numbers, such as the amplitude",
        next_step=command,
    )


def _refuse_short(dataset: DatasetReader, where: str, size: int | None = None) -> None:
    """Refuses a file (of `size` bytes) without all pixels of its header, which GDAL fills up with zeros."""
    promised, found = _promised_bytes(dataset), 0
    if promised and (found := Path(dataset.name).stat().st_size if size is None else size) < promised:
        raise InputError(
            f"truncated: {found} bytes, and its header promises {promised}",
            where=where,
            next_step="fetch or export the file again",
        )
    for path in dataset.files[1:] if dataset.driver == "VRT" else ():
        if Path(path).with_suffix(".hdr").exists() or Path(f"{path}.hdr").exists():
            with rasterio.open(path) as part:
                _refuse_short(part, path)


def _promised_bytes(dataset: DatasetReader) -> int:
    """Least size of the file by its header; 0 where GDAL itself tells that a part is missing."""
    if dataset.driver == "PCIDSK":
        with Path(dataset.name).open("rb") as file:
            return 512 * int(file.read(32)[16:])
    said = dataset.tags(ns="ENVI")
    if dataset.driver not in RAW_DRIVERS or said.get("file_compression", "0") != "0":
        return 0
    header = int(said.get("header_offset", 0))
    if dataset.driver == "PNM":
        header = len(f"P6 {dataset.width} {dataset.height} 1 ")  # its least: comments make it longer
    row_bytes = sum(-(-dataset.width * _bits(dataset, band) // 8) for band in dataset.indexes)
    return header + dataset.height * row_bytes


def _bits(dataset: DatasetReader, band: int) -> int:
    """Of a value of the band, as the file holds it."""
    whole = 8 * np.dtype(dataset.dtypes[band - 1]).itemsize
    return int(dataset.tags(band, ns="IMAGE_STRUCTURE").get("NBITS", whole))


def _words(text: str) -> str:
    """GDAL's words on one line, without its name for a file in memory."""
    return " ".join(re.sub(r"'?/vsimem/\S+?'?[,:]? ", "", text).split())
