import errno
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hostile_archives import FILES, HOSTILE, tar_bytes, zip_bytes

from crossearth.data.common.errors import InputError
from crossearth.data.raster import archives
from crossearth.data.raster.archives import index, read, refuse_unreadable


def contents(folder: Path, scratch: Path) -> dict[str, bytes]:
    return {member.path: read(member) for member in index(folder, scratch)}


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


@pytest.mark.parametrize(("outer", "inner"), [("zip", "zip"), ("zip", "tar.gz"), ("tgz", "zip")])
def test_archives_within_archives(outer: str, inner: str, tmp_path: Path) -> None:
    def packed(files: dict[str, bytes], kind: str) -> bytes:
        return zip_bytes(files) if kind == "zip" else tar_bytes(files)

    whole = packed({f"folder/in.{inner}": packed(FILES, inner), "b.txt": b"b"}, outer)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"out.{outer}").write_bytes(whole)
    found = contents(tmp_path / "data", tmp_path / "scratch")
    assert found == {f"out/folder/in/{path}": content for path, content in FILES.items()} | {
        "out/b.txt": b"b"
    }


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_tar_is_looked_up_again_where_it_was_unpacked(name: str, tmp_path: Path) -> None:
    """Images, labels and split lists of one tar are each looked up, and it is unpacked once."""
    (tmp_path / name).write_bytes(tar_bytes(FILES, "w" if name == "x.tar" else "w:gz"))
    found = [index(tmp_path / "x", tmp_path / "scratch") for _ in range(2)]
    assert found[0] == found[1] and len(found[0]) == len(FILES)
    (tmp_path / name).write_bytes(tar_bytes({"f/other.tif": b"new"}, "w" if name == "x.tar" else "w:gz"))
    assert [member.path for member in index(tmp_path / "x", tmp_path / "scratch")] == ["f/other.tif"]


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
    "limits", [{"MEMBER_BYTES": 1000}, {"TOTAL_BYTES": 1500}, {"RATIO": 5.0, "RATIO_FROM_BYTES": 1000}]
)
def test_bombs_are_refused(
    name: str, limits: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, value in limits.items():
        monkeypatch.setattr(archives, limit, value)
    zeros = {"a.tif": bytes(200_000), "b.tif": bytes(200_000)}
    small = {"a.tif": b"a" * 900, "b.tif": b"b" * 900}
    files = small if "TOTAL_BYTES" in limits else zeros
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(zip_bytes(files) if name == "x.zip" else tar_bytes(files))
    with pytest.raises(InputError, match="unpacks to"):
        contents(tmp_path / "data", tmp_path / "scratch")


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
