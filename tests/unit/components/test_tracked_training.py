"""A training in MLflow: one run whatever happens to it, with all of it at the end."""

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from earth_styles import write_styles
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from PIL import Image, ImageColor
from training_folder import NUMBERS, RECIPE, write_folder

from crossearth.components.runtime import tracking
from crossearth.components.runtime.tracking import start_run, tracking_uri
from crossearth.components.train import loop as training_loop
from crossearth.components.train import step
from crossearth.components.train.loop import Training
from crossearth.components.train.panel import training_panel
from crossearth.components.train.setup import TrainConfig
from crossearth.components.train.step import train
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.config import load_config
from crossearth.model.weights.checkpoint import read_meta

Train = Callable[[], Path]
LOSSES = {"loss", "loss_class", "loss_mask", "loss_dice", "loss_reconstruction", "loss_consistency"}
PACE = {"data_wait_share", "images_per_second", "memory_gib", "gradient_norm", "lr"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains in a folder of this test, where the records lie too."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path)
    styles, catalog = write_styles(tmp_path / "earth.safetensors"), load_catalog()
    numbers = {
        "ablation": "full",
        "iterations": 6,
        "checkpoint_every": 2,
        "panels_every": 3,
        "style": {"block_px": 16},
    }
    config = load_config(TrainConfig, NUMBERS | numbers, "test")
    return lambda: train(
        catalog.recipe(RECIPE), catalog, Path("artifacts/domains"), Path("model"), config, styles
    )


def only_run() -> tuple[MlflowClient, Run]:
    client = MlflowClient(tracking_uri())
    (found,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return client, found


def assert_complete(folder: Path) -> None:
    """One run, finished, found by the model's key, with the model and its curves."""
    client, found = only_run()
    assert found.info.status == "FINISHED"
    assert found.data.tags["input_hash"] == read_meta(folder)["input_hash"]
    assert found.data.tags["step"] == "train"
    assert found.data.tags["threads"] == str(torch.get_num_threads())
    assert found.data.tags["torch"] == torch.__version__
    assert LOSSES | {"lr", "gradient_norm"} <= found.data.metrics.keys()
    assert {point.step for point in client.get_metric_history(found.info.run_id, "loss")} == {*range(1, 7)}
    sent = {item.path for item in client.list_artifacts(found.info.run_id, "model")}
    assert sent == {
        f"model/{name}" for name in ("curves.csv", "model.json", "model.safetensors", "reference.json")
    }


def stop_in(iteration: int, monkeypatch: pytest.MonkeyPatch) -> None:
    iterate = Training._iterate

    def stopped(self: Training, *given: Any) -> int:
        if self.iteration == iteration:
            monkeypatch.setattr(Training, "_iterate", iterate)
            raise SystemExit(143)
        return iterate(self, *given)

    monkeypatch.setattr(Training, "_iterate", stopped)


def test_a_training_that_was_stopped_is_one_run(run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    for iteration in (3, 5):
        stop_in(iteration, monkeypatch)
        with pytest.raises(SystemExit):
            run()
        assert only_run()[1].info.status == "KILLED"
    assert_complete(run())
    client, found = only_run()
    assert found.data.metrics.keys() >= PACE
    panels = [item.path for item in client.list_artifacts(found.info.run_id, "panels")]
    assert panels == ["panels/000003.png", "panels/000006.png"]
    picture = Path(client.download_artifacts(found.info.run_id, panels[-1])).read_bytes()
    with Image.open(io.BytesIO(picture)) as panel:
        assert panel.size[0] == 6 * NUMBERS["crop_px"]
        colours = {colour for _, colour in panel.convert("RGB").getcolors(panel.width * panel.height)}
    palette = load_catalog().class_sets["loveda"].palette
    assert colours >= {ImageColor.getrgb(colour) for colour in palette}, "all classes are in the legend"
    assert "iteration" not in found.data.metrics
    (noted,) = found.inputs.dataset_inputs
    assert noted.dataset.name == f"{RECIPE} train"


def test_a_server_that_missed_the_end_is_told_by_the_same_command(
    run: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        away.setattr(tracking, "FLUSH_SECONDS", 0.5)
        with pytest.warns(RuntimeWarning, match="did not take"):
            folder = run()
        assert run() == folder  # still away
        assert "model: not tracked, the same command tries again: " in caplog.text
    with start_run(RECIPE, key=read_meta(folder)["input_hash"]):  # an evaluation finishes the run too
        pass
    run()
    assert_complete(folder)
    monkeypatch.setattr(step, "start_run", lambda *_, **__: pytest.fail("it has all"))
    caplog.clear()
    run()
    assert not caplog.records


def test_the_pace_is_that_of_the_steps_alone(run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # a tick whenever it is looked at

    def panel(*given: Any) -> Image.Image:
        for _ in range(100):
            next(clock)
        return training_panel(*given)

    monkeypatch.setattr(
        training_loop, "time", SimpleNamespace(perf_counter=lambda: next(clock), monotonic=lambda: 0.0)
    )
    monkeypatch.setattr(training_loop, "training_panel", panel)
    run()
    client, found = only_run()
    paces = {point.value for point in client.get_metric_history(found.info.run_id, "images_per_second")}
    assert paces == {NUMBERS["batch_size"] / 2}
