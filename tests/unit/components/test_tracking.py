"""Runs in MLflow: found again by their key, complete, and never in the way of a training."""

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import alembic.command
import mlflow
import numpy as np
import pytest
from alembic.config import Config
from http_server import Handler, Server
from mlflow.tracking import MlflowClient
from services import free_port
from sqlalchemy import text

from crossearth.components.register.registry import Registry
from crossearth.components.runtime import doctor, tracking, tracking_store
from crossearth.components.runtime.tracking import start_run, tracking_uri
from crossearth.components.runtime.tracking_internals import create_tables
from crossearth.components.runtime.tracking_server import own_version
from crossearth.components.runtime.tracking_store import LOST_ARTIFACTS
from crossearth.data.common.errors import InputError


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "artifacts" / "mlflow"


def only_run(uri: str, key: str):
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("crossearth")
    runs = client.search_runs([experiment.experiment_id], filter_string=f"tags.input_hash = '{key}'")
    assert len(runs) == 1
    return client, runs[0]


def test_run_holds_what_was_logged(store: Path) -> None:
    image = np.full((8, 8, 3), 7, dtype=np.uint8)
    note = store.parent.parent / "note.json"
    note.write_text("{}")
    with start_run("potsdam-rgb", key="abc", tags={"seed": "3"}, params={"lr": 1e-4}) as run:
        for step in range(2500):  # more than one request's worth
            run.log_metrics({"loss": step / 2, "broken": float("nan")}, step)
        run.log_image(image, "panels/000001.png")
        run.log_artifact(note, "model")
        run.set_tags({"selection": "last"})
    client, found = only_run(tracking_uri(), "abc")
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, step / 2) for step in range(2500)]
    assert "broken" not in found.data.metrics
    assert found.data.params == {"lr": "0.0001"}
    assert {"seed": "3", "selection": "last", "input_hash": "abc"}.items() <= found.data.tags.items()
    assert found.info.status == "FINISHED"
    assert (store / "mlflow.db").is_file()
    artifacts = store / "artifacts" / found.info.run_id / "artifacts"
    assert (artifacts / "panels" / "000001.png").is_file()
    assert (artifacts / "model" / "note.json").read_text() == "{}"


def test_a_restart_goes_on_in_the_same_run(store: Path) -> None:
    with pytest.raises(SystemExit), start_run("r", key="k", params={"workers": 0}) as run:
        run.log_metrics({"loss": 1.0}, 1)
        raise SystemExit(143)
    _, killed = only_run(tracking_uri(), "k")
    assert killed.info.status == "KILLED"
    with start_run("r", key="k", params={"workers": 4}) as run:
        run.log_metrics({"loss": 0.5}, 2)
    client, found = only_run(tracking_uri(), "k")
    assert found.info.run_id == killed.info.run_id
    assert found.info.status == "FINISHED"
    assert [point.value for point in client.get_metric_history(found.info.run_id, "loss")] == [1.0, 0.5]


def test_runs_lie_below_the_pipelines_own_which_stays_as_it_is(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubeflow's MLflow plugin opens a run of its own and names it in each pod."""
    client = tracking.connect(tracking_uri())
    experiment = client.create_experiment("plugin's", artifact_location=(store / "artifacts").as_uri())
    parent = client.create_run(experiment, run_name="pipeline").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", parent)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    before = client.get_run(parent).to_dictionary()
    for _ in range(2):  # a run that is found lies there, too
        with start_run("r", key="k") as run:
            run.set_tags({"seed": "1"})
    (ours,) = client.search_runs([experiment], "tags.input_hash = 'k'")
    assert ours.data.tags["mlflow.parentRunId"] == parent
    tracking.PIPELINE_RUN.parent.mkdir(parents=True)
    tracking.PIPELINE_RUN.write_text("p")
    with start_run("killed", key="l") as run:
        run.end_as("RUNNING")
    assert tracking.end_runs("p", "KILLED", "stopped") == 1
    assert client.get_run(parent).to_dictionary() == before
    assert client.get_experiment_by_name("crossearth") is None
    # an address of one's own may lead to another server than the plugin's
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "12345")
    with start_run("r", key="m"):
        pass
    assert only_run(tracking_uri(), "m")[1].info.status == "FINISHED"


def test_an_error_is_passed_on_and_marks_the_run(store: Path) -> None:
    with pytest.raises(ValueError, match="mine"), start_run("r", key="k"):
        raise ValueError("mine")
    assert only_run(tracking_uri(), "k")[1].info.status == "FAILED"


def test_a_refused_record_does_not_hold_up_the_others(store: Path) -> None:
    with start_run("r", key="k") as run:
        run.log_artifact(Path("is-not-there"))
        run.set_tags({"after": "yes"})
    assert only_run(tracking_uri(), "k")[1].data.tags["after"] == "yes"


def test_tables_of_which_a_kill_left_some_are_made_anew(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_halfway(config: Config, revision: str) -> None:
        config.attributes["connection"].execute(text("CREATE TABLE mcp_servers (id INTEGER)"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tracking_store, "create_tables", create_tables)  # no copy of finished ones
        patch.setattr(alembic.command, "upgrade", stop_halfway)
        tracking.connect(tracking_uri())
    with start_run("r", key="k") as run:
        run.set_tags({"after": "yes"})
    assert only_run(tracking_uri(), "k")[1].data.tags["after"] == "yes"


def test_a_server_has_longer_for_a_model_than_for_a_number(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience: list[str] = []

    def note(*_: object) -> None:
        patience.append(os.environ[tracking.TIMEOUT])

    monkeypatch.setattr(MlflowClient, "set_tag", note)
    monkeypatch.setattr(MlflowClient, "log_artifact", note)
    for given in (None, "7"):
        monkeypatch.delenv(tracking.TIMEOUT, raising=False)
        if given:
            monkeypatch.setenv(tracking.TIMEOUT, given)
        with start_run("r", key="k") as run:
            run.log_artifact(Path("model.safetensors"))
            run.set_tags({"after": "yes"})
    assert patience == ["120", "10", "7", "7"]


def test_no_server_is_a_warning_and_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    connect, logged, asked = tracking.connect, threading.Event(), []

    def late(uri: str) -> MlflowClient:
        asked.append(logged.wait(30))
        return connect(uri)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(tracking, "connect", late)
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 1.0)
    monkeypatch.setattr(tracking, "UPLOAD_SECONDS", 60.0)
    began = time.monotonic()
    with pytest.warns(RuntimeWarning, match="did not take 2 records"), start_run("r", key="k") as run:
        run.log_metrics({"loss": 1.0}, 1)
        logged.set()
    assert asked[0], "the record waited for the server"
    assert time.monotonic() - began < tracking.UPLOAD_SECONDS


@contextmanager
def answering(status: int, body: bytes, version: bytes) -> Iterator[str]:
    """A server that answers every question alike, but for its version; yields its address."""

    class Alike(Handler):
        def do_GET(self) -> None:
            if self.path == "/version" and status != 401:
                self.answer(200 if version else 404, version)
            else:
                self.answer(status, body)

        do_POST = do_GET  # noqa: N815

    with Server(Alike) as server:
        yield server.address


OURS = own_version()
DENIED = b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}'


@pytest.mark.parametrize(
    ("status", "body", "version", "said", "advised"),
    [
        (
            404,
            b"<html>",
            b"1.30.1",
            f"the server is MLflow 1.30.1, here is {OURS}",
            f"a server of MLflow {OURS}",
        ),
        (
            404,
            b'{"detail": "Not Found"}',
            b"2.9.2",
            "the server is MLflow 2.9.2",
            f"a server of MLflow {OURS}",
        ),
        (401, b"no", b"", "the login is refused", "MLFLOW_TRACKING_USERNAME"),
        (403, DENIED, OURS.encode(), "the login is refused: PERMISSION_DENIED", "MLFLOW_TRACKING_TOKEN"),
        (200, b"<html>log in", b"<html>log in", "no server of MLflow answers there", "MLFLOW_TRACKING_URI"),
        (404, b"nginx", b"", "no server of MLflow answers there", "MLFLOW_TRACKING_URI"),
    ],
)
def test_what_a_server_refuses_for_good_is_said_and_not_waited_for(
    status: int, body: bytes, version: bytes, said: str, advised: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 60.0)
    with answering(status, body, version) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        began = time.monotonic()
        with pytest.warns(RuntimeWarning, match=f"{said}.*{advised}"), start_run("r", key="k") as run:
            run.log_metrics({"loss": 1.0}, 1)
        with pytest.raises(InputError, match=f"(?s)cannot be used: {said}.*{advised}"):
            Registry()
        finding = doctor._tracking(address)
    assert finding.verdict == "missing" and said in finding.found and advised in finding.advice
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("version", "verdict"), [(OURS, "fine"), (f"{OURS.split('.')[0]}.0.1", "note"), ("2.22.0", "missing")]
)
def test_the_doctor_says_both_versions(version: str, verdict: str) -> None:
    with answering(200, b"{}", version.encode()) as address:
        finding = doctor._tracking(address)
    assert finding.verdict == verdict
    assert f"MLflow {version}, here is {OURS}" in finding.found


def test_a_store_of_another_version_is_not_waited_for(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 60.0)
    with start_run("r", key="k"):
        pass
    other = store / "other.db"
    shutil.copyfile(store / "mlflow.db", other)
    with closing(sqlite3.connect(other)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'abcdef012345'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    began = time.monotonic()
    with (
        pytest.warns(RuntimeWarning, match="another version than MLflow .* made it"),
        start_run("r", key="k"),
    ):
        pass
    assert time.monotonic() - began < 30
    with pytest.raises(
        InputError, match=f"(?s)another version than MLflow {OURS} made it.*mlflow db upgrade"
    ):
        Registry()


def test_a_folder_that_was_moved_has_all_its_files(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    home = store.parent.parent / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    with start_run("r", key="k") as run:
        run.log_image(image, "panels/1.png")
    moved = home.rename(home.with_name("moved"))
    monkeypatch.chdir(moved)
    with start_run("r", key="k") as run:
        run.log_image(image, "panels/2.png")
    client, found = only_run(tracking_uri(), "k")
    assert [item.path for item in client.list_artifacts(found.info.run_id, "panels")] == [
        "panels/1.png",
        "panels/2.png",
    ]
    assert not home.exists()
    assert doctor._tracking(tracking_uri()).verdict == "fine"


def test_a_store_without_its_artifacts_is_said_and_nothing_is_made_elsewhere(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that was named by a whole address keeps whole addresses."""
    home = store.parent.parent / "home"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
    with start_run("r", key="k"):
        pass
    moved = home.rename(home.with_name("moved"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved}/mlflow.db")
    with start_run("r", key="k") as run:
        run.log_image(np.zeros((8, 8, 3), np.uint8), "panels/2.png")
        run.set_tags({"after": "yes"})
    assert not home.exists()
    assert only_run(tracking_uri(), "k")[1].data.tags["after"] == "yes"
    assert f"looks for them in {home / 'artifacts'}, which is not here" in caplog.text
    finding = doctor._tracking(tracking_uri())
    assert (finding.verdict, finding.advice) == ("missing", LOST_ARTIFACTS)
    assert str(home / "artifacts") in finding.found


def test_what_is_added_to_a_run_leaves_its_end(store: Path) -> None:
    with start_run("r", key="k"):
        pass
    before = only_run(tracking_uri(), "k")[1].info
    with start_run("r", key="k", adds=True) as run:
        run.log_metrics({"all/unseen-mean": 0.5})
    found = only_run(tracking_uri(), "k")[1]
    assert (found.info.status, found.info.end_time) == (before.status, before.end_time)
    assert found.data.metrics["all/unseen-mean"] == 0.5
    with start_run("r", key="k"):  # done again, it ends again
        pass
    assert only_run(tracking_uri(), "k")[1].info.end_time > before.end_time


def test_inputs_and_the_load_of_the_machine_are_noted(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points, looked = tracking._Load.points, threading.Event()

    def look(load: tracking._Load) -> list[tuple[str, float, int, int]]:
        found = points(load)
        if found:
            looked.set()
        return found

    monkeypatch.setattr(tracking, "LOAD_SECONDS", 0.1)
    monkeypatch.setattr(tracking._Load, "points", look)
    with start_run("r", key="k") as run:
        run.log_dataset("town train", "a" * 64, Path("artifacts/domains/town"), "training", 3)
        assert looked.wait(60)
    found = only_run(tracking_uri(), "k")[1]
    (noted,) = found.inputs.dataset_inputs
    assert (noted.dataset.name, noted.dataset.digest) == ("town train", "a" * 36)
    assert mlflow.data.get_source(noted.dataset).uri == "artifacts/domains/town"
    assert [(tag.key, tag.value) for tag in noted.tags] == [("mlflow.data.context", "training")]
    assert found.data.metrics["system/cpu_utilization_percentage"] >= 0


def test_the_way_to_the_runs_is_a_page_that_shows_them(store: Path) -> None:
    assert tracking.runs_told()[-1].endswith("/#/experiments?workflowType=machine_learning")
    with start_run("v", key="v", experiment="crossearth-data"):
        pass
    with start_run("r", key="k"):
        pass
    experiment = MlflowClient(tracking_uri()).get_experiment_by_name("crossearth").experiment_id
    told = tracking.runs_told()
    assert told[0].endswith("mlflow ui --backend-store-uri sqlite:///artifacts/mlflow/mlflow.db")
    assert f"/#/experiments/{experiment}/runs?viewStateShareKey=crossearth-recipes&" in told[1]
