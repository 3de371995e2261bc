"""Drawn archives: packed as the publishers pack, read as theirs are, hard as the benchmark is."""

import io
import json
import math
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import rasterio
from rasterio.io import MemoryFile

from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.components.synthesize import packers
from crossearth.components.synthesize.packers import (
    PACKERS,
    PROVENANCE_FILE,
    Draughtsman,
    SyntheticScene,
    synthesize_dataset,
    synthetic,
)
from crossearth.components.synthesize.step import SynthesizeConfig, synthesize
from crossearth.components.synthesize.world import Land, Material, Sensor, _shade
from crossearth.data.catalog.labels import IGNORE
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.errors import InputError
from crossearth.data.tiles.manifest import Manifest, read_image, read_label, read_manifest

MIB = 2**20
CATALOG = load_catalog()
LABELLED = [domain for domain in CATALOG.domains.values() if domain.labels]
MINI = IngestConfig(tile_px=128, workers=1)


class Synthetic(NamedTuple):
    archives: Path
    manifests: dict[tuple[str, str], Manifest]


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    """All archives, and what `ingest` makes of them; of Million-AID's kinds of land the first two."""
    folder = tmp_path_factory.mktemp("synthetic")
    known = synthetic()
    few = replace(known, million_aid=dict(islice(known.million_aid.items(), 2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packers, "synthetic", lambda: few)
        synthesize(list(PACKERS), folder / "archives", SynthesizeConfig(), seed=0)
    names = [domain.name for domain in LABELLED]
    domains = zip(names, ingest(names, CATALOG, folder / "archives", folder / "domains", MINI), strict=True)
    manifests = {
        (name, split): read_manifest(path, split)
        for name, path in domains
        for split in CATALOG.domain(name).splits
    }
    return Synthetic(folder / "archives", manifests)


def archives(folder: Path) -> Iterator[tuple[str, zipfile.ZipFile]]:
    for path in sorted(folder.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            yield path.name, archive


def opened(archive: zipfile.ZipFile, name: str) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    with MemoryFile(archive.read(name)) as memory, memory.open() as file:
        return dict(file.profile), file.read()


def test_a_dataset_is_drawn_under_its_archives_names(everything: Synthetic) -> None:
    for name in PACKERS:
        dataset, folder = CATALOG.datasets[name], everything.archives / name
        assert {path.name for path in folder.iterdir()} == {
            *(archive.name for archive in dataset.archives),
            PROVENANCE_FILE,
        }
        about = json.loads((folder / PROVENANCE_FILE).read_text())
        assert about == {"provenance": "synthetic", "dataset": name, "seed": 0, "counts": "mini"}


@pytest.mark.parametrize(
    ("archive", "name"),
    [
        ("potsdam/2_Ortho_RGB.zip", "2_Ortho_RGB/top_potsdam_2_10_RGB.tif"),
        ("potsdam/3_Ortho_IRRG.zip", "3_Ortho_IRRG/top_potsdam_7_13_IRRG.tif"),
        ("potsdam/5_Labels_all_noBoundary.zip", "top_potsdam_6_15_label_noBoundary.tif"),
        ("vaihingen/ISPRS_semantic_labeling_Vaihingen.zip", "top/top_mosaic_09cm_area38.tif"),
        ("vaihingen/ISPRS_semantic_labeling_Vaihingen.zip", "gts_for_participants/top_mosaic_09cm_area1.tif"),
        (
            "vaihingen/ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip",
            "top_mosaic_09cm_area2_noBoundary.tif",
        ),
        ("loveda/Train.zip", "Train/Rural/images_png/0.png"),
        ("loveda/Val.zip", "Val/Urban/masks_png/96.png"),
        (
            "whu/3. The cropped image tiles and raster labels.zip",
            "3. The cropped image tiles and raster labels/val/label/1.tif",
        ),
        (
            "whu/Satellite dataset II (East Asia).zip",
            "Satellite dataset II (East Asia)/1. The cropped image data and raster labels/test/image/1.tif",
        ),
        ("massachusetts/Massachusetts.zip", "tiff/test_labels/10078660_15.tif"),
        ("rescuenet/RescueNet.zip", "RescueNet/test/test-label-img/10777_lab.png"),
        ("casid/CASID.zip", "CASID/TroRf/all_test/label/TroRf0013_00-label.png"),
        ("million-aid/train.zip", "train/agriculture_land/woodland/forest/P0000017.jpg"),
    ],
)
def test_files_lie_where_the_publisher_puts_them(everything: Synthetic, archive: str, name: str) -> None:
    with zipfile.ZipFile(everything.archives / archive) as packed:
        assert name in packed.namelist()


def test_formats_depths_and_georeference_are_the_publishers(everything: Synthetic) -> None:
    kinds: dict[str, set[tuple[Any, ...]]] = {}
    for dataset in PACKERS:
        for name, archive in archives(everything.archives / dataset):
            for member in archive.namelist()[:6]:
                if member.endswith(".tfw"):
                    continue
                profile, _ = opened(archive, member)
                place = None if profile["crs"] is None else (profile["crs"].to_epsg(), profile["transform"].a)
                kinds.setdefault(f"{dataset}/{name}", set()).add(
                    (profile["driver"], profile["dtype"], profile["count"], place)
                )
    vaihingen = "vaihingen/ISPRS_semantic_labeling_Vaihingen"
    assert kinds["potsdam/2_Ortho_RGB.zip"] == {("GTiff", "uint8", 3, (32633, 0.05))}
    assert kinds["potsdam/3_Ortho_IRRG.zip"] == {("GTiff", "uint8", 3, (32633, 0.05))}
    assert kinds["potsdam/5_Labels_all_noBoundary.zip"] == {("GTiff", "uint8", 3, (32633, 0.05))}
    assert ("GTiff", "uint8", 3, (32632, 0.09)) in kinds[f"{vaihingen}.zip"]
    assert kinds["loveda/Train.zip"] == {("PNG", "uint8", 3, None), ("PNG", "uint8", 1, None)}
    assert kinds["whu/Satellite dataset II (East Asia).zip"] == {
        ("GTiff", "uint8", 3, None),
        ("GTiff", "uint8", 1, None),
    }
    assert kinds["deepglobe/DeepGlobe.zip"] == {("JPEG", "uint8", 3, None), ("PNG", "uint8", 3, None)}
    assert kinds["rescuenet/RescueNet.zip"] == {("JPEG", "uint8", 3, None), ("PNG", "uint8", 1, None)}
    assert kinds["million-aid/train.zip"] == {("JPEG", "uint8", 3, None)}


def test_world_files_say_what_the_tiffs_say(everything: Synthetic) -> None:
    with zipfile.ZipFile(everything.archives / "potsdam/2_Ortho_RGB.zip") as archive:
        stem = "2_Ortho_RGB/top_potsdam_6_7_RGB"
        transform = opened(archive, f"{stem}.tif")[0]["transform"]
        a, d, b, e, x, y = map(float, io.StringIO(archive.read(f"{stem}.tfw").decode()))
    assert (a, d, b, e) == (transform.a, transform.d, transform.b, transform.e)
    assert (x, y) == (transform.c + 0.025, transform.f - 0.025)


@pytest.mark.parametrize("domain", LABELLED, ids=lambda domain: domain.name)
def test_the_reader_of_real_data_reads_every_domain(everything: Synthetic, domain: Any) -> None:
    classes = CATALOG.class_sets[domain.class_set].classes
    for split in domain.splits:
        manifest = everything.manifests[domain.name, split]
        assert manifest.provenance == "synthetic"
        counts = np.array([row["class_pixels"] for row in manifest.rows]).sum(axis=0)
        shares = dict(zip(classes, (counts / counts.sum()).round(4).tolist(), strict=True))
        assert min(shares.values()) > 0.001, shares
        assert len({row["sha256_image"] for row in manifest.rows}) == len(manifest)
        looked = [read_image(manifest, index) for index in range(0, len(manifest), 5)]
        assert all(image.std() > 8 and image.shape[0] == 3 for image in looked)


def test_no_scene_is_in_both_splits_and_casid_has_several_crops_of_each(everything: Synthetic) -> None:
    for domain in LABELLED:
        scenes = [
            {row["scene"] for row in everything.manifests[domain.name, split].rows} for split in domain.splits
        ]
        if len(scenes) == 2 and (domain.dataset in ("potsdam", "vaihingen", "casid")):
            assert not scenes[0] & scenes[1], domain.name
    rows = everything.manifests["casid-tem", "train"].rows
    scenes_of_tiles = [row["scene"] for row in rows]
    assert {scenes_of_tiles.count(scene) for scene in scenes_of_tiles} == {4}


def test_plants_are_red_in_irrg_and_green_in_rgb(everything: Synthetic) -> None:
    def mean_colour(name: str, class_id: int) -> np.ndarray[Any, Any]:
        manifest = everything.manifests[name, "train"]
        picked = [
            read_image(manifest, index)[:, read_label(manifest, index) == class_id]
            for index in range(0, len(manifest), 7)
        ]
        return np.concatenate(picked, axis=1).mean(axis=1)

    for plants in (2, 3):
        for name in ("potsdam-irrg", "vaihingen-irrg"):
            first, second, third = mean_colour(name, plants)
            assert first > 1.3 * second and first > 1.3 * third
        red, green, blue = mean_colour("potsdam-rgb", plants)
        assert green > red and green > blue
    rgb, irrg = everything.manifests["potsdam-rgb", "test"], everything.manifests["potsdam-irrg", "test"]
    assert np.array_equal(read_image(rgb, 0)[:2], read_image(irrg, 0)[1:])
    assert np.array_equal(read_label(rgb, 0), read_label(irrg, 0))


def test_borders_of_isprs_classes_are_not_scored(everything: Synthetic) -> None:
    for name in ("potsdam-rgb", "vaihingen-irrg"):
        manifest = everything.manifests[name, "train"]
        ignored = sum(row["ignored_pixels"] for row in manifest.rows)
        assert 0.02 < ignored / sum(row["width"] * row["height"] for row in manifest.rows) < 0.3
        label = read_label(manifest, 3)
        beside = (label[:, 1:] != label[:, :-1]) & (label[:, 1:] != IGNORE) & (label[:, :-1] != IGNORE)
        assert not beside.any()


def test_the_publishers_spoilt_labels_are_spoilt_here_too(everything: Synthetic) -> None:
    labels = CATALOG.domain("potsdam-rgb").labels
    assert labels is not None
    with zipfile.ZipFile(everything.archives / "potsdam/5_Labels_all_noBoundary.zip") as archive:
        for scene in ("4_12", "6_7"):
            _, raw = opened(archive, f"top_potsdam_{scene}_label_noBoundary.tif")
            with pytest.raises(InputError, match="colours outside the map"):
                labels.decode(raw)
        clean = opened(archive, "top_potsdam_2_10_label_noBoundary.tif")[1]
        assert np.array_equal(replace(labels, snap=True).decode(clean), labels.decode(clean))


Samples = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def samples(manifest: Manifest, remap: tuple[int, ...]) -> Samples:
    """Colours of some pixels and of their neighbourhoods (N, 9), and their class ids (N,)."""
    lut = np.full(256, IGNORE)
    lut[: len(remap)] = remap
    values, ids = [], []
    for index in range(0, len(manifest), 2):
        image, label = read_image(manifest, index).astype(np.float32), lut[read_label(manifest, index)]
        around = [np.roll(image, shift, axis) for axis in (1, 2) for shift in (-3, 3)]
        features = np.concatenate([image, np.mean(around, axis=0), np.std(around, axis=0)])
        kept = label != IGNORE
        values.append(features[:, kept].T[::17])
        ids.append(label[kept][::17])
    return np.concatenate(values), np.concatenate(ids)


class Naive:
    """Nearest mean colour of a class, over the colour and its neighbourhood: what transfers worst."""

    def __init__(self, values: np.ndarray[Any, Any], ids: np.ndarray[Any, Any]) -> None:
        self.centre, self.spread = values.mean(axis=0), values.std(axis=0)
        scaled = (values - self.centre) / self.spread
        self.means = np.array([scaled[ids == k].mean(axis=0) for k in range(ids.max() + 1)])

    def score(self, values: np.ndarray[Any, Any], ids: np.ndarray[Any, Any], adapt: bool = False) -> float:
        """Mean recall over the classes; adapted, with the target's own mean and spread of colours."""
        centre, spread = (values.mean(axis=0), values.std(axis=0)) if adapt else (self.centre, self.spread)
        scaled = (values - centre) / spread
        guess = ((scaled[:, None] - self.means) ** 2).sum(axis=2).argmin(axis=1)
        return float(np.mean([(guess[ids == k] == k).mean() for k in np.unique(ids)]))


@pytest.fixture(scope="session")
def naive_scores(everything: Synthetic) -> dict[str, tuple[float, float, float]]:
    """Per cross-domain setting: recall at home, on the target, and on the target with adapted colours."""

    @cache
    def seen(domain: str, split: str, class_set: str) -> Samples:
        remap = CATALOG.remap(str(CATALOG.domain(domain).class_set), class_set)
        return samples(everything.manifests[domain, split], remap)

    scores = {}
    for recipe in CATALOG.recipes().values():
        source = CATALOG.domain(recipe.source)
        model = Naive(*seen(source.name, "train", recipe.class_set))
        home = model.score(*seen(source.name, source.splits[-1], recipe.class_set))
        for setting in recipe.settings:
            if setting.gap != "in-domain":
                target = seen(setting.target, "test", recipe.class_set)
                scores[setting.abbr] = (home, model.score(*target), model.score(*target, adapt=True))
    return scores


def test_the_shift_between_domains_hurts_a_naive_model(naive_scores: dict[str, Any]) -> None:
    losses = {abbr: home - away for abbr, (home, away, _) in naive_scores.items()}
    assert len(losses) == 25
    assert np.mean(list(losses.values())) > 0.08, losses
    assert np.mean([loss > 0.02 for loss in losses.values()]) > 0.7, losses


def test_what_is_common_to_the_domains_can_be_learned(naive_scores: dict[str, Any]) -> None:
    gains = {abbr: adapted - away for abbr, (_, away, adapted) in naive_scores.items()}
    assert np.mean(list(gains.values())) > 0.015, gains


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def content(name: str, seed: int) -> dict[str, bytes]:
        folder = synthesize_dataset("deepglobe", tmp_path / name, seed)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    first = content("a", 7)
    assert content("b", 7) == first
    assert content("a", 7) == first  # over what is there already
    assert content("c", 8)["DeepGlobe.zip"] != first["DeepGlobe.zip"]


def test_full_counts_give_the_published_number_of_windows(tmp_path: Path) -> None:
    px = 512 // Draughtsman.SHRINK
    for dataset, prefix in (("potsdam", "2_Ortho_RGB/"), ("vaihingen", "top/")):
        domain = CATALOG.domains_of(dataset)[0]
        folder = synthesize_dataset(dataset, tmp_path, 0, "full")
        windows: dict[str, int] = {}
        with zipfile.ZipFile(folder / CATALOG.dataset(dataset).archives[0].name) as archive:
            for name in archive.namelist():
                if name.startswith(prefix) and name.endswith(".tif"):
                    profile, _ = opened(archive, name)
                    key = domain.key_of(Path(name).stem)
                    windows[key] = math.ceil(profile["width"] / px) * math.ceil(profile["height"] / px)
        for split in domain.splits:
            files = domain.files(split)
            assert sum(windows[scene] for scene in files.scenes) == files.tiles


def test_a_publishers_files_are_never_overwritten(tmp_path: Path) -> None:
    real = tmp_path / "loveda" / "Train.zip"
    real.parent.mkdir()
    real.write_bytes(b"four gigabytes of somebody's evening")
    with pytest.raises(InputError, match="no synthetic archives"):
        synthesize(["loveda"], tmp_path, SynthesizeConfig(), seed=0)
    assert real.read_bytes() == b"four gigabytes of somebody's evening"
    assert [path.name for path in tmp_path.iterdir()] == ["loveda"]


def test_a_dataset_without_synthetic_archives_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'lovdea' has no synthetic archives\n.*'loveda'\?"):
        synthesize(["lovdea"], tmp_path, SynthesizeConfig(), seed=0)
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_said_before_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10 * MIB, 5 * MIB, 5 * MIB))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"drawing archives needs about 83\.9 MB, 5\.2 MB are free"):
        synthesize(["deepglobe"], tmp_path, SynthesizeConfig(), seed=0)
    assert list(tmp_path.iterdir()) == []


def test_shade_falls_away_from_the_sun_as_far_as_the_sun_is_low() -> None:
    def shaded(azimuth: float, elevation: float) -> list[tuple[int, int]]:
        zero = np.zeros((15, 15), np.float32)
        height = zero.copy()
        height[7, 7] = 4
        land = Land(zero.astype(np.uint8), zero > 0, height, zero, zero, zero, zero.astype(np.uint8))
        sensor = Sensor(1.0, sun_azimuth=azimuth, sun_elevation=elevation)
        return [(int(row) - 7, int(col) - 7) for row, col in np.argwhere(_shade(land, sensor))]

    # azimuth 0 is the image's top: shade falls downwards
    assert shaded(0, 45) == [(1, 0), (2, 0), (3, 0)]
    assert shaded(90, 45) == [(0, -3), (0, -2), (0, -1)]
    assert len(shaded(180, 20)) > len(shaded(180, 45))
    assert shaded(180, 5) == [(-step, 0) for step in range(7, 0, -1)]


@pytest.mark.parametrize("name", synthetic().worlds)
def test_roads_and_roofs_are_as_wide_as_a_small_network_needs(name: str) -> None:
    world = synthetic().worlds[name]
    pen = Draughtsman(3, "mini")
    scenes = [pen.scene(world, 128, 128, pen.rng(name, index)) for index in range(6)]
    share = np.mean([scene.land.material == Material.ROAD for scene in scenes])
    assert 0.04 < share < 0.5
    assert all(isinstance(scene, SyntheticScene) and scene.image.shape == (4, 128, 128) for scene in scenes)
    fit = 0.5 if name == "rescuenet" else 1.0  # its images are halved by ingest
    width_px = fit * world.landscape.road_m / world.sensor.m_per_px
    lot_px = fit * world.landscape.lot_m * world.landscape.roof / world.sensor.m_per_px
    assert 8 <= width_px <= 15
    assert 13 <= lot_px <= 40


def test_rasterio_is_not_left_with_side_files(everything: Synthetic) -> None:
    assert not list(everything.archives.rglob("*.aux.xml"))
    assert rasterio.__version__
