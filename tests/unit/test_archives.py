import errno
import gzip
import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import pytest

from crossearth.data.archives import Limits, index, read, refuse_unreadable
from crossearth.data.errors import InputError

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


def contents(folder: Path, scratch: Path, limits: Limits | None = None) -> dict[str, bytes]:
    return {member.path: read(member) for member in index(folder, scratch, limits)}


PACKINGS = {
    "x.zip": lambda: zip_bytes(FILES),
    "x.ZIP": lambda: zip_bytes(FILES, zipfile.ZIP_STORED),
    "x.tar": lambda: tar_bytes(FILES, "w"),
    "x.tar.gz": lambda: tar_bytes(FILES),
    "x.tgz": lambda: tar_bytes(FILES),
    "x.tar.xz": lambda: tar_bytes(FILES, "w:xz"),
}


@pytest.mark.parametrize("name", PACKINGS)
def test_every_packing_reads_like_the_unpacked_folder(name: str, tmp_path: Path) -> None:
    packed, unpacked = tmp_path / "packed", tmp_path / "unpacked" / "x"
    packed.mkdir()
    (packed / name).write_bytes(PACKINGS[name]())
    for path, content in FILES.items():
        (unpacked / path).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / path).write_bytes(content)
    wanted = {f"x/{path}": content for path, content in FILES.items()}
    assert contents(packed, tmp_path / "scratch") == contents(unpacked.parent, tmp_path / "scratch") == wanted


@pytest.mark.parametrize("inner", ["in.zip", "in.tar.gz"])
def test_archives_within_archives(inner: str, tmp_path: Path) -> None:
    packed = zip_bytes(FILES) if inner.endswith("zip") else tar_bytes(FILES)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "out.zip").write_bytes(zip_bytes({f"folder/{inner}": packed, "b.txt": b"b"}))
    found = contents(tmp_path / "data", tmp_path / "scratch")
    assert found == {f"out/folder/in/{path}": content for path, content in FILES.items()} | {
        "out/b.txt": b"b"
    }


def test_archives_within_a_tar(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "out.tgz").write_bytes(tar_bytes({"f/in.zip": zip_bytes(FILES)}))
    found = contents(tmp_path / "data", tmp_path / "scratch")
    assert found == {f"out/f/in/{path}": content for path, content in FILES.items()}


def test_an_unpacked_folder_beside_its_archive_is_taken(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"not even a zip")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.tif").write_bytes(b"a")
    assert contents(tmp_path, tmp_path / "scratch") == {"x/a.tif": b"a"}


def test_debris_of_operating_systems_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    debris = {"__MACOSX/._a.tif": b"", "t/.DS_Store": b"", "t/._a.tif": b"", "Thumbs.db": b""}
    (tmp_path / "data" / "x.zip").write_bytes(zip_bytes({**debris, "t/a.tif": b"a"}))
    assert contents(tmp_path / "data", tmp_path / "scratch") == {"x/t/a.tif": b"a"}


@pytest.mark.parametrize("name", ["a.tif", "x.zip"])
def test_a_link_to_nothing_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to("gone")
    with pytest.raises(InputError, match=f"{name}: cannot be read: No such file"):
        contents(tmp_path, tmp_path / "scratch")


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.tif").write_bytes(b"a")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "data")
    assert contents(tmp_path / "data", tmp_path / "scratch") == {"linked/a.tif": b"a"}


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


def stored_gz(files: dict[str, bytes]) -> bytes:
    """A .tar.gz in which the files' bytes stand as they are: deflate finds nothing wrong in a changed one."""
    return gzip.compress(tar_bytes(files, "w"), 0)


def changed_bz2() -> bytes:
    packed = tar_bytes({"a.tif": Random(0).randbytes(2_000_000)}, "w:bz2")
    return flipped(packed, packed[1_500_000:])


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
        lambda: gzip.compress(tar_bytes(FILES, "w") + bytes(600_000_000)),
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
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_and_broken_archives_are_refused_by_name(case: str, tmp_path: Path) -> None:
    name, make, words = HOSTILE[case]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(make())
    with pytest.raises(InputError, match=words) as caught:
        contents(tmp_path / "data", tmp_path / "scratch")
    assert name in str(caught.value)
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
@pytest.mark.parametrize(
    "limits", [Limits(member_bytes=1000), Limits(total_bytes=1500), Limits(ratio=5, ratio_from_bytes=1000)]
)
def test_bombs_are_refused(name: str, limits: Limits, tmp_path: Path) -> None:
    zeros = {"a.tif": bytes(200_000), "b.tif": bytes(200_000)}
    small = {"a.tif": b"a" * 900, "b.tif": b"b" * 900}
    files = small if limits.total_bytes == 1500 else zeros
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(zip_bytes(files) if name == "x.zip" else tar_bytes(files))
    with pytest.raises(InputError, match="unpacks to"):
        contents(tmp_path / "data", tmp_path / "scratch", limits)


@pytest.mark.parametrize(
    ("owner", "call", "words"),
    [
        (zipfile, "ZipFile", r"x\.zip: no permission to read it"),
        (os, "scandir", r"data: cannot list the folder: Permission denied"),
    ],
)
def test_what_may_not_be_read_is_named(
    owner: Any, call: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.zip").write_bytes(zip_bytes(FILES))

    def refuse(path: object, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(owner, call, refuse)  # a test may run as root, who may read everything
    with pytest.raises(InputError, match=words):
        contents(tmp_path / "data", tmp_path / "scratch")


def test_nesting_ends(tmp_path: Path) -> None:
    packed = zip_bytes({"a.tif": b"a"})
    for _ in range(4):
        packed = zip_bytes({"in.zip": packed})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.zip").write_bytes(packed)
    with pytest.raises(InputError, match="deep"):
        contents(tmp_path / "data", tmp_path / "scratch")


def test_a_damaged_entry_is_found_when_it_is_read(tmp_path: Path) -> None:
    packed = bytearray(zip_bytes({"a.tif": b"abcdefgh" * 9}, zipfile.ZIP_STORED))
    packed[60] ^= 1
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.zip").write_bytes(packed)
    with pytest.raises(InputError, match=r"x\.zip: broken"):
        contents(tmp_path / "data", tmp_path / "scratch")


def test_a_directory_that_points_before_the_file(tmp_path: Path) -> None:
    packed = bytearray(zip_bytes(FILES))
    packed[-6] += 40  # where the directory starts, in its last record
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.zip").write_bytes(packed)
    with pytest.raises(InputError, match=r"x\.zip: broken"):
        contents(tmp_path / "data", tmp_path / "scratch")


@pytest.mark.parametrize(
    ("name", "command"),
    [("a b.rar", "unrar x"), ("c.7z", "7z x"), ("d.zip.001", "7z x"), ("e.part1.rar", "7z x")],
)
def test_kinds_that_are_not_read_come_with_the_command(name: str, command: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=command):
        refuse_unreadable(index(tmp_path, tmp_path / "scratch"))


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        index(tmp_path / "nowhere", tmp_path / "scratch")
