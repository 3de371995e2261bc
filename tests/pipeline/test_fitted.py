"""A model of fitted tiles: its map of a file at the file's own size is what its evaluation says."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from numpy.typing import NDArray
from own_domain import NAME, catalog, save
from training_folder import NUMBERS

from crossearth.components.evaluate.results import read_results
from crossearth.components.evaluate.step import evaluate
from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.components.predict import sliding
from crossearth.components.predict.config import PredictConfig
from crossearth.components.predict.step import predict
from crossearth.components.train.setup import TrainConfig
from crossearth.components.train.step import train
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.config import load_config
from crossearth.data.common.files import read_json, write_checksummed
from crossearth.model.inference import Windows

pytestmark = pytest.mark.pipeline

PX = 96
LEARNING = {
    "ablation": "rein",
    "iterations": 200,
    "log_every": 1000,
    "checkpoint_every": 1000,
    "lr": 3.0e-3,
    "scale": [2.0, 3.0],
    "schedule_iterations": None,
    "tasks": {"segmentation": {"num_points": 512}},
}


def draw(number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image (3, H, W) of some size, with a road (H, W) whose grain is finer than its surroundings'.

    It is so at the fitted size; at its own, a road has the grain that surroundings have there.
    """
    rng = np.random.default_rng(number)
    width, height = (int(side) for side in rng.integers(400, 700, 2))
    mask = np.zeros((height, width), np.uint8)
    across = max(width, height) // 4
    top = int(rng.integers(0, height - across))
    mask[top : top + across] = 1
    fine, coarse = (rng.integers(0, 256, (PX // px, PX // px)).astype(np.uint8) for px in (1, 24))

    def enlarged(grain: NDArray[np.uint8]) -> NDArray[np.uint8]:
        rows, cols = (np.arange(side) * len(grain) // max(width, height) for side in (height, width))
        return grain[np.ix_(rows, cols)]

    image = np.where(mask, enlarged(fine), enlarged(coarse))
    return np.stack([image] * 3), mask


def iou_of_maps(maps: list[Path], labels: list[NDArray[np.uint8]]) -> float:
    counts = np.zeros(3, int)
    for path, label in zip(maps, labels, strict=True):
        with rasterio.open(path) as written:
            road = written.read(1) == 1
        counts += [np.count_nonzero(each) for each in (road & (label == 1), road, label)]
    return road_iou(*counts.tolist())


def road_iou(hits: int, predicted: int, labelled: int) -> float:
    return hits / (predicted + labelled - hits)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_map_scores_as_the_evaluation_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    masks = []
    for number in range(12):
        image, mask = draw(number)
        save(tmp_path / "images" / f"scene_{number:02}.tif", image)
        save(tmp_path / "masks" / f"scene_{number:02}.png", mask)
        masks.append(mask)
    catalog(tmp_path, tile={"px": PX, "rule": "fit"})
    file = tmp_path / "catalog.yaml"
    setting = {"source": NAME, "target": NAME, "gap": "in-domain"}
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "settings": {"T2T": setting}}))
    own = load_catalog([file], tmp_path)
    domains = tmp_path / "domains"
    (domain,) = ingest([NAME], own, tmp_path, domains, IngestConfig(workers=1))
    recipe = own.recipe(NAME)
    config = load_config(TrainConfig, NUMBERS | LEARNING, "test")
    model = train(recipe, own, domains, tmp_path / "model", config)
    (scored,) = read_results(evaluate(recipe, own, domains, model, tmp_path / "scores")).settings

    confusion = np.array(scored.confusion)
    evaluated = road_iou(confusion[1, 1], confusion[:, 1].sum(), confusion[1].sum())
    tested = sorted(path.stem for path in (domain / "test" / "images").iterdir())
    scenes = [tmp_path / "images" / f"{name}.tif" for name in tested]
    # as an evaluation weighs its windows: what remains is the size at which they are read
    monkeypatch.setattr(sliding, "Windows", lambda *cut, bump: Windows(*cut))
    maps = predict(scenes, model, tmp_path / "maps", PredictConfig(precision="float32"))
    labels = [masks[int(name.removeprefix("scene_"))] for name in tested]
    assert evaluated > 0.6, "nothing was learned that a wrong size could lose"
    assert iou_of_maps(maps, labels) == pytest.approx(evaluated, abs=0.03)

    forgetful = read_json(model / "model.json")
    forgetful["reading"] |= {"fit_px": None, "largest_px": None}
    del forgetful["digest"]
    write_checksummed(model / "model.json", forgetful)
    at_own_size = predict(scenes, model, tmp_path / "others", PredictConfig(precision="float32"))
    assert iou_of_maps(at_own_size, labels) < evaluated - 0.2
