"""Atomic writing and digests."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crossearth.data.common import files
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_dir, atomic_path, digest, file_lock, write_json


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
        with file_lock(tmp_path / "file"):
            inside.append(number)
            time.sleep(0.01)
            assert inside[-1] == number

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    assert sorted(inside) == list(range(24))
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import sys
from pathlib import Path
from crossearth.data.common.files import file_lock
with file_lock(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    input()
"""


@pytest.fixture(params=["a training of town"])
def holder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator["subprocess.Popen[str]"]:
    """Another process that does something at tmp_path/town until it gets a line."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "town"), request.param]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_that_would_do_the_same_is_refused_and_told_which_does_it(
    tmp_path: Path, holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PATIENCE_S", 0.2)
    said = f"town: a training of town is running already: process {holder.pid} on {socket.gethostname()}\n"
    with pytest.raises(InputError, match=said), file_lock(tmp_path / "town", "a training of town"):
        pass
    holder.kill()
    holder.wait()
    with file_lock(tmp_path / "town", "a training of town"):  # what is killed holds nothing
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("holder", "doing"), [("a training of town", "a training of town"), ("", "")], indirect=["holder"]
)
def test_a_process_that_is_about_to_end_is_waited_for(
    tmp_path: Path, holder: "subprocess.Popen[str]", doing: str, caplog: pytest.LogCaptureFixture
) -> None:
    threading.Timer(0.3, lambda: holder.communicate("\n")).start()
    with file_lock(tmp_path / "town", doing):
        assert holder.wait() == 0
    assert f"process {holder.pid} on" in caplog.text


def test_equal_values_give_equal_bytes_and_digests(tmp_path: Path) -> None:
    write_json(tmp_path / "1.json", {"a": 1, "b": 2})
    write_json(tmp_path / "2.json", {"b": 2, "a": 1})
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
