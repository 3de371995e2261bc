import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from http_server import Handler, Server

from crossearth.components.ingest import fetch as module
from crossearth.components.ingest.fetch import by_hand, fetch
from crossearth.data.catalog.domains import Catalog
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import write_checksummed

CONTENT = bytes(range(256)) * 5000
CUT = 4 * module.CHUNK
NAME = "Train.zip"


@dataclass
class Publisher:
    """A server on this machine, and what it was asked."""

    address: str = ""
    content: bytes = CONTENT
    version: str = '"1"'
    cut_after: int | None = None
    ranges: list[str | None] = field(default_factory=list)
    knows_ranges: bool = True
    says_length: bool = True
    length: str | None = None
    busy: int = 0  # how many requests are put off

    def serve(self, request: Handler) -> None:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        if self.busy:
            self.busy -= 1
            request.send_error(503)
            return
        if request.path != f"/{NAME}":
            request.send_error(404)
            return
        start = 0
        if asked and self.knows_ranges and request.headers.get("If-Range", self.version) == self.version:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(self.content):
            request.send_error(416)
            return
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("ETag", self.version)
        if self.says_length:
            request.send_header("Content-Length", self.length or str(len(body)))
        request.end_headers()
        cut, self.cut_after = self.cut_after, None
        request.wfile.write(body[:cut])


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    monkeypatch.setattr(module, "PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(module, "RETRY", module.RETRY.new(backoff_factor=0))
    there = Publisher()

    class Asked(Handler):
        def do_GET(self) -> None:
            there.serve(self)

    with Server(Asked) as server:
        there.address = f"{server.address}/{NAME}"
        yield there


def catalog(folder: Path, url: str, md5: str | None = None) -> Catalog:
    archive = {"name": NAME, "url": url} | ({"md5": md5} if md5 else {})
    other = {"name": "Test.zip", "download_gb": 2.5}
    entry = {"dataset": "city", "test": {"images": "*.png"}}
    file = folder / "catalog.yaml"
    city = {"title": "City", "homepage": "https://city.org", "licence": "ask", "archives": [archive, other]}
    file.write_text(yaml.safe_dump({"datasets": {"city": city}, "domains": {"city-north": entry}}))
    return load_catalog([file])


MD5 = hashlib.md5(CONTENT).hexdigest()


def test_a_file_is_fetched_once(publisher: Publisher, tmp_path: Path, typed: Callable[[str], str]) -> None:
    catalog(tmp_path, publisher.address, MD5)
    for number in range(2):
        printed = typed("crossearth fetch city --catalog catalog.yaml")
        assert "Test.zip" in printed, "it is got by hand"
        assert (f"{NAME}, size not published" in printed) is (number == 0)
    path = tmp_path / "archives" / "city" / NAME
    assert path.read_bytes() == CONTENT
    assert publisher.ranges == [None]
    assert [entry.name for entry in path.parent.iterdir()] == [NAME]


def test_a_broken_connection_is_taken_up_where_it_broke(publisher: Publisher, tmp_path: Path) -> None:
    publisher.cut_after = CUT
    (path,) = fetch(["city-north"], catalog(tmp_path, publisher.address, MD5), tmp_path)
    assert path.read_bytes() == CONTENT
    assert publisher.ranges == [None, f"bytes={CUT}-"]


def test_a_killed_download_goes_on(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = catalog(tmp_path, publisher.address, MD5)
    publisher.cut_after = CUT
    monkeypatch.setattr(module, "PAUSES_S", ())
    with pytest.raises(InputError, match="it goes on where it stopped"):
        fetch(["city"], known, tmp_path)
    (path,) = fetch(["city"], known, tmp_path)
    assert path.read_bytes() == CONTENT
    assert publisher.ranges == [None, f"bytes={CUT}-"]


def test_a_file_that_changed_since_begins_again(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = catalog(tmp_path, publisher.address)
    publisher.cut_after = CUT
    monkeypatch.setattr(module, "PAUSES_S", ())
    with pytest.raises(InputError):
        fetch(["city"], known, tmp_path)
    publisher.content, publisher.version = CONTENT[::-1], '"2"'
    (path,) = fetch(["city"], known, tmp_path)
    assert path.read_bytes() == CONTENT[::-1]


def test_a_file_that_shrank_since_begins_again(publisher: Publisher, tmp_path: Path) -> None:
    known = catalog(tmp_path, publisher.address)
    partial = tmp_path / "city" / f".{NAME}.part"
    partial.parent.mkdir()
    partial.write_bytes(CONTENT)
    memo = {"url": publisher.address, "version": "", "bytes": 0}
    write_checksummed(partial.with_name(partial.name + ".json"), memo)
    publisher.content = CONTENT[:1000]
    (path,) = fetch(["city"], known, tmp_path)
    assert path.read_bytes() == CONTENT[:1000]


@pytest.mark.parametrize("damage", ["[]", "{", '"bytes": 262144'])
def test_a_damaged_note_of_a_partial_file_is_none(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    known = catalog(tmp_path, publisher.address)
    publisher.cut_after = CUT
    with monkeypatch.context() as patch, pytest.raises(InputError):
        patch.setattr(module, "PAUSES_S", ())
        fetch(["city"], known, tmp_path)
    note = tmp_path / "city" / f".{NAME}.part.json"
    content = note.read_text()
    note.write_text(content.replace(f'"bytes": {len(CONTENT)}', damage) if "bytes" in damage else damage)
    assert note.read_text() != content
    (path,) = fetch(["city"], known, tmp_path)
    assert path.read_bytes() == CONTENT
    assert publisher.ranges == [None, None]


@pytest.mark.parametrize("length", ["abc", "-5", "9" * 5000])
def test_a_length_that_is_none_counts_as_unknown(publisher: Publisher, tmp_path: Path, length: str) -> None:
    publisher.length = length
    (path,) = fetch(["city"], catalog(tmp_path, publisher.address, MD5), tmp_path)
    assert path.read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(publisher: Publisher, tmp_path: Path) -> None:
    publisher.busy = 2
    (path,) = fetch(["city"], catalog(tmp_path, publisher.address, MD5), tmp_path)
    assert path.read_bytes() == CONTENT
    publisher.busy = 10**6
    with pytest.raises(InputError, match="the server says 503"):
        fetch(["city"], catalog(tmp_path, publisher.address, MD5), tmp_path / "other")


@pytest.mark.parametrize("lack", ["knows_ranges", "says_length"])
def test_a_simple_server_is_enough(publisher: Publisher, tmp_path: Path, lack: str) -> None:
    setattr(publisher, lack, False)
    publisher.cut_after = CUT if lack == "knows_ranges" else None
    (path,) = fetch(["city"], catalog(tmp_path, publisher.address, MD5), tmp_path)
    assert path.read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content = CONTENT[:-1] + b"x"
    with pytest.raises(InputError, match=f"not the publisher's {MD5}"):
        fetch(["city"], catalog(tmp_path, publisher.address, MD5), tmp_path / "archives")
    assert not [path for path in (tmp_path / "archives").rglob("*") if path.suffix in (".zip", ".part")]


def test_a_damaged_file_is_fetched_again(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "city").mkdir()
    (tmp_path / "city" / NAME).write_bytes(b"half of it")
    (path,) = fetch(["city"], catalog(tmp_path, publisher.address, MD5), tmp_path)
    assert path.read_bytes() == CONTENT


def test_a_missing_page(publisher: Publisher, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the server says 404"):
        fetch(["city"], catalog(tmp_path, publisher.address.replace(NAME, "gone.zip")), tmp_path)


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY", module.RETRY.new(backoff_factor=0))
    with pytest.raises(InputError, match="cannot download"):
        fetch(["city"], catalog(tmp_path, f"http://127.0.0.1:9/{NAME}"), tmp_path)


def test_an_address_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected: https"):
        fetch(["city"], catalog(tmp_path, "file:///etc/passwd"), tmp_path)


@pytest.mark.parametrize("url", ["http://[bad/x.zip", "http://a..b/x.zip"])
def test_what_is_no_address(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match=rf"^{re.escape(url)}: not an address"):
        fetch(["city"], catalog(tmp_path, url), tmp_path)


def test_too_little_disk(publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="are free"):
        fetch(["city"], catalog(tmp_path, publisher.address), tmp_path / "archives")
    assert not (tmp_path / "archives" / "city" / NAME).exists()


def test_what_is_not_offered_openly_is_listed_with_page_and_size(tmp_path: Path) -> None:
    ((dataset, archive),) = by_hand(["city"], catalog(tmp_path, "https://city.org/x"))
    assert (dataset.title, dataset.homepage, dataset.licence) == ("City", "https://city.org", "ask")
    assert (archive.name, archive.download_gb) == ("Test.zip", 2.5)


def test_the_benchmarks_open_archives_have_checksums() -> None:
    known = load_catalog()
    offered = [archive for dataset in known.datasets.values() for archive in dataset.archives if archive.url]
    assert {archive.name for archive in offered} >= {"Train.zip", "Val.zip"}
    assert all(archive.md5 for archive in offered)
    assert {archive.name for _, archive in by_hand(["potsdam-rgb"], known)} >= {"5_Labels_all_noBoundary.zip"}
