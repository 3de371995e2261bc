"""What `crossearth predict` says: of its model before it maps, of areas and place after."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import Affine
from results_factory import write_fake_results

from crossearth.components.cli import app
from crossearth.components.evaluate.doubts import doubts
from crossearth.components.evaluate.results import write_results
from crossearth.data.catalog.domains import Catalog
from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.weights.checkpoint import read_meta, save

RECIPE = "whu-aerial"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    meta = {
        "classes": ["background", "building"],
        "palette": ["#333333", "#d55e00"],
        "provenance": "synthetic",
    }
    return save(crossearth_tiny(2, 64), tmp_path_factory.mktemp("model") / RECIPE, meta)


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A working folder with the model and a scene of 2 ha."""
    shutil.copytree(made, tmp_path / "artifacts/models" / RECIPE)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 100, 200), np.uint8)
    place = {"crs": "EPSG:32633", "transform": Affine(1, 0, 500_000, 0, -1, 5_000_000)}
    for name, profile in (("scene.tif", place), ("nowhere.tif", {})):
        with rasterio.open(
            tmp_path / name, "w", driver="GTiff", width=200, height=100, count=3, dtype="uint8", **profile
        ) as file:
            file.write(pixels)
    return tmp_path


def test_areas_preview_and_a_missing_place_are_told(home: Path, typed: Callable[[str], str]) -> None:
    printed = typed(f"crossearth predict scene.tif nowhere.tif --model artifacts/models/{RECIPE} --out maps")
    assert "preview: maps/scene.png" in printed and (home / "maps/scene.png").is_file()
    placed, nowhere = printed.split("maps/nowhere.tif", 1)
    areas = [float(line.split()[-2]) for line in placed.splitlines() if line.rstrip().endswith(" ha")]
    assert sum(areas) == pytest.approx(2, abs=0.02)
    assert "the scene has no CRS" in printed and nowhere.count("unknown") == 2


def test_a_model_of_synthetic_data_is_warned_of_before_it_maps(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], catalog: Catalog
) -> None:
    folder = home / "artifacts/models" / RECIPE
    scores = write_fake_results(home / "artifacts/scores" / RECIPE, catalog, catalog.recipe(RECIPE))
    meta = read_meta(folder)
    missed = tuple(replace(each, confusion=((90, 10), (10, 0))) for each in scores.settings)
    write_results(replace(scores, settings=missed, model_sha256=meta["sha256"]))
    monkeypatch.chdir(home)
    monkeypatch.setattr(
        sys, "argv", ["crossearth", "predict", "nothing.tif", "--model", str(folder), "--out", "map.tif"]
    )
    with pytest.raises(SystemExit):
        app.main()
    errors = capsys.readouterr().err
    assert errors.index("WARNING: this model was trained on synthetic") < errors.index("error: ")
    assert (
        "WARNING: this model has learned next to nothing: its best IoU of the foreground is 0.0 %" in errors
    )
    assert len(doubts(meta | {"provenance": "own"}, None)) == 0
    good = write_fake_results(home / "good", catalog, catalog.recipe(RECIPE), skill=0.6)
    assert not doubts(meta | {"provenance": "publisher"}, good)


@pytest.mark.parametrize("model", [RECIPE, "artifacts/models/whu-arial"])
def test_a_wrong_model_gets_the_nearest(model: str, home: Path, refused: Callable[[str], str]) -> None:
    said = refused(f"crossearth predict scene.tif --model {model} --out map.tif")
    assert f"next: --model artifacts/models/{RECIPE}" in said
    assert not (home / "map.tif").exists()


def test_bands_of_the_hint_are_bands_of_the_scene(home: Path, refused: Callable[[str], str]) -> None:
    with rasterio.open(home / "grey.tif", "w", driver="GTiff", width=9, height=9, count=1, dtype="uint8"):
        pass
    said = refused(f"crossearth predict grey.tif --model artifacts/models/{RECIPE} --out map.tif")
    assert "--bands 1,1,1" in said and "3,2,1" not in said


def test_ctrl_c_in_predict_does_not_promise_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(**_: object) -> None:
        raise SystemExit(130)

    monkeypatch.setattr(app, "app", stopped)
    monkeypatch.setattr(app, "describe", lambda _: None)
    for command, said in (
        ("predict", "a second run maps finished scenes again; go on with"),
        ("train", "go on with"),
    ):
        monkeypatch.setattr(sys, "argv", ["crossearth", command])
        with pytest.raises(SystemExit):
            app.main()
        assert said in capsys.readouterr().err
