"""Atomic writing and digests."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crossearth.data.files import alone, atomic_dir, atomic_path, digest, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_folder_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_dir(target) as partial:
        (partial / "a").write_text("1")
    with pytest.raises(RuntimeError), atomic_dir(target) as partial:
        (partial / "b").write_text("2")
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["a"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_folder_takes_the_place_of_the_old(tmp_path: Path) -> None:
    for name in "ab":
        with atomic_dir(tmp_path / "out") as partial:
            (partial / name).touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


def test_what_killed_processes_left_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / ".file.partial").write_text("half")
    (tmp_path / ".file.lock").touch()
    for left in (".folder.partial", ".folder.retired"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "half").touch()
    with atomic_path(tmp_path / "file") as partial:
        partial.touch()
    with atomic_dir(tmp_path / "folder") as partial:
        (partial / "whole").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["whole"]


def test_writers_of_one_file_take_turns(tmp_path: Path) -> None:
    """Each holds a lock of its own, as processes do."""
    inside = []

    def write(number: int) -> None:
        with alone(tmp_path / "file"):
            inside.append(number)
            time.sleep(0.01)
            assert inside[-1] == number

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    assert sorted(inside) == list(range(24))
    assert list(tmp_path.iterdir()) == []


def test_equal_values_give_equal_bytes_and_digests(tmp_path: Path) -> None:
    write_json(tmp_path / "1.json", {"a": 1, "b": 2})
    write_json(tmp_path / "2.json", {"b": 2, "a": 1})
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
