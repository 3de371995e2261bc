"""What a store says is not believed: its address, and the index that tells which files to fetch."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import ClientError
from domain_factory import write_domain

from crossearth.data.common.errors import InputError
from crossearth.data.common.files import digest
from crossearth.data.tiles import store
from crossearth.data.tiles.store import FORMAT, StoreConfig, mirror, pull, push, read_object

FILE = {"path": "train.parquet", "sha256": "0" * 64, "size": 1}
INDEX = {"format": FORMAT, "domain": "town", "version": "v", "manifests": {"train": "d"}, "files": [FILE]}


@pytest.mark.parametrize("url", ["", "s3://", "s3:///a", "http://a/b", "s3://[x", "s3://x]", "a/b"])
def test_an_address_that_is_no_stores(url: str) -> None:
    with pytest.raises(InputError, match="not a store"):
        StoreConfig(url)


def checksummed(**changes: Any) -> bytes:
    index = INDEX | changes
    return json.dumps({**index, "digest": digest(index)}).encode()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        *((body, "not an index") for body in (b"", b"[]", b"5", b"{}", b"\xff", b"[" * 100_000)),
        (checksummed().replace(b"town", b"tower"), "its digest is another"),
        (checksummed(format="1"), "another version"),
        (json.dumps({"format": FORMAT, "digest": digest({"format": FORMAT})}).encode(), "Field required"),
        (checksummed(files=5), "files"),
        (checksummed(files=[]), "files: .*at least 1 item"),
        (checksummed(files=[5]), "files.0"),
        (checksummed(files=[{"path": "a"}]), "files.0"),
        (checksummed(files=[FILE | {"path": 5}]), "files.0.path"),
        (checksummed(files=[FILE | {"size": "big"}]), "files.0.size"),
        (checksummed(files=[FILE | {"more": 1}]), "unknown key 'more'"),
        *(
            (checksummed(files=[FILE | {"path": path}]), "leaves the domain's folder")
            for path in ("../x", "/x", "a/../../x", "", ".", "a\0b")
        ),
    ],
)
def test_an_index_that_is_none_fetches_nothing(
    body: bytes, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = SimpleNamespace(
        get_object=lambda **_: {"Body": io.BytesIO(body)},
        exceptions=SimpleNamespace(NoSuchKey=FileNotFoundError),
    )
    monkeypatch.setattr(store, "_client", lambda: client)
    with pytest.raises(InputError, match=problem) as caught:
        pull("town", StoreConfig("s3://bucket/prefix"), tmp_path)
    assert str(caught.value).startswith("s3://bucket/prefix/domains/town/latest.json")
    assert not list(tmp_path.iterdir())


def test_a_push_asks_for_the_domains_own_files_and_lists_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_domain(tmp_path / "town", "town", "road", tiles=2)
    held: dict[str, int] = {}

    def head_object(Bucket: str, Key: str) -> dict[str, int]:
        if Key not in held:
            raise ClientError({"Error": {"Code": "404"}}, "HeadObject")
        return {"ContentLength": held[Key]}

    client = SimpleNamespace(
        head_object=head_object,
        list_objects_v2=lambda Bucket, MaxKeys: {},
        put_object=lambda Key, Body, **_: held.update({Key: len(Body)}),
    )
    monkeypatch.setattr(store, "_client", lambda: client)
    there = StoreConfig("s3://bucket/prefix")
    first = push(tmp_path / "town", there)
    assert (first.moved_files, first.kept_files) == (5, 0)
    damaged = next(key for key in held if "/objects/" in key)
    held[damaged] -= 1
    again = push(tmp_path / "town", there)
    assert (again.moved_files, again.kept_files) == (1, 4)


def test_an_object_that_is_here_already_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, asked, content, tag = tmp_path / "scene.tif", [], "first", "1"

    def download_file(Bucket: str, Key: str, Filename: str) -> None:
        asked.append(Key)
        Path(Filename).write_text(content)

    client = SimpleNamespace(head_object=lambda **_: {"ETag": tag}, download_file=download_file)
    monkeypatch.setattr(store, "_client", lambda: client)

    def times_fetched() -> int:
        mirror("s3://bucket/a/scene.tif", here)
        assert here.read_text() == content
        return len(asked)

    assert times_fetched() == times_fetched() == 1
    here.write_text("other")
    assert times_fetched() == times_fetched() == 2, "changed here"
    here.unlink()
    assert times_fetched() == times_fetched() == 3, "gone here"
    content, tag = "other", "2"
    assert times_fetched() == times_fetched() == 4, "changed in the store, of the same size"


def test_an_object_is_read_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_object(Bucket: str, Key: str) -> dict[str, io.BytesIO]:
        if Key != "item.json":
            raise ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        return {"Body": io.BytesIO(b"12345")}

    monkeypatch.setattr(store, "_client", lambda: SimpleNamespace(get_object=get_object))
    assert read_object("s3://bucket/item.json", 5) == b"12345"
    with pytest.raises(InputError, match="too large an object"):
        read_object("s3://bucket/item.json", 4)
    with pytest.raises(InputError, match=r"s3://bucket/other\.json: no such object"):
        read_object("s3://bucket/other.json")


def test_no_upload_waits_for_a_100_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore adds "Expect" in a private handler, which is taken off: its wait has no time limit."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    sent: list[Any] = []

    def answer(request: Any, **_: Any) -> AWSResponse:
        sent.append(request.headers)
        return AWSResponse(request.url, 200, HTTPHeaders(), SimpleNamespace(stream=lambda *_: [b""]))

    ours, plain = store._client(), boto3.session.Session().client("s3")
    for client in (ours, plain):
        client.meta.events.register("before-send.s3", answer)
        client.put_object(Bucket="bucket", Key="key", Body=b"content")
    assert ["Expect" in headers for headers in sent] == [False, True]
