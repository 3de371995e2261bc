"""What is written of a map besides its classes: confidence, areas with intervals, style, quick look."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine
from rio_cogeo.cogeo import cog_validate

from crossearth.components.predict import maps
from crossearth.components.predict.config import PredictConfig
from crossearth.components.predict.estimate import BLOCK_PX, Estimate, block_sums
from crossearth.components.predict.outputs import Block, Outputs, finish, keep
from crossearth.components.predict.step import predict
from crossearth.data.common.errors import InputError
from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.weights.checkpoint import save

CLASSES, PALETTE = ["field", "road & rail", "water"], ["#00aa00", "#808080", "#0000ff"]
GRID = maps.Grid(700, 600, CRS.from_epsg(32633), Affine(2, 0, 400_000, 0, -2, 5_000_000))
FLOAT32 = {"precision": "float32", "device": "cpu"}


def written(
    folder: Path, config: PredictConfig, step: int = 150
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Writes a map of random probabilities; gives them and the report."""
    rng = np.random.default_rng(0)
    coarse = rng.random((3, GRID.height // 20, GRID.width // 20), np.float32)
    scores = coarse.repeat(20, 1).repeat(20, 2)
    valid = np.ones((GRID.height, GRID.width), bool)
    valid[:, :30] = False
    with Outputs.open(folder, GRID, CLASSES, PALETTE, config, {}) as outputs:
        for top in range(0, GRID.height, step):
            rows = slice(top, top + step)
            block = Block(top, 0, torch.from_numpy(scores[:, rows]), valid[rows])
            outputs.write(top, keep(block, config.kept))
    finish(folder, folder / "map.tif", GRID, outputs.tally, CLASSES, PALETTE)
    return np.where(valid, scores / scores.sum(0), np.nan), outputs.report(CLASSES)


def test_confidence_and_entropy_are_bands(tmp_path: Path) -> None:
    shares, _ = written(tmp_path, PredictConfig(confidence=True))
    with rasterio.open(tmp_path / "map.confidence.tif") as file:
        assert file.descriptions == ("confidence", "entropy")
        found = file.read(masked=True) * np.array(file.scales)[:, None, None]
    assert found.mask[:, :, :30].all() and not found.mask[:, :, 30:].any()
    half = maps.PROBABILITY_STEP / 2 + 1e-6
    entropy = -(shares * np.log(shares)).sum(0) / np.log(3)
    assert np.abs(found[0] - shares.max(0))[:, 30:].max() < half
    assert np.abs(found[1] - entropy)[:, 30:].max() < half


@pytest.mark.parametrize("step", [150, 37])
def test_expected_areas_and_intervals_do_not_depend_on_the_bunches(tmp_path: Path, step: int) -> None:
    shares, report = written(tmp_path, PredictConfig(confidence=True), step)
    size = 4 / 0.99972**2  # m2 of a px there
    spread = np.nan_to_num(np.sqrt(shares * (1 - shares)))
    for index, entry in enumerate(report["classes"]):
        assert entry["expected_area_m2"] == pytest.approx(np.nansum(shares[index]) * size, rel=1e-4)
        blocks = [
            (size * spread[index, y : y + BLOCK_PX, x : x + BLOCK_PX].sum()) ** 2
            for y in range(0, GRID.height, BLOCK_PX)
            for x in range(0, GRID.width, BLOCK_PX)
        ]
        low, high = entry["area_interval_m2"]
        assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(sum(blocks)), rel=1e-4)
        assert low < entry["expected_area_m2"] < high


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Truth is drawn as the method has it: a block has a class as a whole, with the probability told."""
    rng = np.random.default_rng(1)
    held, side = 0, 8
    for _ in range(300):
        told = rng.random((side, side), np.float32)
        truth = rng.random((side, side)) < told
        share = torch.from_numpy(told.repeat(BLOCK_PX, 0).repeat(BLOCK_PX, 1))
        estimate = Estimate(2)
        valid = torch.ones(share.shape, dtype=torch.bool)
        estimate.add(*block_sums(torch.stack([share, 1 - share]), valid), np.ones(side * BLOCK_PX))
        _, ((low, high), _) = estimate.result()
        held += low <= truth.sum() * BLOCK_PX**2 <= high
    assert 0.92 < held / 300 < 0.98


def test_without_a_word_nothing_more_is_kept_or_told(tmp_path: Path) -> None:
    _, report = written(tmp_path, PredictConfig())
    assert PredictConfig().kept == ("ids",)
    assert "area_interval_m2" not in report["classes"][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "map.legend.svg",
        "map.qml",
        "map.tif",
        "map.tif.aux.xml",
    ]


def test_an_independent_validator_takes_the_rasters_for_cogs(tmp_path: Path) -> None:
    written(tmp_path, PredictConfig(probabilities=True, confidence=True))
    for name in ("map.tif", "map.probabilities.tif", "map.confidence.tif"):
        valid, errors, warnings = cog_validate(tmp_path / name, strict=True)
        assert valid, (name, errors, warnings)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.overviews(1) == [2]


def test_style_and_legend_name_and_colour_the_classes(tmp_path: Path) -> None:
    written(tmp_path, PredictConfig())
    style = ElementTree.parse(tmp_path / "map.qml").getroot()
    entries = style.findall("./pipe/rasterrenderer/colorPalette/paletteEntry")
    assert [(each.get("value"), each.get("label"), each.get("color")) for each in entries] == [
        (str(index), name, colour) for index, (name, colour) in enumerate(zip(CLASSES, PALETTE, strict=True))
    ]
    categories = style.findall("./renderer-v2/categories/category")
    assert [each.get("label") for each in categories] == CLASSES
    legend = ElementTree.parse(tmp_path / "map.legend.svg").getroot()
    assert [each.text for each in legend.iter("{http://www.w3.org/2000/svg}text")] == CLASSES


def test_the_attribute_table_counts_the_classes(tmp_path: Path) -> None:
    _, report = written(tmp_path, PredictConfig())
    rows = ElementTree.parse(tmp_path / "map.tif.aux.xml").findall(".//GDALRasterAttributeTable/Row")
    cells = [[cell.text for cell in row] for row in rows]
    assert [row[:3] for row in cells] == [
        [str(entry["id"]), entry["name"], str(entry["pixels"])] for entry in report["classes"]
    ]
    assert cells[2][3:] == ["0", "0", "255"]


@pytest.mark.skipif(shutil.which("gdalinfo") is None, reason="needs gdalinfo")
def test_gdalinfo_shows_the_classes(tmp_path: Path) -> None:
    written(tmp_path, PredictConfig())
    command = ["gdalinfo", "-json", str(tmp_path / "map.tif")]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["rat"]["row"][1]["f"][1] == "road & rail"
    plain = subprocess.run(command[::2], capture_output=True, text=True, check=True).stdout
    assert "1: road & rail" in plain


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = crossearth_tiny(3, 64, depth=4)
    meta = {"classes": CLASSES, "palette": PALETTE, "provenance": "own"}
    return save(network, tmp_path_factory.mktemp("model"), meta)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return draw_scene(tmp_path / "scene.tif", GRID.crs, GRID.transform)


def draw_scene(path: Path, crs: CRS | None, transform: Affine | None) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 12), np.uint8).repeat(8, 1).repeat(8, 2)
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": 72, "width": 96}
    with rasterio.open(path, "w", crs=crs, transform=transform, **profile) as file:
        file.write(pixels)
    return path


def test_a_command_writes_all_of_it(typed: Callable[[str], str], scene: Path, model: Path) -> None:
    options = "--confidence --quick-look --vector .gpkg --simplify 1 --precision float32 --device cpu"
    typed(f"crossearth predict scene.tif --model {model} --out map.tif {options}")
    folder = scene.parent
    names = {path.name for path in folder.iterdir()}
    kinds = ("tif", "tif.aux.xml", "json", "png", "qml", "html", "legend.svg", "confidence.tif", "gpkg")
    assert names == {"scene.tif", *(f"map.{kind}" for kind in kinds)}
    page = (folder / "map.html").read_text()
    assert "road &amp; rail" in page and "http" not in page.replace("http-equiv", "")
    report = json.loads((folder / "map.json").read_text())
    import geopandas

    areas = geopandas.read_file(folder / "map.gpkg").groupby("class").area_m2.sum()
    for entry in report["classes"]:
        assert areas.get(entry["name"], 0) == pytest.approx(entry["area_m2"])
    typed(f"crossearth predict scene.tif --model {model} --out map.tif --vector {folder}/map.gpkg")
    assert not (folder / "map.confidence.tif").exists(), "of an earlier map"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vector": Path("a.shp")}, "ends in .gpkg, .geojson, .parquet"),
        ({"min_area_m2": 5}, "--min-area is about polygons, and none are asked for"),
        ({"classes": ("road",)}, "--classes is about polygons"),
        ({"vector": Path("a.gpkg"), "simplify_px": -1}, "--simplify -1"),
        ({"vector": Path("a.gpkg"), "min_area_m2": float("nan")}, "--min-area nan"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PredictConfig(**options)


def test_an_unknown_class_is_named_with_the_choices(scene: Path, model: Path) -> None:
    config = PredictConfig(vector=Path(".gpkg"), classes=("watr",), **FLOAT32)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"(?s)unknown class 'watr'.*water"):
        predict([scene], model, scene.parent / "map.tif", config)


@pytest.mark.parametrize("options", [{"min_area_m2": 9.0, "vector": ".gpkg"}, {"vector": ".geojson"}])
@pytest.mark.parametrize(("crs", "transform"), [(None, GRID.transform), (GRID.crs, None)])
def test_a_scene_without_a_place_has_no_areas_and_no_degrees(
    tmp_path: Path, model: Path, options: dict[str, Any], crs: CRS | None, transform: Affine | None
) -> None:
    scene = draw_scene(tmp_path / "scene.tif", crs, transform)
    config = PredictConfig(**{**options, "vector": Path(options["vector"])}, **FLOAT32)
    with pytest.raises(InputError, match="needs a place on the ground"):
        predict([scene], model, tmp_path / "map.tif", config)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_one_file_of_polygons_is_not_for_several_scenes(tmp_path: Path, model: Path) -> None:
    scenes = [draw_scene(tmp_path / f"{name}.tif", GRID.crs, GRID.transform) for name in "ab"]
    config = PredictConfig(vector=tmp_path / "all.gpkg", **FLOAT32)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"(?s)several scenes.*\.gpkg alone"):
        predict(scenes, model, tmp_path / "maps", config)


def test_a_file_of_others_is_not_replaced(scene: Path, model: Path) -> None:
    mine = scene.parent / "mine.geojson"
    mine.write_text("{}")
    config = PredictConfig(vector=mine, **FLOAT32)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="was not written by crossearth predict"):
        predict([scene], model, scene.parent / "map.tif", config)
    assert mine.read_text() == "{}"
