"""Archives, and such as nobody should unpack, with words of the answer."""

import gzip
import io
import os
import struct
import tarfile
import zipfile
from random import Random

FILES = {"top/a_1.tif": b"one" * 50, "top/deep/A_2.tif": b"two" * 70}


def zip_bytes(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_bytes(files: dict[str, bytes], mode: str = "w:gz", kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else ""
            entry.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def zip_with_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("link.tif")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


def zip_of_overlapping_entries() -> bytes:
    """Every directory entry points at the same local file: the classic bomb without nesting."""
    whole = zip_bytes({"a.tif": b"x" * 5000}, zipfile.ZIP_STORED)
    start = whole.rindex(b"PK\1\2")
    end = whole.rindex(b"PK\5\6")
    entry = whole[start:end]
    tail = bytearray(whole[end:])
    struct.pack_into("<HHI", tail, 8, 40, 40, len(entry) * 40)
    entries = b"".join(
        entry[:46] + f"{number:01d}.tif"[-5:].rjust(5, "a").encode() + entry[51:] for number in range(40)
    )
    return whole[:start] + entries + bytes(tail)


def encrypted() -> bytes:
    packed = bytearray(zip_bytes({"a.tif": b"secret"}))
    packed[packed.rindex(b"PK\1\2") + 8] |= 1
    return bytes(packed)


def flipped(packed: bytes, found: bytes) -> bytes:
    """`packed` with one bit changed, 9 bytes behind the start of `found`."""
    place = packed.index(found) + 9
    return packed[:place] + bytes([packed[place] ^ 1]) + packed[place + 1 :]


def swallowing(field: int) -> bytes:
    """A zip whose first entry takes the second for a part of itself: field is the place of a length."""
    whole = bytearray(zip_bytes(FILES))
    first, second = whole.index(b"PK\1\2"), whole.rindex(b"PK\1\2")
    (length,) = struct.unpack_from("<H", whole, first + field)
    struct.pack_into("<H", whole, first + field, length + whole.rindex(b"PK\5\6") - second)
    return bytes(whole)


def stored_gz(files: dict[str, bytes]) -> bytes:
    """A .tar.gz in which the files' bytes stand as they are: deflate finds nothing wrong in a changed one."""
    return gzip.compress(tar_bytes(files, "w"), 0)


def changed_bz2() -> bytes:
    packed = tar_bytes({"a.tif": Random(0).randbytes(2_000_000)}, "w:bz2")
    return flipped(packed, packed[1_500_000:])


def nested() -> bytes:
    packed = zip_bytes({"a.tif": b"a"})
    for _ in range(4):
        packed = zip_bytes({"in.zip": packed})
    return packed


HOSTILE = {
    "climbs": ("x.zip", lambda: zip_bytes({"a/../../evil.tif": b""}), "leaves the archive"),
    "climbs as windows": ("x.zip", lambda: zip_bytes({"..\\evil.tif": b""}), "leaves the archive"),
    "no name": ("x.zip", lambda: zip_bytes({".": b""}), "leaves the archive"),
    "absolute": ("x.zip", lambda: zip_bytes({"/etc/evil.tif": b""}), "leaves the archive"),
    "drive": ("x.zip", lambda: zip_bytes({"C:/evil.tif": b""}), "leaves the archive"),
    "link": ("x.zip", zip_with_link, "link or a device"),
    "overlap": ("x.zip", zip_of_overlapping_entries, "overlap"),
    "encrypted": ("x.zip", encrypted, "encrypted"),
    "cut": ("x.zip", lambda: zip_bytes(FILES)[:-30], "truncated"),
    "a name with the next entry in it": ("x.zip", lambda: swallowing(28), "swallowed"),
    "extra bytes with the next entry in them": ("x.zip", lambda: swallowing(30), "broken"),
    "a comment with the next entry in it": ("x.zip", lambda: swallowing(32), "swallowed"),
    "no zip": ("x.zip", lambda: b"<html>please log in</html>", "truncated"),
    "empty": ("x.zip", lambda: b"", "truncated"),
    "tar climbs": ("x.tar.gz", lambda: tar_bytes({"../evil.tif": b"e"}), "leaves the archive"),
    "tar absolute": ("x.tar", lambda: tar_bytes({"/evil.tif": b"e"}, "w"), "leaves the archive"),
    "tar link": ("x.tgz", lambda: tar_bytes({"l.tif": b""}, kind=tarfile.SYMTYPE), "link or a device"),
    "tar hard link": ("x.tgz", lambda: tar_bytes({"l.tif": b""}, kind=tarfile.LNKTYPE), "link or a device"),
    "tar device": ("x.tgz", lambda: tar_bytes({"l.tif": b""}, kind=tarfile.CHRTYPE), "link or a device"),
    "tar cut": ("x.tar.gz", lambda: tar_bytes({"a.tif": bytes(range(256)) * 90})[:-40], "truncated"),
    "tar of nothing": ("x.tar.gz", lambda: b"no tar", "truncated"),
    "tar of another checksum": (
        "x.tar.gz",
        lambda: flipped(stored_gz({"a.tif": b"pixels" * 9}), b"pixels"),
        "broken.*CRC check failed",
    ),
    "tar with a changed header": (
        "x.tar",
        lambda: flipped(tar_bytes(FILES, "w"), b"top/deep"),
        "broken.*no header and no end: bad checksum",
    ),
    "tar cut between two entries": (
        "x.tar",
        lambda: tar_bytes(FILES, "w").partition(b"top/deep")[0],
        "broken.*no header and no end",
    ),
    "tar whose end has no end": (
        "x.tar.gz",
        lambda: gzip.compress(tar_bytes(FILES, "w")) + gzip.compress(bytes(10_000_000)) * 30,
        "zip bomb",
    ),
    "bz2 with a changed block": (
        "x.tar.bz2",
        changed_bz2,
        "broken.*Invalid data stream",
    ),
    "a name that is no UTF-8": (
        "x.zip",
        lambda: zip_bytes({"é.tif": b"e"}).replace("é".encode(), b"\xff\xfe"),
        "broken.*utf-8",
    ),
    "a name in a tar that is no UTF-8": (
        "x.tar",
        lambda: tar_bytes({os.fsdecode(b"\xff.tif"): b"e"}, "w"),
        "udcff.tif' is not UTF-8",
    ),
    "nested": ("in.zip", nested, "more than 3 deep"),
}
