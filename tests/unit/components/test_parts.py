"""Parts of a map: it goes on where it was interrupted, and of another map none is taken."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_scene import files, random_model, write

from crossearth.components.predict import compute, sliding, step
from crossearth.components.predict.compute import missing
from crossearth.components.predict.config import PredictConfig
from crossearth.components.predict.outputs import Kept, Outputs
from crossearth.components.predict.parts import Parts
from crossearth.components.predict.sliding import plan
from crossearth.components.predict.step import predict
from crossearth.components.predict.strips import open_scene
from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.weights.checkpoint import save

FLOAT32 = PredictConfig(precision="float32", device="cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("model"))


class Stopping:
    """Lets some parts be saved, then stops as Ctrl-C does."""

    def __init__(self, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = parts
        self.computed: list[tuple[int, int]] = []
        save = Parts.save

        def counted(store: Parts, strip: int, panel: int, kept: Any) -> None:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            self.computed.append((strip, panel))
            save(store, strip, panel, kept)

        monkeypatch.setattr(Parts, "save", counted)


def test_a_map_goes_on_where_it_was_interrupted(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene, out = write(tmp_path / "scene.tif", 300, 90), tmp_path / "out"
    config = PredictConfig(precision="float32", device="cpu", probabilities=True, batch_size=1)
    predict([scene], model, tmp_path / "whole" / "map.tif", config)
    stopping = Stopping(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        predict([scene], model, out / "map.tif", config)
    assert not files(out), "no file of the map is there before it is whole"
    # a power loss left a part without its end
    (broken,) = (out / ".map.tif.parts").glob("1-0.zip")
    broken.write_bytes(broken.read_bytes()[:-30])
    stopping.left, stopping.computed = 99, []
    with caplog.at_level(logging.WARNING):
        predict([scene], model, out / "map.tif", config)
    assert "goes on with 2 parts" in caplog.text
    assert (0, 0) not in stopping.computed and (1, 0) in stopping.computed
    assert (2, 0) not in stopping.computed and (3, 0) in stopping.computed
    assert files(out) == files(tmp_path / "whole")
    assert not list(out.glob(".*")), "nothing of the parts stays"


def test_rows_are_written_few_at_a_time(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = write(tmp_path / "scene.tif", 150, 90)
    config = PredictConfig(precision="float32", device="cpu", probabilities=True, batch_size=1)
    predict([scene], model, tmp_path / "whole" / "map.tif", config)
    heights, written = [], Outputs.write

    def counted(outputs: Outputs, top: int, kept: Kept) -> None:
        heights.append(kept["ids"].shape[1])
        written(outputs, top, kept)

    monkeypatch.setattr(Outputs, "write", counted)
    monkeypatch.setattr(step, "BUNCH_PX", 7 * 90)
    monkeypatch.setattr(sliding, "KEPT_BYTES", 50 * 64 * 3)  # several panels
    predict([scene], model, tmp_path / "few" / "map.tif", config)
    assert max(heights) == 7 and sum(heights) == 150
    assert files(tmp_path / "few") == files(tmp_path / "whole")


@pytest.mark.parametrize("other", ["scene", "model", "options"])
def test_parts_of_another_map_are_not_taken(
    other: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, config = write(tmp_path / "scene.tif", 200, 90), PredictConfig(precision="float32", batch_size=1)
    stopping = Stopping(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        predict([scene], model, tmp_path / "map.tif", config)
    if other == "scene":
        os.utime(write(scene, 200, 90), (1, 1))
    elif other == "options":
        config = PredictConfig(precision="float32", batch_size=1, probabilities=True)
    else:
        meta = json.loads((model / "model.json").read_text()) if (model / "model.json").exists() else {}
        assert meta, "the model's description"
        torch.manual_seed(6)
        about = {key: meta[key] for key in ("classes", "palette", "provenance")}
        model = save(crossearth_tiny(3, 64).eval(), tmp_path / "other", about)
    stopping.left, stopping.computed = 99, []
    predict([scene], model, tmp_path / "map.tif", config)
    assert stopping.computed[0] == (0, 0)


def test_a_full_disk_keeps_what_is_finished(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write(tmp_path / "scene.tif", 200, 90)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(step, "finish", full)
        with pytest.raises(OSError, match="No space left"):
            predict([scene], model, tmp_path / "map.tif", FLOAT32)
    assert {path.name for path in tmp_path.iterdir()} == {"scene.tif", ".map.tif.parts"}
    monkeypatch.setattr(compute, "run", None)  # nothing is left to compute
    predict([scene], model, tmp_path / "map.tif", FLOAT32)
    assert not list(tmp_path.glob(".*"))


def test_strips_are_dealt_out_in_runs_of_what_is_missing(tmp_path: Path, model: Path) -> None:
    scene = open_scene(write(tmp_path / "scene.tif", 500, 90))
    how, parts = plan(scene, crossearth_tiny(3, 64).config, 1), Parts(tmp_path / "parts")
    parts.begin({})
    for strip in (2, 5):
        parts.save(strip, 0, {"ids": np.zeros((1, 1, 1), np.uint8)})
    runs = [task.strips for task in missing(how, parts, False, 4)]
    assert runs == [range(0, 2), range(3, 5), range(6, 10), range(10, len(how.strips))]
