"""Publishers' archives: one index of the files in them, and safe reading of each.

An archive counts as a folder: `a.tif` in `images.zip` has the path `images/a.tif`, as if it were unpacked.
Members of a zip are read in place; tars and archives within archives are unpacked to a scratch folder first.
Nothing in an archive is trusted: paths that leave it, links and sizes that cannot be true are refused.
"""

import errno
import glob
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Self

from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_dir, digest
from crossearth.data.raster.names import is_raster, rasters_among, sidecar_names

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
UNREADABLE = {".rar": "unrar x", ".7z": "7z x"}
PARTS = (".001", ".z01", ".part1.rar", ".tar.gz.aa", ".zip.part1")
JUNK = ("__MACOSX", "Thumbs.db")
BACKSLASH = "\\"
ENTRY = b"PK\1\2"  # how each entry of a zip's directory begins
MIB = 2**20
CHUNK = 8 * MIB
# what an archive may claim: a single file is held in memory while it is read
MEMBER_BYTES = 8 * 1024 * MIB
TOTAL_BYTES = 4 * 1024 * 1024 * MIB  # of all files of one archive, unpacked
# unpacked size / archive size, and the unpacked size from which it counts: label rasters reach about 150,
# deflate itself ends at 1032
RATIO, RATIO_FROM_BYTES = 600.0, 256 * MIB
DEPTH = 3  # archives within archives


@dataclass(frozen=True)
class Member:
    """A file in a folder or an archive.

    Attributes:
        path: where it would lie if all archives were unpacked, below the indexed folder, with "/".
        container: the archive file, or the file itself.
        name: its name in the archive; empty for a plain file.
        size: bytes when unpacked.
        tag: changes when the content does (CRC, or time of change): tells a resumed run what it has done.
        packed: whether it came in an archive, and so from strangers; it may be unpacked by now.
        sidecars: the files beside a raster that are read with it: its place, its mask.
    """

    path: str
    container: Path
    name: str
    size: int
    tag: str
    packed: bool = False
    sidecars: tuple["Member", ...] = ()

    @property
    def stem(self) -> str:
        """File name without its last suffix."""
        return PurePosixPath(self.path).stem

    def __str__(self) -> str:
        return f"{self.container}:{self.name}" if self.name else str(self.container)


def stem_of(name: str) -> str:
    """Name of an archive without its suffix, `.tar.gz` being one."""
    for suffix in sorted((*ZIP_SUFFIXES, *TAR_SUFFIXES), key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def is_archive(name: str) -> bool:
    """Whether a file of this name is looked into."""
    return name.lower().endswith((*ZIP_SUFFIXES, *TAR_SUFFIXES))


def index(place: Path, scratch: Path) -> list[Member]:
    """Lists every file at a place, archives looked into, sorted by path.

    An archive beside a folder of the same name is taken as unpacked already and is not opened.

    Args:
        place: a folder; an archive (whose suffix may be left out), or a folder or a file in one; or a file,
            which stands for all files beside it that differ in the suffix alone.
        scratch: where tars and inner archives are unpacked (created only if there are such).

    Returns:
        Paths are below `place`, or, of a file, below its folder.

    Raises:
        InputError: nothing is there; an archive that is broken, truncated, encrypted or not to be trusted.
    """
    place = Path(place)
    if place.is_dir():
        members = list(_index_folder(place, "", scratch, 0))
    elif place.is_file() and not is_archive(place.name):
        members = [_plain(file, file.name) for file in on_the_disk(place) if file.is_file()]
    else:
        members = _within_archive(place, scratch)
    by_name = {member.path.lower(): member for member in members}
    return sorted((_with_sidecars(member, by_name) for member in members), key=lambda member: member.path)


def file_at(place: Path, scratch: Path) -> Member:
    """The one file at a place, which may lie in an archive; InputError where there is none."""
    for member in index(place, scratch):
        if PurePosixPath(member.path).name == place.name:
            return member
    raise InputError("no such file", where=place)


def rasters(members: Sequence[Member]) -> list[Member]:
    """Those that are images."""
    by_path = {member.path: member for member in members}
    return [by_path[path] for path in rasters_among(list(by_path), lambda path: read(by_path[path]))]


def on_the_disk(place: Path) -> list[Path]:
    """The files and folders that `index` would read at a place."""
    if place.is_dir():
        return [place]
    if place.is_file() and not is_archive(place.name):
        return sorted(place.parent.glob(f"{glob.escape(place.stem)}.*"))
    return list(_archives_at(place))


def _within_archive(place: Path, scratch: Path) -> list[Member]:
    """The files at a place in an archive."""
    for archive in _archives_at(place):
        stem = stem_of(archive.name)
        members = [
            replace(member, path=member.path.removeprefix(f"{stem}/"))
            for member in _index_archive(archive, stem, scratch, 0)
        ]
        inner = PurePosixPath(*place.parts[len(archive.parent.parts) + 1 :])
        # many an archive holds one folder of its own name
        for within in (inner, stem / inner):
            if found := [below for member in members for below in _below(member, within)]:
                return found
    raise InputError(
        "no such file or folder" if place.suffix else "no such folder",
        where=place,
        next_step="put archives or folders of images there",
    )


def _below(member: Member, place: PurePosixPath) -> Iterator[Member]:
    """A member whose path is below a place, or differs from it in the suffix alone."""
    path = PurePosixPath(member.path)
    if path.is_relative_to(place) and path != place:
        yield replace(member, path=str(path.relative_to(place)))
    elif place.suffix and path.with_suffix("") == place.with_suffix(""):
        yield replace(member, path=path.name)


def _archives_at(place: Path) -> Iterator[Path]:
    """Archives that stand for a folder on the way to a place that is not there."""
    for part in (place, *place.parents):
        if part.is_dir():
            return
        if part.is_file() and is_archive(part.name):
            yield part
        for suffix in (*ZIP_SUFFIXES, *TAR_SUFFIXES):
            if (archive := part.with_name(f"{part.name}{suffix}")).is_file():
                yield archive


def _plain(file: Path, path: str, packed: bool = False) -> Member:
    """A file outside of archives; InputError where it cannot be looked at, or its name is not UTF-8."""
    if not _is_utf8(str(file)):
        name = os.fsencode(file).decode(errors="backslashreplace")
        raise InputError(
            "the path is not UTF-8, which GDAL and manifests need", where=name, next_step="rename it"
        )
    try:
        status = file.stat()
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", where=file, next_step="a broken link? mend or remove it"
        ) from error
    return Member(path, file, "", status.st_size, str(status.st_mtime_ns), packed)


def _with_sidecars(member: Member, by_name: Mapping[str, Member]) -> Member:
    if not is_raster(member.path, by_name.keys()):
        return member
    beside = sorted(sidecar_names(member.path) & by_name.keys())
    return replace(member, sidecars=tuple(by_name[name] for name in beside)) if beside else member


def refuse_unreadable(members: Sequence[Member]) -> None:
    """Called when something is missing: refuses (InputError) rar, 7z and split archives, with a command."""
    for member in members:
        file = PurePosixPath(member.path)
        name = file.name.lower()
        if name.endswith(PARTS):
            raise InputError(
                "one part of a split archive", where=member, next_step="unpack it in this folder: 7z x"
            )
        if command := UNREADABLE.get(file.suffix.lower()):
            raise InputError(
                f"{file.suffix.lower()} archives are not read",
                where=member,
                next_step=f'mkdir "{file.stem}" && cd "{file.stem}" && {command} "../{file.name}"',
            )


def _index_folder(folder: Path, prefix: str, scratch: Path, depth: int) -> Iterator[Member]:
    for file in walk(folder):
        path = prefix + file.relative_to(folder).as_posix()
        if _is_junk(path):
            continue
        member = _plain(file, path, packed=depth > 0)
        if not is_archive(file.name):
            yield member
        elif not file.with_name(stem_of(file.name)).is_dir():
            yield from _index_archive(file, stem_of(path), scratch, depth)


def walk(folder: Path) -> Iterator[Path]:
    """Every file below `folder`; links to folders are followed, because users keep data on other disks."""
    seen: set[Path] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_refuse_unlistable):
        real = Path(place).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(place) / name for name in sorted(files))


def _refuse_unlistable(error: OSError) -> None:
    raise InputError(f"cannot list the folder: {error.strerror}", where=error.filename) from error


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_junk(path: str) -> bool:
    return any(part in JUNK or part.startswith(".") for part in path.split("/"))


def _index_archive(file: Path, prefix: str, scratch: Path, depth: int) -> Iterator[Member]:
    if depth >= DEPTH:
        raise InputError(f"archives within archives, more than {DEPTH} deep", where=file)
    status = file.stat()
    # images, labels and lists may lie in one archive, each looked up by itself
    unpacked = scratch / digest([str(file.resolve()), status.st_size, status.st_mtime_ns])[:16]
    if file.name.lower().endswith(TAR_SUFFIXES):
        if not unpacked.is_dir():
            with atomic_dir(unpacked) as folder:
                _unpack_tar(file, folder)
        yield from _index_folder(unpacked, f"{prefix}/", scratch, depth + 1)
        return
    for entry in zip_entries(file):
        # some tools of Windows write its own separator
        path = f"{prefix}/{entry.filename.replace(BACKSLASH, '/')}"
        if _is_junk(path):
            continue
        if is_archive(entry.filename):
            inner = unpacked / path
            if not inner.exists():
                unpack(file, entry.filename, inner)
            yield from _index_archive(inner, stem_of(path), scratch, depth + 1)
        else:
            yield Member(path, file, entry.filename, entry.file_size, f"{entry.CRC:08x}", packed=True)


def zip_entries(file: Path) -> list[zipfile.ZipInfo]:
    """The files of a zip, once its directory has been found honest.

    Raises:
        InputError: truncated or no zip; encrypted; an entry that is absolute, leaves the archive, is a link
            or a device, or is too large; entries that overlap; more than an archive may claim.
    """
    with _reading(file):
        listed = _open_zip(file).infolist()
        if any(ENTRY in each.orig_filename.encode() + each.extra + each.comment for each in listed):
            raise zipfile.BadZipFile("an entry of its directory has swallowed the next")
        entries = [entry for entry in listed if not entry.filename.endswith(("/", BACKSLASH))]
    archive_bytes = file.stat().st_size
    for entry in entries:
        _refuse_path(file, entry.filename)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise InputError(f"entry {entry.filename!r} is a link or a device", where=file)
        if entry.flag_bits & 1:
            raise InputError(
                f"entry {entry.filename!r} is encrypted",
                where=file,
                next_step="unpack it with the password you were sent",
            )
        _refuse_size(file, entry.filename, entry.file_size)
    if sum(entry.compress_size for entry in entries) > archive_bytes:
        raise InputError("its entries overlap: a zip bomb", where=file)
    _refuse_total(file, sum(entry.file_size for entry in entries), archive_bytes)
    return entries


def _refuse_path(file: Path, name: str) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if not parts.parts or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise InputError(
            f"entry {name!r} leaves the archive", where=file, next_step="download it again from its publisher"
        )
    if not _is_utf8(name):
        raise InputError(
            f"entry {name!r} is not UTF-8", where=file, next_step="unpack the archive and rename the file"
        )


def _refuse_size(file: Path, name: str, size: int) -> None:
    if size > MEMBER_BYTES:
        raise InputError(
            f"entry {name!r} unpacks to {size / 2**30:.1f} GiB",
            where=file,
            expected=f"at most {MEMBER_BYTES / 2**30:.1f} GiB",
        )


def _refuse_total(file: Path, total: int, archive_bytes: int) -> None:
    if total > TOTAL_BYTES:
        raise InputError(
            f"unpacks to {total / 2**30:.0f} GiB",
            where=file,
            expected=f"at most {TOTAL_BYTES / 2**30:.0f} GiB",
        )
    if total > RATIO_FROM_BYTES and total > RATIO * archive_bytes:
        raise InputError(
            f"unpacks to {total / max(archive_bytes, 1):.0f} times its size: a zip bomb",
            where=file,
            expected=f"at most {RATIO:.0f} times",
        )


def unpack(file: Path, name: str, to: Path) -> None:
    """Writes an entry of a zip to a file, a piece at a time; InputError where the archive is broken."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with _reading(file), _open_zip(file).open(name) as source, to.open("wb") as target:
        shutil.copyfileobj(source, target, CHUNK)


class _Header(tarfile.TarInfo):
    """An entry's header. A damaged one counts for tarfile as the end of the archive; here it is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf == bytes(tarfile.BLOCKSIZE):
                raise
            raise tarfile.ReadError(f"no header and no end: {error}") from error


def _unpack_tar(file: Path, to: Path) -> None:
    """Unpacks plain files only, counting bytes as they come: a compressed tar says its total nowhere."""
    archive_bytes, total = file.stat().st_size, 0
    with _reading(file), tarfile.open(file, tarinfo=_Header) as archive:
        for entry in archive:
            if entry.isdir():
                continue
            _refuse_path(file, entry.name)
            if not entry.isreg():
                raise InputError(f"entry {entry.name!r} is a link or a device", where=file)
            _refuse_size(file, entry.name, entry.size)
            total += entry.size
            _refuse_total(file, total, archive_bytes)
            source = archive.extractfile(entry)
            target = to / entry.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source is None or target.exists():
                raise InputError(f"entry {entry.name!r} stands there twice", where=file)
            with source, target.open("wb") as out:
                shutil.copyfileobj(source, out, CHUNK)
            os.utime(target, (entry.mtime, entry.mtime))  # the same file to a resumed run
        # tarfile stops before the end of a compressed stream, where its checksum stands
        while rest := archive.fileobj.read(CHUNK):
            total += len(rest)
            _refuse_total(file, total, archive_bytes)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turns every way in which an archive can be broken into one error that names it."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except PermissionError as error:
        raise InputError("no permission to read it", where=file) from error
    except NotImplementedError as error:
        raise InputError(
            f"compressed in a way that is not read ({error})", where=file, next_step="unpack it with `7z x`"
        ) from error
    except Exception as error:
        # EINVAL is a seek to where an offset of the directory leads: before the file
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise InputError(
            f"broken or truncated archive of {file.stat().st_size} bytes ({error})",
            where=file,
            next_step="download it again",
        ) from error


def _open_zip(file: Path) -> zipfile.ZipFile:
    # a fork would share the file's offset, and a file may be replaced: neither may share a handle
    return _zip_handle(os.getpid(), file, file.stat().st_mtime_ns)


@lru_cache(maxsize=32)
def _zip_handle(process: int, file: Path, changed: int) -> zipfile.ZipFile:
    """Kept open: reading the directory of 17 000 entries takes 0.1 s."""
    return zipfile.ZipFile(file)


@contextmanager
def opened(member: Member) -> Iterator[IO[bytes]]:
    """A member's bytes, a stream that may be wound back; InputError for what goes wrong in the `with`."""
    with _reading(member.container):
        stream = _open_zip(member.container).open(member.name) if member.name else member.container.open("rb")
        with stream as file:
            yield file


def read(member: Member) -> bytes:
    """A member's bytes, an archive's checked against their CRC; InputError where they cannot be read."""
    with opened(member) as file:
        return file.read()
