"""What ingest stores of a file is what predict shows the network of it: bytes, and which pixels are valid."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from own_domain import NAME, catalog, draw, save
from rasterio.enums import ColorInterp

from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.components.predict.sliding import Loaded, choose_precision
from crossearth.components.predict.step import map_array
from crossearth.components.predict.strips import open_scene, open_view
from crossearth.components.register.mapper import SceneMapper
from crossearth.data.catalog.domains import Tiling
from crossearth.data.catalog.labels import IGNORE
from crossearth.data.common.errors import InputError
from crossearth.data.raster.reader import Raster, gdal
from crossearth.data.raster.reading import BYTES, Reading
from crossearth.data.tiles.manifest import Manifest, read_image, read_label, read_manifest
from crossearth.data.tiles.scenes import SceneTiling, Window, read_window, tile_scene
from crossearth.model.crossearth import CrossEarth, crossearth_tiny
from crossearth.model.weights.checkpoint import save as save_model

SIDE = 40
DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
Image = NDArray[Any]


def predicted(path: Path, trained: Reading) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Image and valid pixels as predict hands them to the network, strip by strip."""
    scene = open_scene(path, trained)
    height, width = scene.seen
    with open_view(scene) as view:
        pieces = [view.look((top, min(top + 9, height)), (0, width)) for top in range(0, height, 9)]
    image = np.concatenate([each for each, _ in pieces], axis=1)
    valid = np.concatenate([each for _, each in pieces])
    return image, valid


@st.composite
def files(draw: st.DrawFn) -> tuple[Image, Reading, dict[str, Any]]:
    """Raw values of a file, how they are read, and its tags."""
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if dtype.startswith("float"):
        values = rng.normal(0, 1000, (4, SIDE, SIDE)).astype(dtype)
        values[:, rng.random((SIDE, SIDE)) < 0.1] = draw(st.sampled_from([np.nan, np.inf, -9999, 0]))
        values[1, rng.random((SIDE, SIDE)) < 0.1] = np.nan
    else:
        bounds = np.iinfo(dtype)
        values = rng.integers(max(bounds.min, -9999), min(bounds.max, 20_000), (4, SIDE, SIDE)).astype(dtype)
        values[:, rng.random((SIDE, SIDE)) < 0.1] = draw(st.sampled_from([0, 7, bounds.min, bounds.max]))
    holes = st.none() | st.sampled_from([0, 7, -9999] if values.dtype.kind != "u" else [0, 7])
    byte = dtype == "uint8" and draw(st.booleans())
    tags = {"scales": (1,) * 4, "offsets": (0,) * 4}
    if not byte:
        tags["scales"] = draw(st.tuples(*[st.sampled_from([1, 0.5, 1e-4, 2])] * 4))
        tags["offsets"] = draw(st.tuples(*[st.sampled_from([0, -1000, 0.1])] * 4))
    if dtype == "int8":
        holes = st.none() | st.sampled_from([0, 7])
    low = draw(st.floats(-2000, 500, width=32))
    reading = Reading(
        draw(st.permutations([1, 2, 3, 4]).map(lambda bands: (bands[0], bands[1], bands[2]))),
        dtype,
        None if byte else (low, low + draw(st.floats(200, 1e5, width=32))),
        draw(holes),
    )
    return values, reading, {**tags, "nodata": draw(holes)}


@given(case=files())
@settings(max_examples=40, deadline=None)
def test_ingest_stores_what_predict_shows_the_network(case: tuple[Image, Reading, dict[str, Any]]) -> None:
    values, reading, tags = case
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reading, "refuse_outside", lambda *_: None)
        folder = Path(name)
        save(folder / "a.tif", values, nodata=tags.pop("nodata"))
        with rasterio.open(folder / "a.tif", "r+") as file:
            file.scales, file.offsets = tags["scales"], tags["offsets"]
        with gdal(), rasterio.open(folder / "a.tif") as file:
            how = SceneTiling(Tiling(16), reading, 0)
            tile_scene(Raster(file, "a.tif"), folder / "stored.tif", how)
        stored = read_window(folder / "stored.tif", Window(0, 0, SIDE, SIDE))
        image, valid = predicted(folder / "a.tif", reading)
    np.testing.assert_array_equal(image, stored)
    # and both are the definition, written out
    raw = values[[band - 1 for band in reading.bands]].astype(np.float64)
    assert not valid[~np.isfinite(raw).all(0)].any()
    if reading.nodata is not None:
        assert not valid[(raw == reading.nodata).all(0)].any()
    if reading.value_range is None:
        wanted = raw
    else:
        low, high = reading.value_range
        of = [band - 1 for band in reading.bands]
        scale, offset = (np.array(tags[key])[of, None, None] for key in ("scales", "offsets"))
        wanted = np.clip((raw * scale + offset - low) / (high - low) * 255, 0, 255)
    assert np.abs(image[:, valid] - wanted[:, valid]).max(initial=0) <= 0.5 + 1e-9


def own(folder: Path, change: Callable[[int], None] = lambda number: None, **entry: Any) -> Manifest:
    """The one split of a user's domain of three scenes; `change(number)` writes the image of each anew."""
    for number in range(3):
        save(folder / "images" / f"scene_{number}.tif", draw(number)[0])
        save(folder / "masks" / f"scene_{number}.png", draw(number)[1])
        change(number)
    entry = {"split": "train", "tile": {"px": 48, "rule": "whole"}} | entry
    (path,) = ingest([NAME], catalog(folder, **entry), folder, folder / "domains", IngestConfig(workers=1))
    return read_manifest(path, "train")


def nodata_tag(path: Path, image: Image) -> None:
    image[:, :20] = 9
    image[1, 30:] = 9
    save(path, image, nodata=9)


def not_a_number(path: Path, image: Image) -> None:
    values = image.astype(np.float32)
    values[:, :20] = np.nan
    values[2, 20:25] = np.inf
    save(path, values)


def opaque(path: Path, image: Image) -> None:
    alpha = np.full((1, *image.shape[1:]), 255, np.uint8)
    alpha[:, :20] = 0
    save(path, np.concatenate([image, alpha]), photometric="RGB", alpha="yes")


def fifth_band_opaque(path: Path, image: Image) -> None:
    alpha = np.full((1, *image.shape[1:]), 255, np.uint8)
    alpha[:, :20] = 0
    save(path, np.concatenate([image, image[:1], alpha]))
    with rasterio.open(path, "r+") as file:
        file.colorinterp = (*file.colorinterp[:4], ColorInterp.alpha)


def mask(path: Path, image: Image, inside: bool = True) -> None:
    save(path, image)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(path, "r+") as file:
        file.write_mask(np.arange(64)[:, None] >= np.full(64, 20))


def mask_beside(path: Path, image: Image) -> None:
    mask(path, image, inside=False)
    assert path.with_suffix(".tif.msk").exists()


def infrared(path: Path, image: Image) -> None:
    """With GDAL's defaults: the fourth band is tagged alpha, and is 0 on water."""
    water = np.maximum(image[:1], 1)
    water[:, :20] = 0
    save(path, np.concatenate([image, water]))
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha


@pytest.mark.parametrize("rule", ["cut", "whole", "fit"])
@pytest.mark.parametrize(
    ("write", "entry", "holes"),
    [
        (nodata_tag, {}, True),
        (nodata_tag, {"nodata": 200}, True),
        (not_a_number, {"value_range": [0, 255], "nodata": -1}, True),
        (opaque, {}, True),
        (fifth_band_opaque, {}, True),
        (mask, {}, True),
        (mask_beside, {}, True),
        (infrared, {"bands": [4, 1, 2]}, False),
        (infrared, {"bands": [1, 2, 3]}, True),
    ],
)
def test_what_ingest_ignores_is_nodata_in_the_map(
    write: Callable[[Path, Image], None], entry: dict[str, Any], holes: bool, rule: str, tmp_path: Path
) -> None:
    manifest = own(
        tmp_path,
        lambda number: write(tmp_path / "images" / f"scene_{number}.tif", draw(number)[0]),
        tile={"px": 40, "rule": rule},
        **entry,
    )
    for row in range(len(manifest)):
        here = manifest.rows[row]
        (top, bottom), (left, right) = (
            (here["row_off"], here["row_off"] + here["height"]),
            (here["col_off"], here["col_off"] + here["width"]),
        )
        image, valid = predicted(tmp_path / "images" / f"{here['scene']}.tif", manifest.reading)
        ignored = read_label(manifest, row) == IGNORE
        np.testing.assert_array_equal(ignored, ~valid[top:bottom, left:right])
        np.testing.assert_array_equal(read_image(manifest, row), image[:, top:bottom, left:right])
        assert holes or not ignored.any()
    ignored_px = sum(row["ignored_pixels"] for row in manifest.rows)
    assert bool(ignored_px) == holes


def test_a_manifest_knows_how_its_files_were_read(tmp_path: Path) -> None:
    def rewrite(number: int) -> None:
        values = np.concatenate([draw(number)[0]] * 2).astype(np.int16) * 20
        profile = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 3e5, 0, -0.5, 5e6)}
        save(tmp_path / "images" / f"scene_{number}.tif", values, **profile)
        with rasterio.open(tmp_path / "images" / f"scene_{number}.tif", "r+") as file:
            file.set_band_description(1, "Near")

    manifest = own(
        tmp_path,
        rewrite,
        bands=[4, 1, 2],
        value_range=[-10, 3000],
        nodata=-1,
        tile={"px": 32, "rule": "fit"},
    )
    assert manifest.reading == Reading(
        (4, 1, 2),
        "int16",
        (-10, 3000),
        -1,
        gsd_m=0.999908,
        fit_px=32,
        largest_px=64,
        names=(("band 4",), ("band 1", "near"), ("band 2",)),
    )


def test_files_with_and_without_tags_agree_in_their_values(tmp_path: Path) -> None:
    """As Sentinel-2 before and after its processing baseline 04: the same ground, other numbers."""

    def rewrite(number: int) -> None:
        path = tmp_path / "images" / f"scene_{number}.tif"
        values = draw(0)[0].astype(np.uint16) * 20
        save(path, values + (1000 if number else 0))
        if number:
            with rasterio.open(path, "r+") as file:
                file.offsets = (-1000,) * 3

    manifest = own(tmp_path, rewrite, value_range=[0, 5000])
    first, *others = (read_image(manifest, index) for index in range(3))
    assert all(np.array_equal(first, other) for other in others)
    assert manifest.reading.tagged
    for number in range(3):
        image, _ = predicted(tmp_path / "images" / f"scene_{number}.tif", manifest.reading)
        np.testing.assert_array_equal(image, first)


def eight_bits(path: Path) -> None:
    save(path, draw(1)[0])


def scaled_by_nothing(path: Path) -> None:
    """Every value is 0."""
    with rasterio.open(path, "r+") as file:
        file.scales = (0.0,) * 3


def scaled_by_no_number(path: Path) -> None:
    """Every value is not a number."""
    with rasterio.open(path, "r+") as file:
        file.scales = (float("nan"),) * 3


def tagged_bytes(path: Path) -> None:
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.5,) * 3, (-10,) * 3


def reflectance(path: Path) -> None:
    with rasterio.open(path, "r+") as file:
        file.scales = (1e-4,) * 3


def complex_values(path: Path) -> None:
    save(path, draw(1)[0].astype(np.complex64))


@pytest.mark.parametrize(
    ("deep", "spoil", "entry", "words"),
    [
        (
            True,
            eight_bits,
            {"value_range": [0, 4000]},
            r"scene_1\.tif: an image of uint8, but .*scene_0\.tif is one of uint16",
        ),
        (
            False,
            tagged_bytes,
            {},
            r"scene_1\.tif: an image of 8 bits .*\n.*\n.*value_range: \[-10, 117\.5\]",
        ),
        (
            True,
            reflectance,
            {"value_range": [0, 4000]},
            r"scene_1\.tif: values 0\.\d* to 0\.\d*, of which the range 0 to 4000 leaves nothing",
        ),
        (
            True,
            lambda _: None,
            {"value_range": [0, 0.4]},
            r"scene_0\.tif: values 8.*leaves nothing",
        ),
        (True, scaled_by_nothing, {"value_range": [0, 4000]}, r"scene_1\.tif: tags that cannot be meant"),
        (True, scaled_by_no_number, {"value_range": [0, 4000]}, r"scene_1\.tif: tags that cannot be meant"),
        (False, complex_values, {"value_range": [0, 255]}, r"scene_1\.tif: complex numbers .*\n.*amplitude"),
    ],
)
def test_files_of_other_values_are_refused_by_name_and_nothing_is_left(
    deep: bool, spoil: Callable[[Path], None], entry: dict[str, Any], words: str, tmp_path: Path
) -> None:
    def rewrite(number: int) -> None:
        path = tmp_path / "images" / f"scene_{number}.tif"
        if deep:
            save(path, draw(number)[0].astype(np.uint16) * 20)
        if number == 1:
            spoil(path)

    with pytest.raises(InputError, match=words):
        own(tmp_path, rewrite, **entry)
    assert not list((tmp_path / "domains").rglob("*"))


# --- arrays through the registered model


@pytest.fixture(scope="module")
def network() -> CrossEarth:
    torch.manual_seed(0)
    return crossearth_tiny(num_classes=3, image_px=64).eval()


def mapped(network: CrossEarth, folder: Path, reading: Reading | None, scene: Any) -> Any:
    meta = {"classes": ["a", "b", "c"], "palette": ["#000000"] * 3, "provenance": "own"}
    model = save_model(network, folder, {**meta, "reading": reading and asdict(reading)})
    mapper = SceneMapper()
    mapper.load_context(SimpleNamespace(artifacts={"model": str(model)}))
    return mapper._map_array(scene)


DEEP = Reading((3, 2, 1), "uint16", (0, 5100))
REAL = Reading((1, 2, 3), "float32", (0, 1), nodata=-1)
COARSE = np.random.default_rng(0).integers(1, 256, (64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("reading", "scene"),
    [
        (None, COARSE),
        (BYTES, COARSE),
        (BYTES, COARSE.tolist()),
        (DEEP, COARSE.astype(np.uint16) * 20),
        (DEEP, (COARSE.astype(int) * 20).tolist()),
        (REAL, COARSE.astype(np.float32) / 255),
        (REAL, (COARSE / 255).tolist()),
        (replace(DEEP, value_range=(0, 1), tagged=True), COARSE / 255),
    ],
)
def test_arrays_are_read_as_the_training_was(
    reading: Reading | None, scene: Any, network: CrossEarth, tmp_path: Path
) -> None:
    loaded = Loaded(network, choose_precision("auto", "cpu"), ["a", "b", "c"], [], {})
    wanted = map_array(loaded, COARSE.transpose(2, 0, 1), np.ones((64, 64), bool))
    assert np.array_equal(mapped(network, tmp_path, reading, scene), wanted)


@pytest.mark.parametrize(
    "reading", [BYTES, DEEP, REAL, replace(DEEP, tagged=True, value_range=(0, 1)), replace(BYTES, fit_px=48)]
)
def test_a_models_example_is_one_that_it_takes(reading: Reading) -> None:
    example = np.asarray(reading.example(32))
    assert example.shape == ((32, 32, 3) if reading.fit_px is None else (48, 48, 3))
    image, valid = reading.of_array(example.transpose(2, 0, 1))
    assert valid.all() and set(np.unique(image)) <= {127, 128}


def test_an_arrays_nodata_is_nodata(network: CrossEarth, tmp_path: Path) -> None:
    scene = COARSE.astype(np.float32) / 255
    scene[:10], scene[10:20, :, 1], scene[30] = -1, np.nan, np.array([-1, 1, 1])
    ids = mapped(network, tmp_path, REAL, scene)
    assert (ids[:20] == 255).all() and (ids[20:] != 255).all()


@pytest.mark.parametrize(
    ("reading", "scene", "words"),
    [
        (None, COARSE.astype(np.uint16) * 20, "an array of uint16\n  expected: values of uint8"),
        (BYTES, COARSE / 255, "an array of float64\n  expected: values of uint8"),
        (BYTES, (COARSE.astype(int) - 100).tolist(), "an array of int64"),
        (DEEP, COARSE, "an array of uint8\n  expected: values of uint16, 0 to 5100"),
        (DEEP, COARSE / 255, "an array of float64"),
        (REAL, COARSE.astype(np.float32) * 20, "values 20 to 5100, of which the range 0 to 1 leaves nothing"),
        (REAL, COARSE.astype(np.float32) * 1e-6, "leaves nothing"),
        (REAL, COARSE.astype(np.float32) / 66_000, "leaves nothing"),  # two levels of 256 are left
        (replace(DEEP, tagged=True), COARSE.astype(np.uint16), "expected: floating-point values after scale"),
        (replace(BYTES, fit_px=48), COARSE, "64 x 64 px\n  expected: a longer side of 48 px"),
        (BYTES, COARSE[..., :2], r"\(H, W, 3\)"),
    ],
)
def test_other_arrays_are_refused(
    reading: Reading | None, scene: Any, words: str, network: CrossEarth, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        mapped(network, tmp_path, reading, scene)
