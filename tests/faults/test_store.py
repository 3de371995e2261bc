"""A push and a pull killed, interrupted and started twice: store and folder are whole or not there."""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from disks import fill, remount
from forks import Fork
from own_domain import NAME, own_domain, tree
from proxy import Proxy, before
from services import KEYS, object_store
from steps import run_here
from training_folder import environment

from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.data.common.errors import InputError
from crossearth.data.tiles.store import StoreConfig, pull, push

KILLS = int(os.environ.get("CROSSEARTH_KILLS", "3"))
EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143}
BUCKET = "tiles"
DOMAIN = Path("artifacts/domains") / NAME / NAME


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A real server whose answers are late: there is a middle to be killed in."""
    with (
        object_store(tmp_path_factory.mktemp("s3"), BUCKET) as server,
        before(urlsplit(server).port or 0) as proxy,
    ):
        proxy.faults, proxy.share = ("delay",), 1
        yield proxy


@pytest.fixture(scope="module")
def address(late: Proxy) -> str:
    return late.address


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a domain."""
    folder = tmp_path_factory.mktemp("town")
    config = IngestConfig(workers=1)
    ingest([NAME], own_domain(folder), folder / "archives", folder / DOMAIN.parent.parent, config)
    return folder


@pytest.fixture
def store(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StoreConfig:
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    return StoreConfig(f"s3://{BUCKET}/{tmp_path.name}")


@pytest.fixture(params=["push", "pull"])
def command(request: pytest.FixtureRequest, store: StoreConfig) -> list[str]:
    return ["crossearth", request.param, NAME, "--store", store.url, "--catalog", "catalog.yaml"]


@pytest.fixture
def folder(command: list[str], store: StoreConfig, town: Path, tmp_path: Path) -> Path:
    """Ready for the command: what is pulled was pushed, and is not here."""
    path = Path(shutil.copytree(town, tmp_path / "user"))
    if command[1] == "pull":
        push(path / DOMAIN, store)
        shutil.rmtree(path / DOMAIN)
    return path


def start(command: list[str], folder: Path) -> Fork:
    return Fork(command, folder, {**environment(), "CROSSEARTH_DATA": str(folder)})


def finish(command: list[str], folder: Path) -> float:
    """Seconds that the command takes when nobody disturbs it."""
    began = time.monotonic()
    process = start(command, folder)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    return time.monotonic() - began


def whole(command: list[str], folder: Path, store: StoreConfig, town: Path, done: bool) -> None:
    """The folder that was pulled, or what another pull finds in the store, is all or nothing."""
    if command[1] == "pull":
        found = folder / DOMAIN
    else:
        found = folder / "elsewhere" / NAME
        with suppress(InputError):
            pull(NAME, store, found.parent)
    assert tree(found) == tree(town / DOMAIN) or not (done or found.exists())
    if done:
        assert [path.name for path in found.parent.iterdir()] == [NAME]
    shutil.rmtree(folder / "elsewhere", ignore_errors=True)


@pytest.fixture(scope="module")
def seconds(address: str, town: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """That a push takes which nobody disturbs."""
    path = tmp_path_factory.mktemp("undisturbed") / "user"
    shutil.copytree(town, path)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": address}.items():
            patch.setenv(name, value)
        url = f"s3://{BUCKET}/undisturbed"
        return finish(["crossearth", "push", NAME, "--store", url, "--catalog", "catalog.yaml"], path)


def test_killed_again_and_again(
    command: list[str], folder: Path, store: StoreConfig, town: Path, seconds: float
) -> None:
    moments = random.Random(command[1])
    for _ in range(KILLS):
        process = start(command, folder)
        time.sleep(seconds * moments.random())
        with suppress(ProcessLookupError):  # it was done already
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        whole(command, folder, store, town, done=False)
    finish(command, folder)
    whole(command, folder, store, town, done=True)


@pytest.mark.parametrize("number", EXIT, ids=lambda number: number.name)
def test_a_signal_is_obeyed_and_the_way_on_is_said(
    command: list[str],
    number: signal.Signals,
    folder: Path,
    store: StoreConfig,
    town: Path,
    late: Proxy,
) -> None:
    answers = late.spoilt
    process = start(command, folder)
    while late.spoilt < answers + 5:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, number)
    began = time.monotonic()
    said = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < 5
    assert process.returncode == EXIT[number], said
    assert f"go on with: {' '.join(command)}" in said
    assert "Traceback" not in said
    finish(command, folder)
    whole(command, folder, store, town, done=True)


def test_who_stops_does_not_wait_for_a_store_that_hangs(
    command: list[str], folder: Path, store: StoreConfig, town: Path, late: Proxy
) -> None:
    answers = late.spoilt
    process = start(command, folder)
    while late.spoilt < answers + 5:
        assert process.poll() is None
        time.sleep(0.02)
    with pytest.MonkeyPatch.context() as hanging:
        hanging.setattr(late, "delay_s", 60.0)
        time.sleep(2)  # until every request waits
        os.killpg(process.pid, signal.SIGINT)
        began = time.monotonic()
        said = process.communicate(timeout=120)[1]
    assert time.monotonic() - began < 5
    assert process.returncode == 130, said
    finish(command, folder)
    whole(command, folder, store, town, done=True)


def test_two_at_once(command: list[str], folder: Path, store: StoreConfig, town: Path) -> None:
    processes = [start(command, folder) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    whole(command, folder, store, town, done=True)


def test_a_pull_onto_a_disk_that_is_full_or_read_only_goes_on_when_there_is_room(
    store: StoreConfig,
    town: Path,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    push(town / DOMAIN, store)
    folder = disk / "user"
    folder.mkdir()
    shutil.copy(town / "catalog.yaml", folder)
    command = f"pull {NAME} --store {store.url} --catalog catalog.yaml"
    remount(disk, "ro")
    code, said = run_here(command, folder, monkeypatch, capsys)
    assert code == 2 and "Read-only file system" in said and "Traceback" not in said, said
    remount(disk, "rw")
    fill(disk, sum(map(len, tree(town / DOMAIN).values())) // 2)
    code, said = run_here(command, folder, monkeypatch, capsys)
    assert code == 2 and "No space left" in said and "Traceback" not in said, said
    assert not (folder / DOMAIN).exists()
    remount(disk, "size=1g")
    assert run_here(command, folder, monkeypatch, capsys)[0] == 0
    assert tree(folder / DOMAIN) == tree(town / DOMAIN)


def test_a_push_of_a_folder_that_may_not_be_written_to(
    store: StoreConfig,
    town: Path,
    disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It writes nothing here: a disk that is full or read only does not keep anybody from saving his data."""
    folder = Path(shutil.copytree(town, disk / "user"))
    fill(disk, 0)
    remount(disk, "ro")
    command = f"push {NAME} --store {store.url} --catalog catalog.yaml"
    code, said = run_here(command, folder, monkeypatch, capsys)
    assert code == 0, said
    pull(NAME, store, tmp_path / "pulled")
    assert tree(tmp_path / "pulled" / NAME) == tree(town / DOMAIN)
