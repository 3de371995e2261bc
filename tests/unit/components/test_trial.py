"""A training that is a trial of a tuning: its values, its folder, its one metric, its TrainJob's status."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from http_server import Handler, Server
from training_folder import NUMBERS, RECIPE, write_folder

from crossearth.components.runtime import job_status
from crossearth.components.runtime.job_status import JobStatus
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.trial import PREFIX, trial_values, variable, written
from crossearth.components.train import step
from crossearth.components.train.step import place
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.errors import InputError
from crossearth.model.weights.checkpoint import read_meta


@pytest.mark.parametrize(
    "value", [0.001, 1e-05, 3, True, None, "rein", "+style", "1", "no", "null", "s3://a/b: c", [0.5, 2.0], {}]
)
def test_a_value_comes_back_as_it_was(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable("style.block_px"), written(value))
    assert trial_values() == {"style.block_px": value}
    assert type(trial_values()["style.block_px"]) is type(value)


def test_a_name_is_a_variable_that_shells_and_kubernetes_take() -> None:
    assert variable("style.alpha") == "KUBEFLOW_TRAINER_OPT_STYLE__ALPHA"
    with pytest.raises(InputError, match="small letters"):
        variable("sizes.Embed")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LRR", "0.1", "'lr'?"),
        ("LR", "high", "lr"),
        ("STYLE__ALFA", "0.1", "alpha"),
        ("ITERATIONS", "2.5", "iterations"),
        ("SEED", "1", "one seed for all steps"),
        ("LR", "{", "YAML"),
        ("LR", "0.1", "held_out_share is 0"),
    ],
)
def test_a_wrong_trial_is_refused(
    name: str, value: str, message: str, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(InputError) as error:
        place(Params("own", {"own": {"train": NUMBERS}}), catalog.recipe(RECIPE))
    assert message in str(error.value) and PREFIX in str(error.value)


class Taker(Handler):
    """Kubeflow Trainer's, as far as it takes the status of a job."""

    def do_POST(self) -> None:
        body = self.sent()
        self.server.got.append((self.headers["Authorization"], body))  # type: ignore[attr-defined]
        self.answer(self.server.code, body)  # type: ignore[attr-defined]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    sdk = pytest.importorskip(
        "kubeflow.trainer.backends.kubernetes.utils", reason="pip install -e '.[cluster]'"
    )
    found = Server(Taker)
    found.got, found.code = [], 200  # type: ignore[attr-defined]
    (tmp_path / "token").write_text("secret-of-the-job")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", f"{found.address}/status")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "token"))
    monkeypatch.setattr(job_status, "EVERY_S", 0.02)
    for name, value in {"_MIN_UPDATE_INTERVAL_SECONDS": 0.0, "_cached_token": None}.items():
        monkeypatch.setattr(sdk, name, value)
    with found:
        yield found


def test_a_trial_trains_in_a_folder_of_its_own_and_reports_one_metric(
    server: Any, typed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubeflow_trainer_api.models import TrainerV1alpha1UpdateTrainJobStatusRequest as Request

    write_folder(tmp_path, ablation="rein", iterations=2)
    monkeypatch.setattr(step, "_tracking", lambda _: nullcontext())
    monkeypatch.setattr(step, "_send_again", lambda *_: None)
    monkeypatch.setenv(f"{PREFIX}HELD_OUT_SHARE", "0.3")
    monkeypatch.setenv(f"{PREFIX}LR", "0.002")
    said = typed(f"crossearth train {RECIPE}")
    (model,) = (tmp_path / "artifacts/trials").glob(f"*/{RECIPE}")
    meta = read_meta(model)
    assert (meta["train"]["lr"], meta["train"]["held_out_share"]) == (0.002, 0.3)
    assert not (tmp_path / "artifacts/models").exists()
    # Katib's collector takes "name=number" from the lines
    assert said.splitlines()[-1] == f"held_out_score={meta['held_out_score']}"
    assert said.count("held_out_score") == 1 and "evaluate" not in said

    token, last = server.got[-1]
    assert token == "Bearer secret-of-the-job"
    status = last["trainerStatus"]
    assert (status["progressPercentage"], status["estimatedRemainingSeconds"]) == (100, 0)
    metrics = {each["name"]: each["value"] for each in status["metrics"]}
    assert float(metrics["held_out_score"]) == meta["held_out_score"] and "loss" in metrics
    for _, body in server.got:
        assert Request.from_dict(body).trainer_status.last_updated_time

    # a pod that is started again has nothing to train, and reports the same
    server.got.clear()
    assert typed(f"crossearth train {RECIPE}").splitlines()[-1] == said.splitlines()[-1]
    assert server.got[-1][1]["trainerStatus"]["progressPercentage"] == 100


def test_no_server_holds_a_training_up(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.code = 503
    began = time.monotonic()
    with JobStatus() as status:
        for iteration in range(1000):
            status.say(iteration // 10, None, {"loss": float(iteration)})
        time.sleep(0.4)
    assert job_status.LAST_TRIES <= len(server.got) <= 10 and time.monotonic() - began < 10
    server.got.clear()
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "http://127.0.0.1:9/status")
    with JobStatus() as status:
        status.say(1, 2, {})
    assert not server.got


def test_what_fails_or_is_another_process_says_no_end(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_status, "EVERY_S", 5.0)
    with pytest.raises(InputError), JobStatus() as status:
        status.say(50, 1, {"held_out_score": 0.5})
        raise InputError("loss is not finite")
    with JobStatus(wanted=False) as status:
        status.say(100, 0, {"held_out_score": 0.5})
    time.sleep(0.1)
    assert not server.got


def test_nothing_is_sent_where_no_job_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(job_status.ADDRESS, raising=False)
    with JobStatus() as status:
        status.say(100, 0, {})
    assert status._thread is None
