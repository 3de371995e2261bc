import hashlib
import itertools
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from own_domain import save
from rasterio.transform import from_origin

from crossearth.data.catalog.domains import Tiling, window_starts
from crossearth.data.catalog.labels import IGNORE, parse_labels
from crossearth.data.common.errors import InputError
from crossearth.data.raster.masks import RasterLabels
from crossearth.data.raster.reader import Raster, gdal
from crossearth.data.raster.reading import Reading
from crossearth.data.tiles.scenes import SceneTiling, Window, dhash, read_window, tile_scene, windows

CLASSES = ("ground", "road", "roof")
SPEC = parse_labels({0: "ground", 1: "road", 2: "roof", 9: "ignore"}, CLASSES, "test")
PLACE = from_origin(300_000, 5_000_000, 0.05, 0.05)


def tiling(px: int = 64, rule: Any = "cut", **changes: Any) -> SceneTiling:
    how = {"bands": (1, 2, 3), "dtype": "uint8", "fit_px": px if rule == "fit" else None}
    names = {field.name for field in fields(Reading)}
    how |= {name: value for name, value in changes.items() if name in names}
    other = {name: value for name, value in changes.items() if name not in names}
    return SceneTiling(Tiling(px, rule), Reading(**how), **{"num_classes": 3, **other})


def cut(
    folder: Path, image: Path, label: Path, how: SceneTiling, spec: Any = SPEC, unknown: Any = "error"
) -> list[dict[str, Any]]:
    with rasterio.open(image) as one, rasterio.open(label) as two:
        labels = RasterLabels(Raster(two, str(label)), spec, unknown)
        return tile_scene(Raster(one, str(image)), folder / "i.tif", how, labels, folder / "l.tif")


@pytest.fixture
def scene() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 150, 210), np.uint8)
    return image, rng.choice(np.array([0, 1, 2, 9], np.uint8), (150, 210))


@given(length=st.integers(1, 7000), px=st.integers(1, 1600), share=st.sampled_from([1, 2 / 3, 1 / 2]))
def test_windows_cover_a_side_and_stay_inside(length: int, px: int, share: float) -> None:
    stride = max(1, round(px * share))
    begin = window_starts(length, px, stride)
    size = min(px, length)
    assert begin[0] == 0
    assert begin[-1] + size == length
    assert all(0 < later - earlier <= stride for earlier, later in itertools.pairwise(begin))
    assert len(begin) == 1 + -(-(length - size) // stride)


def test_a_potsdam_scene_has_144_tiles_the_last_shifted_back() -> None:
    found = windows(6000, 6000, 512, "cut")
    assert len(found) == 144
    assert found[-1] == Window(5488, 5488, 512, 512)


def test_tiles_are_windows_of_the_source(tmp_path: Path, scene: Any) -> None:
    image, label = scene
    georeference = {"crs": "EPSG:32633", "transform": PLACE}
    rows = cut(
        tmp_path, save(tmp_path / "a.tif", image, **georeference), save(tmp_path / "b.tif", label), tiling()
    )
    assert len(rows) == 3 * 4
    ids = np.where(label == 9, IGNORE, label)
    for row in rows:
        window = Window(*(row[name] for name in Window._fields))
        (top, bottom), (left, right) = window.slices()
        wanted, wanted_ids = image[:, top:bottom, left:right], ids[top:bottom, left:right]
        np.testing.assert_array_equal(read_window(tmp_path / "i.tif", window), wanted)
        np.testing.assert_array_equal(read_window(tmp_path / "l.tif", window)[0], wanted_ids)
        assert row["sha256_image"] == hashlib.sha256(wanted.tobytes()).hexdigest()
        assert row["sha256_label"] == hashlib.sha256(wanted_ids.tobytes()).hexdigest()
        assert row["class_pixels"] == [int((wanted_ids == index).sum()) for index in range(3)]
        assert row["ignored_pixels"] == int((wanted_ids == IGNORE).sum())
        assert row["transform"] == pytest.approx(
            [0.05, 0, 300_000 + left * 0.05, 0, -0.05, 5_000_000 - top * 0.05]
        )
        assert row["crs"] == "EPSG:32633"


def test_the_stored_scene_keeps_its_place(tmp_path: Path, scene: Any) -> None:
    image, label = scene
    source = save(tmp_path / "a.tif", image, crs="EPSG:32633", transform=PLACE)
    cut(tmp_path, source, save(tmp_path / "b.tif", label), tiling())
    with rasterio.open(tmp_path / "i.tif") as stored, rasterio.open(tmp_path / "l.tif") as stored_label:
        assert stored.crs == stored_label.crs == "EPSG:32633"
        assert stored.transform == stored_label.transform == PLACE
        assert (stored.width, stored.height) == (210, 150)


def test_equal_input_gives_equal_bytes(tmp_path: Path, scene: Any) -> None:
    image, label = scene
    source, source_label = save(tmp_path / "a.tif", image), save(tmp_path / "b.tif", label)
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        cut(tmp_path / name, source, source_label, tiling())
        written.append([(tmp_path / name / file).read_bytes() for file in ("i.tif", "l.tif")])
    assert written[0] == written[1]


def test_whole_keeps_a_scene_of_any_size(tmp_path: Path, scene: Any) -> None:
    image, label = scene
    rows = cut(
        tmp_path, save(tmp_path / "a.tif", image), save(tmp_path / "b.tif", label), tiling(rule="whole")
    )
    assert [Window(*(row[name] for name in Window._fields)) for row in rows] == [Window(0, 0, 210, 150)]


def test_fit_scales_the_longer_side_and_never_mixes_labels(tmp_path: Path, scene: Any) -> None:
    image, label = scene
    source = save(tmp_path / "a.tif", image, crs="EPSG:32633", transform=PLACE)
    (row,) = cut(tmp_path, source, save(tmp_path / "b.tif", label), tiling(px=70, rule="fit"))
    assert (row["width"], row["height"]) == (70, 50)
    assert row["transform"][:2] == pytest.approx([0.15, 0])
    ids = read_window(tmp_path / "l.tif", Window(0, 0, 70, 50))[0]
    np.testing.assert_array_equal(ids, np.where(label == 9, IGNORE, label)[1::3, 1::3])


def test_a_scene_smaller_than_a_tile_is_one_tile(tmp_path: Path, scene: Any) -> None:
    image, label = scene
    rows = cut(tmp_path, save(tmp_path / "a.tif", image), save(tmp_path / "b.tif", label), tiling(px=180))
    assert [(row["width"], row["height"], row["col_off"]) for row in rows] == [(180, 150, 0), (180, 150, 30)]


def test_nodata_is_counted_and_ignored(tmp_path: Path, scene: Any) -> None:
    image, label = scene
    image[:, :75] = 7
    rows = cut(
        tmp_path,
        save(tmp_path / "a.tif", image),
        save(tmp_path / "b.tif", label),
        tiling(rule="whole", nodata=7),
    )
    assert rows[0]["nodata_share"] == 0.5
    assert (read_window(tmp_path / "l.tif", Window(0, 0, 210, 75)) == IGNORE).all()


def test_transparent_and_black_pixels_count_as_nodata(tmp_path: Path, scene: Any) -> None:
    image, label = scene
    alpha = np.full((1, 150, 210), 255, np.uint8)
    alpha[:, :75] = 0
    image[:, 75:90] = 0
    source = save(tmp_path / "a.tif", np.concatenate([image, alpha]), photometric="RGB", alpha="yes")
    (row,) = cut(tmp_path, source, save(tmp_path / "b.tif", label), tiling(rule="whole"))
    assert row["nodata_share"] == pytest.approx(0.6)
    # black is a colour to the labels, transparency is not
    ids = np.where(label == 9, IGNORE, label)
    ids[:75] = IGNORE
    np.testing.assert_array_equal(read_window(tmp_path / "l.tif", Window(0, 0, 210, 150))[0], ids)


@pytest.mark.parametrize(("px", "rule"), [(64, "cut"), (210, "whole"), (70, "fit")])
def test_what_the_file_masks_in_the_three_bands_is_not_scored(
    px: int, rule: Any, tmp_path: Path, scene: Any
) -> None:
    raw = np.maximum(scene[0], 1).astype(np.int16)
    raw = np.concatenate([raw, raw[:1]])
    raw[:3, :75] = -9999  # the fourth band, which nobody asked for, saw something there
    raw[0, 75:90] = -9999
    source = save(tmp_path / "a.tif", raw, nodata=-9999)
    label = save(tmp_path / "b.tif", np.ones((150, 210), np.uint8))
    how = tiling(px, rule, dtype="int16", value_range=(0, 255))
    rows = cut(tmp_path, source, label, how)
    with rasterio.open(tmp_path / "l.tif") as stored:
        ids = stored.read(1)
    half = len(ids) // 2
    assert (ids[: half - 1] == IGNORE).all()
    # "fit" mixes the rows at the border, and something was seen there
    assert (ids[half - 1] == (1 if rule == "fit" else IGNORE)).all()
    assert (ids[half:] == 1).all()
    assert sum(row["ignored_pixels"] for row in rows) > 0


def test_unknown_labels_are_counted_over_the_scene(tmp_path: Path, scene: Any) -> None:
    image, label = scene
    label[10:140, 3] = 77
    source, source_label = save(tmp_path / "a.tif", image), save(tmp_path / "b.tif", label)
    with pytest.raises(InputError, match=r"b\.tif: 130 of 31500 label pixels .* 77 \(130 px\)"):
        cut(tmp_path, source, source_label, tiling())
    rows = cut(tmp_path, source, source_label, tiling(rule="whole"), unknown="ignore")
    assert rows[0]["ignored_pixels"] == int(np.isin(label, (9, 77)).sum())


def test_a_fitted_label_has_its_masks_classes_whatever_its_overviews_show(tmp_path: Path) -> None:
    label = np.zeros((400, 400), np.uint8)
    label[::3, ::2] = 2
    path = save(tmp_path / "b.tif", label, tiled=True, blockxsize=128, blockysize=128)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], rasterio.enums.Resampling.average)
    with rasterio.open(path, OVERVIEW_LEVEL=0) as file:
        assert 1 in file.read(), "an overview that mixes classes"
    source = save(tmp_path / "a.tif", np.ones((3, 400, 400), np.uint8))
    (row,) = cut(tmp_path, source, path, tiling(100, "fit"))
    assert row["class_pixels"][1] == 0 and row["class_pixels"][2] > 0


def test_a_stored_scene_is_a_geotiff_and_nothing_that_points_elsewhere(tmp_path: Path, scene: Any) -> None:
    image, _ = scene
    save(tmp_path / "elsewhere.tif", image)
    rasterio.shutil.copy(tmp_path / "elsewhere.tif", tmp_path / "stored.tif", driver="VRT")
    with pytest.raises(InputError, match=r"stored\.tif: cannot read the tile"):
        read_window(tmp_path / "stored.tif", Window(0, 0, 9, 9))


def test_looks_tell_neighbours_from_copies() -> None:
    rng = np.random.default_rng(0)
    ground = rng.normal(size=(40, 40)).cumsum(0).cumsum(1)
    ground = (255 * (ground - ground.min()) / np.ptp(ground)).repeat(8, 0).repeat(8, 1)

    def bits(a: str, b: str) -> int:
        return (int(a, 16) ^ int(b, 16)).bit_count()

    tile, neighbour = ground[:256, :256].astype(np.uint8), ground[64:, 64:].astype(np.uint8)
    brighter = np.clip(tile * 0.8 + 20 + rng.normal(0, 2, tile.shape), 0, 255).astype(np.uint8)
    assert len(dhash(tile)) == 64
    assert bits(dhash(tile), dhash(brighter)) <= 16
    assert bits(dhash(tile), dhash(neighbour)) > 40
    assert dhash(np.full((256, 256), 9, np.uint8)) == "0" * 64


def test_files_are_opened_without_a_session_of_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    def session(*_: Any, **__: Any) -> None:
        raise AssertionError("a boto3 session for a local file")

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    monkeypatch.setattr("boto3.Session", session)
    with pytest.raises(AssertionError), rasterio.Env():
        pass
    with gdal():
        pass
