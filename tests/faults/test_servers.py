"""The S3 server and the MLflow server spoil their answers, stop and come back: real ones, behind a proxy."""

import shutil
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow.tracking import MlflowClient
from own_domain import NAME, own_domain, tree
from proxy import DELAY_S, FAULTS, Fault, Proxy, before
from services import KEYS, free_port, object_store, tracking_server, wait_for
from steps import STEPS, Undisturbed, run_here, written

from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.components.runtime import tracking
from crossearth.data.common.errors import InputError
from crossearth.data.tiles import store as module
from crossearth.data.tiles.store import StoreConfig, pull, push

BUCKET = "tiles"
TRIES = 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with (
        object_store(tmp_path_factory.mktemp("s3"), BUCKET) as address,
        before(urlsplit(address).port or 0) as proxy,
    ):
        yield proxy


def speak(environment: pytest.MonkeyPatch, proxy: Proxy) -> None:
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": proxy.address}.items():
        environment.setenv(name, value)


@pytest.fixture
def store(
    server: Proxy, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[StoreConfig]:
    speak(monkeypatch, server)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    monkeypatch.setattr(module, "TIMEOUT_S", 2.0)
    yield StoreConfig(f"s3://{BUCKET}/{request.node.name}")
    server.share = 0


@pytest.fixture
def town(tmp_path: Path) -> Path:
    known = own_domain(tmp_path)
    (path,) = ingest([NAME], known, tmp_path / "archives", tmp_path / "domains", IngestConfig(workers=1))
    return path


@pytest.mark.parametrize("fault", FAULTS)
def test_answers_of_the_store_are_spoilt(
    fault: Fault, server: Proxy, store: StoreConfig, town: Path, tmp_path: Path
) -> None:
    """Each try ends well or says why not; enough tries end well."""
    elsewhere = tmp_path / "elsewhere"
    server.faults, server.share, server.spoilt = (fault,), 0.1, 0
    for step in (lambda: push(town, store), lambda: pull(NAME, store, elsewhere)):
        for _ in range(TRIES):
            try:
                step()
                break
            except InputError as error:
                assert "next: " in str(error)
                assert not (elsewhere / NAME).exists()
        else:
            pytest.fail("never well")
    assert server.spoilt
    assert tree(elsewhere / NAME) == tree(town)
    assert [path.name for path in elsewhere.iterdir()] == [NAME]


def test_a_store_that_stops_and_comes_back(
    monkeypatch: pytest.MonkeyPatch, town: Path, tmp_path: Path
) -> None:
    folder, elsewhere = tmp_path / "s3", tmp_path / "elsewhere"
    folder.mkdir()
    steps = (lambda store: push(town, store), lambda store: pull(NAME, store, elsewhere))
    with before(0) as proxy, ThreadPoolExecutor(1) as another:
        speak(monkeypatch, proxy)
        for name, value in (("PARALLEL", 1), ("ATTEMPTS", 2), ("TIMEOUT_S", 2.0)):
            monkeypatch.setattr(module, name, value)
        patient = StoreConfig(f"s3://{BUCKET}")
        for step in steps:
            with object_store(folder, BUCKET) as address:
                proxy.port, proxy.faults, proxy.share = urlsplit(address).port or 0, ("delay",), 1
                stopped = another.submit(step, patient)
                time.sleep(6 * DELAY_S)
            with pytest.raises(InputError, match="next: "):
                stopped.result(60)
            assert not (elsewhere / NAME).exists()
            with object_store(folder, BUCKET) as address:
                proxy.port, proxy.share = urlsplit(address).port or 0, 0
                # it takes connections before it has found what it stored
                wait_for(partial(step, patient), (folder / "log").read_text)
    assert tree(elsewhere / NAME) == tree(town)


def test_training_and_evaluation_outlive_their_tracking_server(
    undisturbed: dict[str, Undisturbed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It spoils a third of its answers during the training, and is away during the evaluation."""
    port = free_port()
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 5.0)

    def run(name: str) -> Path:
        folder = Path(shutil.copytree(undisturbed[name].before, tmp_path / name, dirs_exist_ok=True))
        began = time.monotonic()
        with warnings.catch_warnings(action="ignore"):
            code, said = run_here(STEPS[name][0], folder, monkeypatch, capsys)
        assert code == 0, said
        assert time.monotonic() - began < undisturbed[name].seconds + 60
        assert written(folder, name) == undisturbed[name].files
        return folder

    with before(port) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
        with tracking_server(tmp_path, port):
            proxy.share = 0.3
            run("train")
            assert proxy.spoilt
            proxy.share = 0
        run("evaluate")
        with tracking_server(tmp_path, port):  # what it missed comes with the same command
            run("evaluate")
            client = MlflowClient(proxy.address)
            found = client.search_runs([client.get_experiment_by_name("crossearth").experiment_id])
            assert any(metric.startswith(("miou/", "iou/")) for each in found for metric in each.data.metrics)
