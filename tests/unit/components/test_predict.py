"""Mapping of scenes: windows, georeference, nodata, bit depths, refusals."""

import io
import json
import math
import os
import resource
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.transform import Affine
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from crossearth.components.cli import model_commands
from crossearth.components.cli.app import app, main
from crossearth.components.predict import maps, sliding, step
from crossearth.components.predict.config import PredictConfig
from crossearth.components.predict.scenes import predict_scenes
from crossearth.components.predict.sliding import Loaded, blocks, plan
from crossearth.components.predict.step import predict
from crossearth.components.predict.strips import Scene, open_scene, open_view
from crossearth.components.register import registry
from crossearth.components.runtime.device import choose_device
from crossearth.data.common.errors import InputError, PartlyDoneError
from crossearth.data.common.shards import Shard
from crossearth.data.raster.reading import Reading, fit
from crossearth.model.crossearth import CrossEarth, crossearth_tiny
from crossearth.model.inference import Tta, predict_labels, slide_logits, window_starts
from crossearth.model.weights.checkpoint import save

CLASSES = ["field", "road", "water"]
PALETTE = ["#00ff00", "#808080", "#0000ff"]
UTM = CRS.from_epsg(32633)
HALF_METRE = Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000)
BYTES = Reading((1, 2, 3), "uint8")
DEEP = Reading((4, 3, 2), "uint16", (0, 3000))
FLOAT32 = PredictConfig(precision="float32", device="cpu")


@pytest.fixture(scope="module")
def network() -> CrossEarth:
    torch.manual_seed(5)  # of few random networks' maps show several classes
    return crossearth_tiny(num_classes=len(CLASSES), image_px=64).eval()


@pytest.fixture(scope="module")
def model(network: CrossEarth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    meta = {"classes": CLASSES, "palette": PALETTE, "provenance": "own"}
    return save(network, tmp_path_factory.mktemp("model"), meta)


def pixels(height: int, width: int, bands: int = 3, dtype: str = "uint8", seed: int = 0) -> NDArray[Any]:
    info = np.iinfo(dtype)
    coarse = np.random.default_rng(seed).integers(
        info.min, info.max, (bands, height // 8 + 1, width // 8 + 1)
    )
    return coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width].astype(dtype)


def write(path: Path, values: NDArray[Any], alpha: NDArray[Any] | None = None, **profile: Any) -> Path:
    bands = len(values) + (alpha is not None)
    shape = {"height": values.shape[1], "width": values.shape[2], "count": bands, "dtype": values.dtype}
    with rasterio.open(
        path, "w", **({"driver": "GTiff", "crs": UTM, "transform": HALF_METRE} | shape | profile)
    ) as out:
        out.write(values, list(range(1, len(values) + 1)))
        if alpha is not None:
            out.write(alpha, bands)
            out.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    return path


def read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as source:
        return source.read()


def slide(network: CrossEarth, image_3HW: NDArray[np.uint8]) -> Tensor:
    """Scores as predict is to have them: Hann's windows over a scene whose borders are mirrored."""
    config = network.config
    crop, stride = config.crop_px, config.stride_px
    _, *size = image_3HW.shape
    # a scene that fits into a window is filled up to it; a longer one gains half the windows' overlap
    around = [
        ((crop - side) // 2, crop - side - (crop - side) // 2)
        if side <= crop
        else ((crop - stride) // 2,) * 2
        for side in size
    ]
    padded = torch.from_numpy(np.pad(image_3HW, ((0, 0), *around), mode="symmetric"))
    bump = np.maximum(np.hanning(crop + 2)[1:-1], 1e-3)
    weight = torch.from_numpy(np.outer(bump, bump))
    _, height, width = padded.shape
    sums, weights = (
        torch.zeros(config.num_classes, height, width, dtype=torch.float64),
        torch.zeros(height, width),
    )
    for top in window_starts(height, crop, stride):
        for left in window_starts(width, crop, stride):
            rows, columns = slice(top, top + crop), slice(left, left + crop)
            with torch.inference_mode():
                sums[:, rows, columns] += network(padded[None, :, rows, columns])[0] * weight
            weights[rows, columns] += weight
    (top, _), (left, _) = around
    return (sums / weights)[:, top : top + size[0], left : left + size[1]].float()


@pytest.mark.parametrize(
    "size", [(150, 211), (64, 64), (65, 64), (40, 200), (33, 47), (200, 45), (5, 3), (1, 90)]
)
def test_a_georeferenced_mosaic_equals_the_array(
    tmp_path: Path, model: Path, network: CrossEarth, size: tuple[int, int]
) -> None:
    image = pixels(*size)
    scene = write(tmp_path / "scene.tif", image)
    [out] = predict([scene], model, tmp_path / "out" / "map.tif", FLOAT32)
    with rasterio.open(out) as source:
        assert source.crs == UTM
        assert source.transform == HALF_METRE
        assert source.nodata == 255
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert json.loads(source.tags()["CLASSES"]) == CLASSES
        assert source.colormap(1)[1] == (128, 128, 128, 255)
        ids = source.read(1)
    assert np.array_equal(ids, slide(network, image).argmax(0).numpy())
    report = json.loads((tmp_path / "out" / "map.json").read_text())
    counts = np.bincount(ids.ravel(), minlength=len(CLASSES))
    assert [entry["pixels"] for entry in report["classes"]] == counts.tolist()
    areas = [entry["area_m2"] for entry in report["classes"]]
    assert areas == pytest.approx((counts * 0.25 / 0.99972**2).tolist(), rel=1e-4)  # UTM's scale there
    assert sum(entry["share"] for entry in report["classes"]) == pytest.approx(1)
    assert report["notes"] == []


def blocks_of(loaded: Loaded, scene: Scene, strips: range | None = None) -> Tensor:
    """Scores (K, H, W) of some strips of a scene, or of all."""
    how = plan(scene, loaded.network.config, loaded.batch_size)
    strips = strips or range(len(how.strips))
    rows = (how.strips[strips[0]][0], how.strips[strips[-1]][1])
    found = torch.full((loaded.network.config.num_classes, rows[1] - rows[0], scene.grid.width), math.nan)
    with open_view(scene) as view:
        for panel in range(len(how.panels)):
            for _, block in blocks(loaded, view, how, panel, strips, lambda _: None):
                height, width = block.valid.shape
                top = block.top - rows[0]
                found[:, top : top + height, block.left : block.left + width] = block.scores
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_streamed_scores_are_those_of_the_sliding_window(
    batch_size: int, network: CrossEarth, tmp_path: Path
) -> None:
    image = pixels(170, 230)
    loaded = Loaded(network, torch.float32, CLASSES, PALETTE, {}, batch_size)
    scores = blocks_of(loaded, open_scene(write(tmp_path / "scene.tif", image)))
    torch.testing.assert_close(scores, slide(network, image), atol=1e-5, rtol=1e-5)


def test_tta_asks_the_network_exactly_eight_times_as_often(network: CrossEarth, tmp_path: Path) -> None:
    scene = open_scene(write(tmp_path / "scene.tif", pixels(90, 110)))
    image = torch.from_numpy(pixels(90, 110))[None]
    asked: dict[Tta, list[int]] = {"none": [], "d4": []}  # windows of each pass
    for tta, passes in asked.items():
        loaded = Loaded(network, torch.float32, CLASSES, PALETTE, {}, 3, tta)
        hook = network.register_forward_pre_hook(lambda _, given, to=passes: to.append(len(given[0])))
        blocks_of(loaded, scene)
        predict_labels(network, image, 3, tta)
        hook.remove()
    assert asked["d4"] == [windows for windows in asked["none"] for _ in range(8)]


@pytest.mark.parametrize("gsd", ["native", 0.7])
def test_any_rectangle_of_a_map_has_the_digits_of_the_whole(
    gsd: Any, network: CrossEarth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(network, torch.float32, CLASSES, PALETTE, {})
    scene = open_scene(write(tmp_path / "scene.tif", pixels(300, 260)), gsd=gsd)
    whole = blocks_of(loaded, scene)
    how = plan(scene, network.config, 1)
    assert len(how.panels) == 1 and len(how.strips) > 4
    assert torch.equal(
        blocks_of(loaded, scene, strips=range(3, 5)), whole[:, slice(how.strips[3][0], how.strips[4][1])]
    )
    monkeypatch.setattr(sliding, "SUMS_BYTES", 4 * len(CLASSES) * 64 * 90)
    monkeypatch.setattr(sliding, "PANEL_WINDOWS", 1)
    monkeypatch.setattr(sliding, "BLOCK_BYTES", 4 * len(CLASSES) * 90 * 20)
    assert len(plan(scene, network.config, 1).panels) > 2
    assert torch.equal(blocks_of(loaded, scene), whole)


def test_nodata_stays_nodata_and_empty_windows_are_skipped(
    tmp_path: Path, model: Path, network: CrossEarth
) -> None:
    image = np.maximum(pixels(200, 300), 1)
    image[:, :, 150:] = 0
    image[:, 20:30, 20:30] = 0
    image[0, 60:70, 60:70] = 0  # one band alone at the nodata value is a colour, not a hole
    scene = write(tmp_path / "scene.tif", image, nodata=0)
    [out] = predict([scene], model, tmp_path / "map.tif", FLOAT32)
    expected = np.where((image == 0).all(0), 255, slide(network, image).argmax(0).numpy())
    assert np.array_equal(read(out)[0], expected)
    report = json.loads((tmp_path / "map.json").read_text())
    assert report["nodata_pixels"] == 200 * 150 + 100
    preview = read(tmp_path / "map.png")
    assert (preview[3, :, 160:] == 0).all()
    assert (preview[3, 100:, :150] == 255).all()


def test_a_scene_of_nodata_alone_gives_a_map_of_nodata(tmp_path: Path, model: Path) -> None:
    for dtype in ("uint8", "uint16"):
        scene = write(tmp_path / f"{dtype}.tif", np.zeros((3, 80, 90), dtype), nodata=0)
        [out] = predict([scene], model, tmp_path / "map.tif", FLOAT32)
        assert (read(out) == 255).all()
        assert json.loads((tmp_path / "map.json").read_text())["classes"][0]["share"] is None


def test_alpha_is_no_band_and_hides_pixels(tmp_path: Path, model: Path, network: CrossEarth) -> None:
    image = pixels(90, 100)
    alpha = np.full((90, 100), 255, np.uint8)
    alpha[:, :10] = 0
    scene = write(tmp_path / "scene.tif", image, alpha=alpha)
    [out] = predict([scene], model, tmp_path / "map.tif", FLOAT32)
    expected = slide(network, image).argmax(0).numpy()
    expected[:, :10] = 255
    assert np.array_equal(read(out)[0], expected)
    assert open_scene(scene).reading.bands == (1, 2, 3)


def test_bands_are_chosen_and_ordered(tmp_path: Path, model: Path, network: CrossEarth) -> None:
    image = pixels(70, 80, bands=5)
    scene = write(tmp_path / "scene.tif", image)
    [out] = predict([scene], model, tmp_path / "map.tif", PredictConfig(bands=(5, 3, 2), precision="float32"))
    assert np.array_equal(read(out)[0], slide(network, image[[4, 2, 1]]).argmax(0).numpy())
    assert json.loads((tmp_path / "map.json").read_text())["bands"] == [5, 3, 2]


def test_the_range_of_16_bits_is_estimated_without_nodata_and_reported(tmp_path: Path, model: Path) -> None:
    image = np.linspace(1000, 2000, 3 * 70 * 80).reshape(3, 70, 80).astype(np.uint16)
    image[:, :30] = 65535
    scene = write(tmp_path / "scene.tif", image, nodata=65535)
    predict([scene], model, tmp_path / "map.tif", FLOAT32)
    low, high = json.loads((tmp_path / "map.json").read_text())["value_range"]
    valid = image[image != 65535]
    assert (low, high) == pytest.approx(tuple(np.percentile(valid, (2, 98))))


def trained_on(network: CrossEarth, folder: Path, reading: Reading) -> Path:
    """A model whose training files were read so."""
    meta = {"classes": CLASSES, "palette": PALETTE, "provenance": "own", "reading": asdict(reading)}
    return save(network, folder, meta)


@pytest.fixture(scope="module")
def deep_model(network: CrossEarth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on bands 4, 3, 2 of files of 12 bits."""
    return trained_on(network, tmp_path_factory.mktemp("deep"), DEEP)


@pytest.mark.parametrize(
    ("bands", "dtype", "given", "used"),
    [
        (5, "uint16", {}, ([4, 3, 2], "the model's", [0, 3000], "the model's")),
        (5, "uint16", {"bands": (1, 2, 3)}, ([1, 2, 3], "as given", [0, 3000], "the model's")),
        (5, "uint16", {"value_range": (5, 900)}, ([4, 3, 2], "the model's", [5, 900], "as given")),
        (5, "uint8", {"value_range": (0, 200)}, ([4, 3, 2], "the model's", [0, 200], "as given")),
        (5, "float32", {"value_range": (0, 3000)}, ([4, 3, 2], "the model's", [0, 3000], "as given")),
    ],
)
def test_bands_and_range_are_the_models_unless_given(
    bands: int,
    dtype: str,
    given: dict[str, Any],
    used: tuple[Any, ...],
    tmp_path: Path,
    deep_model: Path,
    model: Path,
) -> None:
    values = pixels(70, 80, bands, "uint8" if dtype == "uint8" else "uint16") % np.uint32(4000)
    scene = write(tmp_path / "scene.tif", values.astype(dtype))
    [out] = predict([scene], deep_model, tmp_path / "map.tif", replace(FLOAT32, **given))
    report = json.loads(out.with_suffix(".json").read_text())
    assert tuple(report[key] for key in ("bands", "bands_from", "value_range", "value_range_from")) == used
    told = {"bands": used[0], "value_range": used[2]}
    [same] = predict([scene], model, tmp_path / "told.tif", replace(FLOAT32, **told))
    assert np.array_equal(read(out), read(same))


@pytest.mark.parametrize(
    ("trained", "values", "profile", "words"),
    [
        (DEEP, pixels(70, 80, 3, "uint16"), {}, r"3 bands, asked for the model's 4, 3, 2\n.*\n.*--bands"),
        (
            DEEP,
            pixels(70, 80, 4),
            {},
            r"values of uint8, but .* on uint16\n.*0 to 3000.*\n.*--value-range \d",
        ),
        (DEEP, pixels(70, 80, 4, "int16"), {}, "values of int16, but the model was trained on uint16"),
        (BYTES, pixels(70, 80, 3, "uint16"), {}, r"uint16, .* on uint8\n.*as they are.*\n.*--value-range \d"),
        (BYTES, pixels(70, 80), {"scales": (0.5,) * 3}, r"tags make other .*\n.*\n.*--value-range 0,127\.5"),
        (
            DEEP,
            pixels(70, 80, 4, "uint16") // 20,
            {"scales": (1e-4,) * 4},
            "values 0.* 0 to 3000 leaves nothing",
        ),
        (DEEP, pixels(70, 80, 4, "uint16"), {"offsets": (-1e5,) * 4}, "values -99.*0 to 3000 leaves nothing"),
        (DEEP, 9000 + pixels(70, 80, 4).astype("uint16"), {}, "values 9.*0 to 3000 leaves nothing"),
        (
            replace(BYTES, fit_px=40, largest_px=40),
            pixels(70, 90),
            {},
            r"90 x 70 px.*\n.*2 times the largest of them, 40 px\n.*gdal_retile\.py -ps 40 40",
        ),
    ],
)
def test_a_scene_of_other_values_than_the_training_is_refused(
    trained: Reading,
    values: NDArray[Any],
    profile: dict[str, Any],
    words: str,
    tmp_path: Path,
) -> None:
    scene = write(tmp_path / "scene.tif", values)
    with rasterio.open(scene, "r+") as file:
        file.scales = profile.get("scales", file.scales)
        file.offsets = profile.get("offsets", file.offsets)
    with pytest.raises(InputError, match=words):
        open_scene(scene, trained)


def named(path: Path, names: tuple[str, ...], colours: tuple[ColorInterp, ...] = ()) -> Path:
    write(path, pixels(70, 80, max(len(names), len(colours))))
    with rasterio.open(path, "r+") as file:
        file.descriptions = names or file.descriptions
        file.colorinterp = colours or file.colorinterp
    return path


RGB = replace(BYTES, names=(("red", "b4"), ("green", "b3"), ("blue", "b2")))
IRRG = replace(BYTES, names=(("near infrared",), ("red",), ("green",)))
TURNED = (ColorInterp.blue, ColorInterp.green, ColorInterp.red)


@pytest.mark.parametrize(
    ("trained", "names", "colours", "words"),
    [
        (RGB, ("Blue", "Green", "Red"), (), "names blue, green, red\n.*red at 1.*\n.*--bands 3,2,1 takes"),
        (RGB, ("B2", "B3", "B4"), (), r"names b2, b3, b4\n.*red at 1.*\n.*--bands 3,2,1 takes"),
        (RGB, ("", "", "red"), (), r"names red\n.*\n.*say with --bands which"),
        (RGB, (), TURNED, r"names blue, green, red\n.*\n.*--bands 3,2,1 takes"),
        (IRRG, ("red", "green", "blue"), (), r"names red, green, blue\n.*near infrared at 1.*\n.*say with"),
        (RGB, ("Red", "Green", "Blue"), TURNED, None),
        (RGB, ("one", "two", "three"), (), None),
        (IRRG, (), TURNED[::-1], None),  # every writer's default: says nothing
        (BYTES, ("Blue", "Green", "Red"), (), None),
    ],
)
def test_bands_that_a_scene_names_otherwise_than_the_training_are_refused(
    trained: Reading,
    names: tuple[str, ...],
    colours: tuple[ColorInterp, ...],
    words: str | None,
    tmp_path: Path,
) -> None:
    scene = named(tmp_path / "scene.tif", names, colours)
    assert open_scene(scene, trained, bands=(1, 2, 3)).reading.bands == (1, 2, 3), "the user's word counts"
    if words is None:
        assert open_scene(scene, trained).bands_from == "the model's"
        return
    with pytest.raises(InputError, match=words):
        open_scene(scene, trained)


def back(scores: Tensor, size: tuple[int, ...]) -> Tensor:
    """Scores on another grid: what lies between two px is what lies between their scores."""
    return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]


def averaged(values: NDArray[Any], factor: int) -> NDArray[Any]:
    """Means of whole cells."""
    bands, height, width = values.shape
    return values.reshape(bands, height // factor, factor, width // factor, factor).mean((2, 4))


@pytest.mark.parametrize(
    ("trained_m", "gsd", "words"),
    [
        (2.0, "auto", "px of 0.5 m are seen at 2 m (the model's), the map has the scene's own"),
        (None, 2.0, "px of 0.5 m are seen at 2 m (as given), the map has the scene's own"),
        (0.52, "auto", ""),
    ],
)
def test_a_scene_is_seen_at_the_trainings_resolution(
    trained_m: float | None, gsd: Any, words: str, tmp_path: Path, network: CrossEarth
) -> None:
    model = trained_on(network, tmp_path / "model", replace(BYTES, gsd_m=trained_m))
    image = pixels(160, 240)
    scene = write(tmp_path / "scene.tif", image)
    config = replace(FLOAT32, gsd=gsd, probabilities=True)
    [out] = predict([scene], model, tmp_path / "map.tif", config)
    assert json.loads(out.with_suffix(".json").read_text())["notes"] == [words] * bool(words)
    with rasterio.open(out) as file:
        assert (file.shape, file.transform) == ((160, 240), HALF_METRE)
        assert file.tags().get("RESOLUTION", "") == words
    seen = np.rint(averaged(image, 4)).astype(np.uint8) if "seen at 2" in words else image
    scores = back(slide(network, seen), (160, 240))
    with rasterio.open(tmp_path / "map.probabilities.tif") as file:
        shares = file.read() * file.scales[0]
    # UTM's scale makes of 2 m 1.9994 px of the file's
    np.testing.assert_allclose(shares, scores / scores.sum(0), atol=0.02)


def test_coarser_and_finer_pixels_keep_the_holes_of_the_scene(tmp_path: Path, model: Path) -> None:
    image = np.maximum(pixels(200, 200), 1)
    image[:, 60:101, 33:70] = 0
    image[0, :50] = 0  # one band alone is no hole
    scene = write(tmp_path / "scene.tif", image, nodata=0)
    for gsd in (1.3, 0.3):
        [out] = predict([scene], model, tmp_path / "map.tif", replace(FLOAT32, gsd=gsd))
        assert np.array_equal(read(out)[0] == maps.NODATA, (image == 0).all(0))


def test_a_hole_does_not_darken_what_lies_around_it(tmp_path: Path) -> None:
    image = np.full((3, 80, 80), 200, np.uint8)
    image[:, 20:31, 20:31] = 0
    scene = open_scene(write(tmp_path / "scene.tif", image, nodata=0), gsd=1.7)
    with open_view(scene) as view:
        seen, valid = view.look((-5, view.height + 5), (0, view.width))
    assert set(np.unique(seen[:, valid])) == {200} and not valid.all()


def test_degrees_are_metres_at_the_scenes_latitude(tmp_path: Path) -> None:
    degrees = Affine(1e-4, 0, 25, 0, -1e-4, 60)  # 5.58 m across, 11.14 m down
    scene = write(tmp_path / "scene.tif", pixels(300, 400), crs="EPSG:4326", transform=degrees)
    assert open_scene(scene, gsd=5.0).seen == pytest.approx((300 * 11.14 / 5, 400 * 5.58 / 5), rel=2e-3)


def test_a_much_coarser_scene_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    scene, fine = write(tmp_path / "scene.tif", pixels(64, 64)), replace(BYTES, gsd_m=0.05)
    with pytest.raises(
        InputError, match=r"px of 0.5 m, but .* 0.05 m\n.*0.4 m.*\n.*--gsd native, or --gsd 0.05"
    ):
        open_scene(scene, fine)
    assert open_scene(scene, fine, gsd=0.05).seen == (640, 640)
    native = open_scene(scene, fine, gsd="native")
    assert native.resolution == "the network sees pixels of 0.5 m, it was trained on 0.05 m"
    lost = write(tmp_path / "lost.tif", pixels(64, 64), crs=None)
    assert open_scene(lost, fine).seen == (64, 64)
    with pytest.raises(InputError, match="--gsd 1, but the size of the scene's px"):
        open_scene(lost, gsd=1)


class Edgy(nn.Module):
    """A network whose scores err towards the edges of its windows, as real ones do."""

    config = SimpleNamespace(num_classes=2, patch_px=8, crop_px=64, stride_px=43)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, windows_B3HW: Tensor) -> Tensor:
        middle = (torch.arange(64) - 31.5).abs() / 32
        away_HW = torch.maximum(middle[:, None], middle)
        light_BHW = windows_B3HW.float().mean(1) / 255
        return torch.stack([light_BHW + 0.4 * away_HW**8, torch.full_like(light_BHW, 0.6)], 1)


def test_a_shift_by_half_a_window_changes_fewer_pixels_than_with_the_mean(tmp_path: Path) -> None:
    image, half = pixels(300, 300), 32
    loaded = Loaded(Edgy(), torch.float32, ["a", "b"], PALETTE[:2], {})  # type: ignore[arg-type]
    bump, mean = (
        [scores(part).argmax(0)[80:-80, 80:-80] for part in (image[:, half:, half:], image)]
        for scores in (
            lambda part: blocks_of(loaded, open_scene(write(tmp_path / "scene.tif", part))),
            lambda part: slide_logits(loaded.network, torch.from_numpy(part)[None], 64, 43)[0],
        )
    )

    def changed(maps: list[Tensor]) -> float:
        moved, whole = maps
        return float((moved[:76, :76] != whole[half : half + 76, half : half + 76]).float().mean())

    assert 0 < 3 * changed(bump) < changed(mean)


@pytest.mark.parametrize(("size", "fit_px"), [((240, 160), 120), ((41, 67), 101), ((64, 64), 64)])
def test_a_model_of_fitted_tiles_maps_at_their_scale(
    size: tuple[int, int], fit_px: int, tmp_path: Path, network: CrossEarth
) -> None:
    image = pixels(*size)
    scene = write(tmp_path / "scene.tif", image)
    fitting = trained_on(network, tmp_path / "model", replace(BYTES, fit_px=fit_px, largest_px=max(size)))
    [out] = predict([scene], fitting, tmp_path / "map.tif", replace(FLOAT32, probabilities=True))
    small = [max(1, round(side * fit_px / max(size))) for side in size]
    seen, _ = fit(image, np.ones(size, bool), small[1], small[0])
    scores = back(slide(network, seen), size)
    with rasterio.open(out) as file:
        assert np.mean(file.read(1) == scores.argmax(0).numpy()) > 0.995  # the last digits differ
        assert file.transform == HALF_METRE
    with rasterio.open(tmp_path / "map.probabilities.tif") as file:
        shares = file.read() * file.scales[0]
    np.testing.assert_allclose(shares, scores / scores.sum(0), atol=0.5 / 254 + 1e-4)


def test_the_command_says_what_it_read(
    tmp_path: Path, deep_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = write(tmp_path / "scene.tif", pixels(64, 64, 4, "uint16"))
    model_commands.predict([scene], str(deep_model), tmp_path / "map.tif", device="cpu")
    said = capsys.readouterr().out
    assert "scene.tif: bands 4, 3, 2 (the model's), values 0 to 3000 (the model's)\n" in said


def test_a_log_without_letters_for_a_name_ends_no_command(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write(tmp_path / "Zürich.tif", pixels(64, 64))
    maps_dir = tmp_path / "地図"
    maps_dir.mkdir()
    log = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", log)
    command = ["crossearth", "predict", str(scene), str(scene), "--model", str(model), "--out", str(maps_dir)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    log.seek(0)
    assert f"wrote {tmp_path}/\\u5730\\u56f3/Z\\xfcrich.tif" in log.read()


def test_probabilities_are_shares_of_the_scores(tmp_path: Path, model: Path, network: CrossEarth) -> None:
    image = np.maximum(pixels(100, 90), 1)
    image[:, :5] = 0
    scene = write(tmp_path / "scene.tif", image, nodata=0)
    predict([scene], model, tmp_path / "map.tif", PredictConfig(probabilities=True, precision="float32"))
    with rasterio.open(tmp_path / "map.probabilities.tif") as source:
        assert source.descriptions == tuple(CLASSES)
        assert source.crs == UTM
        assert source.nodata == 255
        stored = source.read()
        shares = stored * source.scales[0]
    scores = slide(network, image).numpy()
    assert (stored[:, :5] == 255).all()
    np.testing.assert_allclose(shares[:, 5:], (scores / scores.sum(0))[:, 5:], atol=0.5 / 254 + 1e-4)


def test_probabilities_of_an_earlier_map_go_with_it(tmp_path: Path, model: Path) -> None:
    scene = write(tmp_path / "scene.tif", pixels(64, 64))
    for probabilities in (True, False):
        predict([scene], model, tmp_path / "map.tif", replace(FLOAT32, probabilities=probabilities))
        assert (tmp_path / "map.probabilities.tif").exists() == probabilities


@pytest.mark.parametrize(
    ("place", "note"),
    [
        ({"crs": None, "transform": None}, "no CRS"),
        ({"transform": None}, "no place on the Earth"),
        ({"crs": CRS.from_wkt('LOCAL_CS["plan",UNIT["metre",1]]')}, "no place on the Earth"),
        ({"transform": HALF_METRE @ Affine.rotation(30)}, "rotated"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_any_place_on_the_ground_works_and_the_report_says_what_is_unusual(
    tmp_path: Path, model: Path, place: dict[str, Any], note: str
) -> None:
    placeless = place.get("transform", HALF_METRE) is None
    with rasterio.Env(), pytest.warns() if placeless else nullcontext():
        scene = write(tmp_path / "scene.tif", pixels(70, 80), **place)
    [out] = predict([scene], model, tmp_path / "map.tif", FLOAT32)
    report = json.loads((tmp_path / "map.json").read_text())
    assert any(note in line for line in report["notes"])
    assert not any("geographic" in line for line in report["notes"])
    if note == "rotated":
        with rasterio.open(out) as source:
            assert source.transform.almost_equals(place["transform"])
        assert report["pixel_area_m2"] == pytest.approx(0.25, rel=1e-3)
    else:
        assert report["pixel_area_m2"] is None
        assert report["classes"][0]["area_m2"] is None


def test_areas_are_the_grounds_row_by_row(tmp_path: Path, model: Path) -> None:
    """Two classes, one north, one south of 60 degrees: web Mercator says they are equally large."""
    earth = 6_378_137
    scene = write(
        tmp_path / "scene.tif",
        pixels(70, 80),
        crs=CRS.from_epsg(3857),
        transform=Affine(20_000, 0, 0, 0, -20_000, earth * math.asinh(math.tan(math.radians(60))) + 700_000),
    )
    grid = open_scene(scene).grid
    tally = maps.Tally(grid)
    for top in (0, 35):
        tally.add(top, np.full((35, 80), int(top > 0), np.uint8))
    north, south = tally.areas_m2[:2]
    middle = [
        math.degrees(math.atan(math.sinh(math.asinh(math.tan(math.radians(60))) + shift / earth)))
        for shift in (350_000, -350_000)
    ]
    expected = [35 * 80 * 4e8 * math.cos(math.radians(latitude)) ** 2 for latitude in middle]
    assert [north, south] == pytest.approx(expected, rel=0.01)
    predict([scene], model, tmp_path / "map.tif", FLOAT32)
    report = json.loads((tmp_path / "map.json").read_text())
    assert sum(entry["area_m2"] for entry in report["classes"]) == pytest.approx(north + south)
    assert report["pixel_area_m2"] == pytest.approx((north + south) / (70 * 80))


def test_a_crs_that_geotiff_cannot_tell_survives_into_the_map(tmp_path: Path, model: Path) -> None:
    turned = CRS.from_string("+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=40 +lon_0=10")
    place = {"crs": turned, "transform": Affine(0.01, 0, 1, 0, -0.01, 2)}
    scene = write(tmp_path / "scene.tif", pixels(70, 80), **place)
    folder = tmp_path / "out"
    [out] = predict([scene], model, folder / "map.tif", replace(FLOAT32, probabilities=True))
    for raster in (out, folder / "map.probabilities.tif"):
        with rasterio.open(raster) as source:
            assert (source.crs, source.transform) == (turned, place["transform"])
    assert json.loads((folder / "map.json").read_text())["pixel_area_m2"] > 1e5
    assert not list(folder.glob("ids*"))
    predict([write(tmp_path / "scene.tif", pixels(70, 80))], model, out, FLOAT32)
    assert not list(folder.glob("map.probabilities*"))
    with rasterio.open(out) as source:
        assert source.crs == UTM


def test_class_names_reach_gdal(tmp_path: Path, model: Path) -> None:
    scene = write(tmp_path / "scene.tif", pixels(70, 80))
    [out] = predict([scene], model, tmp_path / "map.tif", FLOAT32)
    copy = tmp_path / "copy.png"
    rasterio.shutil.copy(
        out, copy, driver="PNG"
    )  # PNG has no class names: GDAL writes those it knows beside it
    assert "<Category>water</Category>" in copy.with_suffix(".png.aux.xml").read_text()


def test_a_folder_of_scenes_and_several_scenes(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "scenes"
    folder.mkdir()
    write(folder / "a.tif", pixels(70, 80))
    write(folder / "b.png", pixels(64, 64), driver="PNG", crs=None, transform=None)
    (folder / "notes.txt").write_text("no scene")
    other = write(tmp_path / "c.tif", pixels(70, 80))
    out = tmp_path / "out"
    assert predict([folder, other], model, out, FLOAT32) == [out / "a.tif", out / "b.tif", out / "c.tif"]
    assert {path.suffix for path in out.iterdir()} == {".tif", ".xml", ".png", ".json", ".qml", ".svg"}


def test_shards_map_every_scene_once_and_names_are_checked_over_all(tmp_path: Path, model: Path) -> None:
    (tmp_path / "scenes/later").mkdir(parents=True)
    for name in "abc":
        write(tmp_path / "scenes" / f"{name}.tif", pixels(40, 40))
    (tmp_path / "maps").mkdir()
    mapped = [
        [
            path.name
            for path in predict([tmp_path / "scenes"], model, tmp_path / "maps", shard=Shard(index, 4))
        ]
        for index in range(4)
    ]
    assert mapped == [["a.tif"], ["b.tif"], ["c.tif"], []]
    write(tmp_path / "scenes" / "later" / "a.tif", pixels(40, 40))
    with pytest.raises(InputError, match="two scenes would give"):
        predict([tmp_path / "scenes"], model, tmp_path / "maps", shard=Shard(1, 4))


def test_a_folder_may_be_called_as_a_map(tmp_path: Path, model: Path) -> None:
    scene = write(tmp_path / "scene.tif", pixels(64, 64))
    out = tmp_path / "maps.tif"
    out.mkdir()
    assert predict([scene], model, out, FLOAT32) == [out / "scene.tif"]


def test_equal_input_gives_equal_bytes(tmp_path: Path, model: Path) -> None:
    scene = write(tmp_path / "scene.tif", pixels(100, 120))
    for name in ("one", "two"):
        predict([scene], model, tmp_path / name / "map.tif", PredictConfig(probabilities=True))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_folders_are_searched_and_earlier_maps_in_them_are_no_scenes(tmp_path: Path, model: Path) -> None:
    scenes, maps_in = tmp_path / "scenes", tmp_path / "scenes" / "maps"
    (scenes / "deeper").mkdir(parents=True)
    write(scenes / "a.tif", pixels(64, 64))
    write(scenes / "deeper" / "b.jp2", pixels(64, 64), driver="JP2OpenJPEG")
    write(scenes / "deeper" / "b-BROWSE.jpg", pixels(8, 8), driver="JPEG", crs=None, transform=None)
    (scenes / "._a.tif").write_bytes(b"\0" * 99)
    for _ in range(2):
        written = predict([scenes], model, maps_in, PredictConfig(probabilities=True))
        assert written == [maps_in / "a.tif", maps_in / "b.tif"]


GCPS = [GroundControlPoint(row, col, 500_000 + col, 5_000_000 - row, 0) for row in (0, 64) for col in (0, 80)]
ONES = [1.0] * 20
RPCS = RPC(1, 1, 1, 1, ONES, ONES, 1, 1, 1, 1, ONES, ONES, 1, 1)


@pytest.mark.parametrize(
    ("place", "words"),
    [({"gcps": GCPS, "crs": UTM}, "ground control points"), ({"rpcs": RPCS}, "an RPC model")],
)
def test_a_map_keeps_the_control_points_of_its_scene(
    place: dict[str, Any], words: str, tmp_path: Path, model: Path
) -> None:
    scene = write(tmp_path / "scene.tif", pixels(64, 80), **{"crs": None, "transform": None} | place)
    command = ["predict", str(scene), "--model", str(model), "--out", str(tmp_path / "map.tif")]
    result = CliRunner().invoke(app, command)
    assert f"scene.tif: the scene is placed by {words} only" in result.output, result.output
    with rasterio.open(scene) as before, rasterio.open(tmp_path / "map.tif") as after:
        assert (after.gcps[1], after.rpcs) == (before.gcps[1], before.rpcs)
        assert list(map(str, after.gcps[0])) == list(map(str, before.gcps[0]))
        assert after.transform.is_identity


def test_one_file_per_band_names_the_command(tmp_path: Path, model: Path) -> None:
    for band in ("B02", "B03", "B04"):
        write(tmp_path / f"S2_{band}.tif", pixels(64, 64, bands=1))
    wanted = r"gdalbuildvrt -separate \S+S2_rgb\.vrt \S+S2_B04\.tif \S+S2_B03\.tif \S+S2_B02\.tif"
    with pytest.raises(InputError, match=wanted):
        predict([tmp_path / "S2_B03.tif"], model, tmp_path / "map.tif", FLOAT32)


def test_refusals_leave_nothing(tmp_path: Path, model: Path) -> None:
    good = write(tmp_path / "good.tif", pixels(70, 80))
    gray = write(tmp_path / "gray.tif", pixels(70, 80, bands=1))
    waves = write(tmp_path / "waves.tif", np.zeros((3, 70, 80), np.complex64))
    shares = write(tmp_path / "good.probabilities.tif", pixels(70, 80))
    loud = write(tmp_path / "GOOD.TIF", pixels(70, 80))
    picture = write(tmp_path / "picture.png", pixels(70, 80), driver="PNG", crs=None, transform=None)
    text = tmp_path / "text.tif"
    text.write_text("no raster")
    empty = tmp_path / "empty"
    empty.mkdir()
    twin = tmp_path / "twin"
    twin.mkdir()
    write(twin / "good.tif", pixels(70, 80))
    before = sorted(tmp_path.rglob("*"))
    out, folder = tmp_path / "map.tif", tmp_path / "maps"
    cases: list[tuple[list[Path], Path, PredictConfig, str]] = [
        ([gray], out, FLOAT32, "1 band, asked for three"),
        ([waves, gray], folder, FLOAT32, "(?s)complex numbers.*1 band, asked for three"),
        ([good], out, PredictConfig(bands=(1, 2, 7)), "3 bands, asked for band 7"),
        ([waves], out, FLOAT32, "complex numbers"),
        ([text], out, FLOAT32, "not an image that can be read"),
        ([tmp_path / "absent.tif"], out, FLOAT32, "no such scene"),
        ([empty], folder, FLOAT32, "no scene in the folder"),
        ([], folder, FLOAT32, "no scene given"),
        ([good, twin], folder, FLOAT32, "two scenes would give"),
        ([good, shares], folder, FLOAT32, r"two scenes would give .*good\.probabilities\.tif"),
        ([good, loud], folder, FLOAT32, "(?i)two scenes would give .*good.tif"),
        ([good, gray], out, FLOAT32, "one map, but several scenes"),
        ([good], tmp_path / "map.jpg", FLOAT32, "ends in .tif"),
        ([good], good, FLOAT32, "would replace the scene"),
        ([good], tmp_path, FLOAT32, "would replace the scene"),
        ([picture], tmp_path / "picture.tif", FLOAT32, "would replace the scene"),
        ([good], out, PredictConfig(backbone=tmp_path / "x"), "no shared backbone"),
    ]
    for scenes, target, config, message in cases:
        with pytest.raises(InputError, match=message):
            predict(scenes, model, target, config)
    with pytest.raises(InputError, match="no such model"):
        predict([good], tmp_path / "absent", out, FLOAT32)
    assert sorted(tmp_path.rglob("*")) == before


def test_only_maps_of_an_earlier_run_are_replaced(tmp_path: Path, model: Path) -> None:
    scene = write(tmp_path / "scene.tif", pixels(70, 80), crs=None, transform=None)
    out = tmp_path / "map.tif"
    foreign = {
        "map.tif": lambda path: write(path, pixels(70, 80)),
        "map.json": lambda path: path.write_text('{"scene": "mine"}'),
        "map.png": lambda path: path.write_bytes(b"a picture"),
        "map.probabilities.tif": lambda path: path.write_bytes(b"a raster"),
    }
    for name, make in foreign.items():
        make(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        with pytest.raises(InputError, match=f"{name}: it was not written by crossearth predict"):
            predict([scene], model, out, FLOAT32)
        assert (tmp_path / name).read_bytes() == before
        (tmp_path / name).unlink()
    for name in ("map.tif.ovr", "map.tif.msk"):
        (tmp_path / name).write_bytes(b"of an earlier map")
        with pytest.raises(InputError, match=f"{name}: GDAL would read it with the new map"):
            predict([scene], model, out, FLOAT32)
        (tmp_path / name).unlink()
    predict([scene], model, out, FLOAT32)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    out.unlink()  # a kill before the last file, the map
    predict([scene], model, out, FLOAT32)
    with warnings.catch_warnings(action="error"):
        predict([scene], model, out, FLOAT32)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_a_broken_scene_does_not_keep_the_others_from_being_mapped(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = [write(tmp_path / f"{name}.tif", pixels(300, 200), compress="deflate") for name in "abcd"]
    scenes[0].write_text("no raster")
    scenes[2].write_bytes(scenes[2].read_bytes()[: scenes[2].stat().st_size * 2 // 3])
    out = tmp_path / "maps"
    out.mkdir()
    command = ["crossearth", "predict", *map(str, scenes), "--model", str(model), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    said = capsys.readouterr()
    assert "2 of 4 scenes are not mapped" in said.err
    assert f"{scenes[0]}: not an image" in said.err
    assert f"{scenes[2]}: cannot read its pixels" in said.err
    assert said.out.count("wrote") == 2
    assert {path.name for path in out.glob("*.tif")} == {"b.tif", "d.tif"}
    addresses = [str(scene) for scene in scenes[:2]]
    with pytest.raises(PartlyDoneError, match="1 of 2 scenes are not mapped") as partly:
        predict_scenes(addresses, str(model), str(tmp_path / "pod"), {"device": "cpu"})
    assert partly.value.done == [tmp_path / "pod" / "b.tif"]


def test_a_scene_cut_in_the_middle_leaves_no_map(tmp_path: Path, model: Path) -> None:
    scene = write(tmp_path / "scene.tif", pixels(300, 200), compress="deflate")
    scene.write_bytes(scene.read_bytes()[: scene.stat().st_size * 2 // 3])
    with pytest.raises(InputError, match=r"cannot read its pixels, .*: TIFFFillStrip"):
        predict([scene], model, tmp_path / "map.tif", FLOAT32)
    assert sorted(tmp_path.iterdir()) == [scene]


def test_an_interrupt_leaves_the_old_map_and_no_half_file(tmp_path: Path, model: Path) -> None:
    scene = write(tmp_path / "scene.tif", pixels(3000, 3000))
    out = tmp_path / "out"
    predict([write(tmp_path / "small.tif", pixels(64, 64))], model, out / "map.tif", FLOAT32)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    ended = threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.01):
            if list(out.glob(".map.tif.parts/*.zip")):
                return os.kill(os.getpid(), signal.SIGINT)

    # a shell's background jobs ignore SIGINT
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ThreadPoolExecutor(1) as other, pytest.raises(KeyboardInterrupt):
            other.submit(interrupt)
            try:
                predict([scene], model, out / "map.tif", FLOAT32)
            finally:
                ended.set()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_names_of_many_scenes_are_looked_at_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    monkeypatch.setattr(step, "_one_name", lambda path: looked.append(path) or str(path))
    counts = []
    for number in (10, 20):
        folder = tmp_path / str(number)
        folder.mkdir()
        scenes = [folder / f"{index}.tif" for index in range(number)]
        for scene in scenes:
            scene.touch()
        looked.clear()
        step._targets(scenes, tmp_path, PredictConfig())
        counts.append(len(looked))
    assert counts[1] == 2 * counts[0], "a hundred thousand scenes are mapped in one go"


def test_a_full_disk_leaves_no_map(tmp_path: Path, model: Path) -> None:
    scene = write(tmp_path / "scene.tif", pixels(300, 400))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=f"File too large.*{tmp_path}"):
            predict([scene], model, tmp_path / "map.tif", FLOAT32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(tmp_path.iterdir()) == [scene]


def test_blocks_lost_on_the_way_to_the_disk_are_noticed(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write(tmp_path / "scene.tif", pixels(70, 80))
    monkeypatch.setattr(maps, "count_pixels", lambda _: np.zeros(256, np.int64))
    with pytest.raises(InputError, match="not what was written"):
        predict([scene], model, tmp_path / "map.tif", FLOAT32)
    assert {path.name for path in tmp_path.iterdir()} == {"scene.tif", ".map.tif.parts"}


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert sliding.choose_precision("auto", "cpu") is torch.float32
    assert sliding.choose_precision("auto", "cuda:0") is torch.bfloat16
    assert sliding.choose_precision("bfloat16", "cpu") is torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert sliding.choose_precision("auto", "cpu") is torch.bfloat16
    assert sliding.choose_precision("float32", "cuda") is torch.float32


def test_out_of_memory_names_what_to_change(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(CrossEarth, "forward", forward)
    scene = write(tmp_path / "scene.tif", pixels(64, 64))
    with pytest.raises(
        InputError, match=r"(?s)out of memory on cpu: precision float32, 1 job.*lower --batch-size"
    ):
        predict([scene], model, tmp_path / "map.tif", FLOAT32)
    assert sorted(tmp_path.iterdir()) == [scene]


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta"])
def test_an_absent_device_is_refused(device: str) -> None:
    with pytest.raises(InputError, match=f"device: '{device}'"):
        choose_device(device)


@pytest.mark.parametrize(
    "described",
    [
        None,
        "[",
        "flavors: {sklearn: {}}",
        "flavors: {python_function: {artifacts: [model]}}",
        "flavors: {python_function: {artifacts: {model: {path: ../../model}}}}",
    ],
)
def test_a_registered_model_of_another_kind_is_refused(
    described: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if described is not None:
        (tmp_path / "MLmodel").write_text(described)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr(registry, "connect", lambda uri: None)
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", lambda **_: str(tmp_path))
    with (
        pytest.raises(InputError, match="is a model of another kind"),
        registry.open_model("models:/crossearth-town@champion"),
    ):
        pass


def test_a_model_of_the_registry_is_fetched_with_its_backbone(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    used: list[tuple[Path, Path | None]] = []
    shared = tmp_path / "backbone.safetensors"

    @contextmanager
    def open_model(uri: str) -> Iterator[tuple[Path, Path]]:
        asked.append(uri)
        yield model, shared

    def run(scenes: list[Path], model: Path, out: Path, config: PredictConfig, shard: Shard) -> list[Path]:
        used.append((model, config.backbone))
        return []

    monkeypatch.setattr(registry, "open_model", open_model)
    monkeypatch.setattr(step, "predict", run)
    model_commands.predict(
        [tmp_path / "scene.tif"], "models:/crossearth-potsdam-rgb@champion", tmp_path / "map.tif"
    )
    assert asked == ["models:/crossearth-potsdam-rgb@champion"]
    assert used == [(model, shared)]


def test_weights_stored_in_bfloat16_give_the_scores_of_autocast(model: Path, network: CrossEarth) -> None:
    loaded = sliding.load_network(model, "bfloat16", "cpu")
    assert loaded.network.backbone.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    windows_B3HW = torch.from_numpy(pixels(64, 64))[None]
    rounded_in_every_pass = sliding.Loaded(network, torch.bfloat16, CLASSES, PALETTE, {})
    expected = sliding.window_scores(rounded_in_every_pass, windows_B3HW)
    assert torch.equal(sliding.window_scores(loaded, windows_B3HW), expected)


def test_the_readmes_lines_of_python(
    documented: Callable[[str], list[str]], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "artifacts/models/potsdam-rgb")
    write(tmp_path / "scene.tif", pixels(70, 80))
    (lines,) = documented("python")
    found: dict[str, Any] = {}
    exec(lines, found)
    assert maps.is_map(Path("map.tif"))
    assert isinstance(found["network"], CrossEarth) and not found["network"].training
    assert "building" in found["classes"]
