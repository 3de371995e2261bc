import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from great_expectations.data_context import EphemeralDataContext
from mlflow.tracking import MlflowClient
from own_domain import NAME, catalog, draw, own_domain, save, tree
from rasterio import Affine
from rasterio.io import MemoryFile
from rasterio.transform import from_origin
from rasterio.warp import transform
from typer.testing import CliRunner

from crossearth.components.cli.app import app
from crossearth.components.ingest.preview import EXPERIMENT
from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.components.runtime.params import Params
from crossearth.components.validate import step
from crossearth.components.validate.expectations import expectations, validate_manifests
from crossearth.components.validate.step import validate
from crossearth.components.validate.validation import ValidateConfig, near_duplicates
from crossearth.data.catalog.domains import Catalog, Domain, Files
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.errors import InputError
from crossearth.data.raster.ground import Place, overlaps
from crossearth.data.raster.reading import Reading
from crossearth.data.tiles.manifest import Manifest, read_manifest, write_manifest


def ingested(folder: Path, **entry: Any) -> Catalog:
    known = catalog(folder, **entry)
    ingest([NAME], known, folder / "archives", folder / "domains", IngestConfig(workers=1))
    return known


def rewrite(folder: Path, split: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Changes rows of a manifest."""
    root = folder / "domains" / NAME / NAME
    rows = [change(row) for row in read_manifest(root, split).rows]
    write_manifest(
        root,
        NAME,
        split,
        ("background", "road"),
        "own",
        Reading((1, 2, 3), "uint8"),
        [row for row in rows if row],
    )


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking store of these tests' own."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLFLOW_TRACKING_URI", uri)
        environment.chdir(folder)
        yield uri


pytestmark = pytest.mark.usefixtures("tracking")


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Great Expectations' pages take half of the time of a validation."""
    monkeypatch.setattr(EphemeralDataContext, "build_data_docs", lambda _: None)
    monkeypatch.setattr(step, "_page", lambda *_: "docs/none.html")


@pytest.fixture(scope="module")
def whole_town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("town")
    own_domain(folder)
    ingested(folder)
    return folder


@pytest.fixture
def town(whole_town: Path, tmp_path: Path) -> Path:
    """An ingested domain that a test may change."""
    return shutil.copytree(whole_town, tmp_path, dirs_exist_ok=True)


def test_a_sound_domain_passes_and_its_digests_are_written(town: Path) -> None:
    known = catalog(town)
    out = validate(known, town / "domains", town / "validation", ValidateConfig())
    train, test = (read_manifest(town / "domains" / NAME / NAME, split) for split in ("train", "test"))
    summary = json.loads((out / "summary.json").read_text())["domains"][NAME]
    assert summary["splits"]["test"] == {"tiles": len(test), "digest": test.digest}
    assert summary["provenance"] == "own"
    assert summary["checks"] and all(check["passed"] for check in summary["checks"])
    assert summary["equal_tiles_across_splits"] == 0
    assert json.loads((out / "digests" / f"{NAME}.json").read_text()) == {"train": train.digest}
    assert "scene_in_both_splits" in (out / summary["docs"]).read_text()
    index = (out / "docs" / "index.html").read_text()
    (page,) = re.findall('href="(.*?)"', index)
    assert (out / "docs" / page).is_file() and "://" not in index
    counts = json.loads((out / "summary.json").read_text())["counts"]
    assert counts == {
        "domains": 1,
        "tiles": len(train) + len(test),
        "checks": len(summary["checks"]),
        "failed": 0,
    }
    assert f"1 domains, {counts['tiles']} tiles: {counts['checks']} expectations, 0 failed" in index


@pytest.mark.usefixtures("no_pages")
def test_a_recipe_hangs_on_the_test_splits_of_its_targets(town: Path) -> None:
    file = town / "settings.yaml"
    file.write_text(f"settings: {{T2T: {{source: {NAME}, target: {NAME}, gap: in-domain}}}}")
    known = load_catalog([town / "catalog.yaml", file], town)
    out = validate(known, town / "domains", town / "validation", ValidateConfig())
    digests = json.loads((out / "recipes" / f"{NAME}.json").read_text())
    assert digests == {NAME: read_manifest(town / "domains" / NAME / NAME, "test").digest}


def without_roads(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "class_pixels": [48 * 48, 0]}


def two_towns(folder: Path) -> Catalog:
    """`town` and `city`, of the same files, each the other's target."""
    own_domain(folder, num=6)
    entry = yaml.safe_load((folder / "catalog.yaml").read_text())["domains"][NAME]
    settings = {
        f"{a}2{b}": {"source": a, "target": b, "gap": "region"} for a, b in ((NAME, "city"), ("city", NAME))
    }
    sections = {"domains": {NAME: entry, "city": entry}, "settings": settings}
    (folder / "catalog.yaml").write_text(yaml.safe_dump(sections))
    known = load_catalog([folder / "catalog.yaml"], folder)
    ingest([NAME, "city"], known, folder / "archives", folder / "domains", IngestConfig(workers=1))
    return known


def results(folder: Path) -> dict[str, Any]:
    """What was found, but for the docs' pages, whose names hold the time."""
    found = {name: json.loads(text) for name, text in tree(folder).items() if name.endswith(".json")}
    summary = found["summary.json"]["domains"]
    return {**found, "summary.json": {name: {**each, "docs": ""} for name, each in summary.items()}}


@pytest.mark.usefixtures("no_pages")
def test_a_domain_is_added_to_those_validated_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known, config = two_towns(tmp_path), ValidateConfig()
    domains, out = tmp_path / "domains", tmp_path / "validation"
    validate(known, domains, tmp_path / "whole", config)
    for name in (NAME, "city"):
        validate(known, domains, out, config, [name])
    assert results(out) == results(tmp_path / "whole")
    assert all(name in (out / "docs" / "index.html").read_text() for name in (NAME, "city"))

    # what has changed since, for the worse, or is gone, is not taken for validated
    root = domains / "city" / "city"
    rows = [without_roads(row) for row in read_manifest(root, "train").rows]
    write_manifest(root, "city", "train", ("background", "road"), "own", Reading((1, 2, 3), "uint8"), rows)
    validate(known, domains, out, config, [NAME])
    assert "city no longer passes" in caplog.text
    gone = {"digests/city.json", "sources/city.json", f"recipes/{NAME}.json"}
    assert not gone & results(out).keys()
    assert {f"digests/{NAME}.json", f"sources/{NAME}.json", "recipes/city.json"} <= results(out).keys()
    (root / "train.parquet").write_bytes(b"PAR1")
    validate(known, domains, out, config, [NAME])
    assert "city is no longer among what is validated" in caplog.text
    assert list(json.loads((out / "summary.json").read_text())["domains"]) == [NAME]


@pytest.mark.usefixtures("no_pages")
def test_what_was_validated_by_another_catalog_is_not_dropped(town: Path) -> None:
    out = validate(catalog(town), town / "domains", town / "validation", ValidateConfig())
    before = results(out)
    with pytest.raises(InputError, match=rf"(?s)no catalog that was given: {NAME}.*--catalog"):
        validate(load_catalog(), town / "domains", out, ValidateConfig(), ["deepglobe"])
    assert results(out) == before
    (out / "summary.json").write_text("{}")
    with pytest.raises(InputError, match=r"summary.json: it was changed"):
        validate(catalog(town), town / "domains", out, ValidateConfig(), [NAME])


@pytest.mark.usefixtures("no_pages")
def test_classes_that_a_training_may_lack_are_not_expected(tmp_path: Path) -> None:
    own_domain(town := tmp_path, num=5)
    ingested(town)
    rewrite(town, "train", without_roads)
    known = catalog(town)
    preset = {"train": {"allow_absent_classes": True}}
    may_lack = Params("own", {"own": preset}).may_lack_classes(known)
    validate(known, town / "domains", town / "validation", ValidateConfig(), [NAME], may_lack)
    settings = town / "settings.yaml"
    settings.write_text(f"settings: {{T2T: {{source: {NAME}, target: {NAME}, gap: in-domain}}}}")
    known = load_catalog([town / "catalog.yaml", settings], town)
    recipes = {NAME: {"allow_absent_classes": False}}
    assert NAME not in Params("own", {"own": {**preset, "recipes": recipes}}).may_lack_classes(known)


WRONG: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "class absent": ("train", without_roads, "train: has pixels of class 'road'"),
    "scene in both splits": ("test", lambda row: {**row, "scene": "scene_0"}, "no scene in both splits"),
    "tile twice": ("train", lambda row: {**row, "tile_id": "same"}, "no tile twice in a split"),
    "ids outside": ("train", lambda row: {**row, "ignored_pixels": 7}, "every label pixel is a class"),
    "bands": ("test", lambda row: {**row, "bands": ["red", "green", "red"]}, "bands red, green, blue"),
    "lost files": ("test", lambda row: {**row, "image": "gone.tif"}, "every tile's files are there"),
    "blank tiles": (
        "test",
        lambda row: {**row, "constant": True},
        "test: at most 5% of tiles without any detail",
    ),
    "nodata": ("test", lambda row: {**row, "nodata_share": 0.9}, "test: at most 40% no-data pixels"),
    "half placed": (
        "test",
        lambda row: {**row, "crs": "EPSG:4326"},
        "all tiles have a place on the ground, or none has",
    ),
    "no tiles": ("test", lambda row: {}, "test: has tiles"),
}


@pytest.mark.usefixtures("no_pages")
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_stops_with_a_table(case: str, town: Path) -> None:
    split, change, words = WRONG[case]
    rewrite(town, split, change)
    with pytest.raises(InputError) as caught:
        validate(catalog(town), town / "domains", town / "validation", ValidateConfig())
    assert f"│ {NAME}" in str(caught.value)
    assert words in " ".join(str(caught.value).replace("│", " ").split())
    assert not (town / "validation" / "digests").exists()
    assert (town / "validation" / "docs" / "index.html").is_file()
    failed = [
        c
        for c in json.loads((town / "validation" / "summary.json").read_text())["domains"][NAME]["checks"]
        if not c["passed"]
    ]
    assert words in [check["expectation"][: len(words)] for check in failed]


@pytest.mark.usefixtures("no_pages")
def test_a_copy_in_the_other_split_is_found_by_its_pixels(tmp_path: Path) -> None:
    own_domain(tmp_path)
    save(tmp_path / "images" / "scene_7.tif", draw(0)[0])
    known = ingested(tmp_path)
    with pytest.raises(InputError, match="no tile with a twin of equal pixels"):
        validate(known, tmp_path / "domains", tmp_path / "validation", ValidateConfig())
    summary = json.loads((tmp_path / "validation" / "summary.json").read_text())["domains"][NAME]
    assert summary["equal_tiles_across_splits"] == 4
    assert {"train": "scene_0_0_0_48_48", "test": "scene_7_0_0_48_48", "bits": -1} in summary["pairs"]


def jpeg(image: np.ndarray) -> np.ndarray:
    _, height, width = image.shape
    with MemoryFile() as memory:
        with memory.open(
            driver="JPEG", width=width, height=height, count=3, dtype="uint8", quality=80
        ) as file:
            file.write(image)
        with memory.open() as file:
            return file.read()


@pytest.mark.usefixtures("no_pages")
def test_a_recompressed_copy_in_the_other_split_is_reported(tmp_path: Path) -> None:
    own_domain(tmp_path, side=128)
    ground = np.random.default_rng(0).normal(size=(3, 128, 128)).cumsum(1).cumsum(2)
    image = (255 * (ground - ground.min()) / np.ptp(ground)).astype(np.uint8)
    save(tmp_path / "images" / "scene_0.tif", image)
    save(tmp_path / "images" / "scene_7.tif", jpeg(image))
    known = ingested(tmp_path, tile={"px": 128, "rule": "whole"})
    out = validate(known, tmp_path / "domains", tmp_path / "validation", ValidateConfig())
    summary = json.loads((out / "summary.json").read_text())["domains"][NAME]
    assert (summary["equal_tiles_across_splits"], summary["alike_tiles_across_splits"]) == (0, 1)
    assert summary["pairs"][0]["train"] == "scene_0"
    assert summary["pairs"][0]["test"] == "scene_7"


@pytest.mark.usefixtures("no_pages")
def test_blank_tiles_are_nobodys_twins(town: Path) -> None:
    root = town / "domains" / NAME / NAME
    rewrite(town, "train", lambda row: {**row, "constant": True, "sha256_image": "ab"})
    rewrite(town, "test", lambda row: {**row, "constant": True, "sha256_image": "ab"})
    train, test = (read_manifest(root, split) for split in ("train", "test"))
    assert near_duplicates(train, test, 8) == []
    validate(catalog(town), town / "domains", town / "validation", ValidateConfig(max_constant_share=1))


def check_as_publisher(town: Path, domain: Domain, manifests: list[Manifest]) -> dict[str, bool]:
    checks = validate_manifests(
        {NAME: (domain, ("background", "road"), manifests)}, town / "docs", ValidateConfig()
    )
    return {check.expectation: check.passed for check in checks}


@pytest.mark.usefixtures("no_pages")
def test_a_domain_without_labels_is_validated_too(tmp_path: Path) -> None:
    own_domain(tmp_path)
    known = ingested(tmp_path, masks=None, labels=None, class_set=None)
    out = validate(known, tmp_path / "domains", tmp_path / "validation", ValidateConfig(), [NAME])
    assert json.loads((out / "summary.json").read_text())["domains"][NAME]["splits"]["train"]["tiles"] == 24


@pytest.mark.usefixtures("no_pages")
def test_counts_and_sizes_are_those_of_the_publisher(town: Path) -> None:
    own = catalog(town).domain(NAME)
    root = town / "domains" / NAME / NAME
    published = [replace(read_manifest(root, split), provenance="publisher") for split in ("train", "test")]
    files = Files("*", "*", tiles=24)
    domain = replace(own, own=None, train=files, test=replace(files, tiles=9))
    checks = check_as_publisher(town, domain, published)  # type: ignore[arg-type]
    assert checks["train: 24 tiles, as the paper"]
    assert not checks["test: 9 tiles, as the paper"]
    assert checks["tiles 48 px wide"] and checks["tiles 48 px high"]
    wrong = check_as_publisher(town, replace(domain, tile=replace(domain.tile, px=64)), published)  # type: ignore[arg-type]
    assert not wrong["tiles 64 px wide"]


def test_every_domain_of_the_catalog_has_expectations() -> None:
    known = load_catalog()
    for domain in known.domains.values():
        if domain.class_set is None:
            continue
        classes = known.class_sets[domain.class_set].classes
        notes = [one.notes for one in expectations(domain, classes, "publisher", ValidateConfig())]
        assert len(notes) == len(set(notes))
        for split in domain.splits:
            assert f"{split}: {domain.files(split).tiles} tiles, as the paper" in notes


def test_nothing_ingested(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="crossearth ingest"):
        validate(load_catalog(), tmp_path, tmp_path / "validation", ValidateConfig())
    with pytest.raises(InputError, match="crossearth ingest potsdam-rgb"):
        validate(load_catalog(), tmp_path, tmp_path / "validation", ValidateConfig(), ["potsdam-rgb"])


def test_a_manifest_of_another_version_is_refused(town: Path) -> None:
    path = town / "domains" / NAME / NAME / "train.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["dhash"]), path)
    with pytest.raises(InputError, match="another version"):
        validate(catalog(town), town / "domains", town / "validation", ValidateConfig())


def test_ingest_logs_the_sheet(tmp_path: Path, tracking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own_domain(tmp_path)
    monkeypatch.setenv("CROSSEARTH_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["ingest", NAME, "--catalog", "catalog.yaml"])
    assert done.exit_code == 0, done.output
    assert Path("artifacts/previews", f"{NAME}.png").is_file()
    digest = read_manifest(Path("artifacts/domains", NAME, NAME), "test").digest
    run, artifacts = logged(tracking, f"ingest {NAME}", digest)
    assert artifacts == [f"{NAME}.png"]
    assert run.data.metrics[f"tiles/{NAME}/test"] == 8


@pytest.mark.usefixtures("no_pages")
def test_the_summary_is_logged(town: Path, tracking: str) -> None:
    validate(catalog(town), town / "domains", town / "validation", ValidateConfig())
    digest = read_manifest(town / "domains" / NAME / NAME, "test").digest
    run, artifacts = logged(tracking, "validate", digest)
    assert artifacts == ["summary.json"]
    assert run.data.metrics[f"tiles/{NAME}/test"] == 8


def logged(tracking: str, name: str, digest: str) -> tuple[Any, list[str]]:
    """The run of that name about that manifest, and what artifacts it has."""
    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    about = f"attributes.run_name = '{name}' and tags.`manifest.{NAME}.test` = '{digest}'"
    (run,) = client.search_runs([experiment.experiment_id], about)
    return run, [artifact.path for artifact in client.list_artifacts(run.info.run_id)]


def placed_domain(folder: Path, starts: list[float], crs: str = "EPSG:32633", **entry: Any) -> Catalog:
    """Eight scenes of 64 m in a row, at these metres east."""
    own_domain(folder)
    for number, east in enumerate(starts):
        place = {"crs": crs, "transform": from_origin(400_000 + east, 5_000_000, 1, 1)}
        save(folder / "images" / f"scene_{number}.tif", draw(number)[0], **place)
    return ingested(folder, **entry)


APART = [64.0 * number for number in range(8)]


@pytest.mark.usefixtures("no_pages")
def test_the_same_ground_on_two_dates_is_named_and_stops(tmp_path: Path) -> None:
    known = placed_domain(tmp_path, [*APART[:7], 6])
    with pytest.raises(InputError) as caught:
        validate(known, tmp_path / "domains", tmp_path / "validation", ValidateConfig())
    assert all(word in str(caught.value) for word in ("scene_0", "scene_7", "(88%)"))
    summary = json.loads((tmp_path / "validation" / "summary.json").read_text())["domains"][NAME]
    (failed,) = [check for check in summary["checks"] if not check["passed"]]
    assert failed["expectation"] == "no image shows more than 10% of the ground of another split's"
    assert failed["found"].endswith("tiles break it: train scene_0 and test scene_7 (88%)")


@pytest.mark.usefixtures("no_pages")
def test_ground_that_may_be_shared_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = placed_domain(tmp_path, [*APART[:6], 6, *APART[7:]])
    out = validate(known, tmp_path / "domains", tmp_path / "validation", ValidateConfig(max_shared_ground=1))
    assert (
        "town: 2 images lie on ground of the other split: train scene_0 and test scene_6 (88%)" in caplog.text
    )
    summary = json.loads((out / "summary.json").read_text())["domains"][NAME]
    assert summary["shared_ground"][0] == {"train": "scene_0", "test": "scene_6", "share": 0.875}


@pytest.mark.usefixtures("no_pages")
@pytest.mark.parametrize("crs", ["EPSG:32633", 'LOCAL_CS["engineering"]'])
def test_neighbours_share_no_ground_and_neither_does_padding(crs: str, tmp_path: Path) -> None:
    own_domain(tmp_path)
    place = {"crs": crs, "transform": from_origin(400_000 + 64 * 6 - 20, 5_000_000, 1, 1)}
    known = placed_domain(tmp_path, APART, crs)
    save(tmp_path / "images" / "scene_5.tif", draw(5)[0][:, :, :20], **place)
    save(tmp_path / "masks" / "scene_5.png", draw(5)[1][:, :20])
    known = ingested(tmp_path)
    assert read_manifest(tmp_path / "domains" / NAME / NAME, "train").rows[-1]["width"] == 48
    out = validate(known, tmp_path / "domains", tmp_path / "validation", ValidateConfig())
    assert json.loads((out / "summary.json").read_text())["domains"][NAME]["shared_ground"] == []


def test_ground_is_compared_across_coordinate_systems() -> None:
    def square(crs: str, east: float, north: float, px: float = 1.0) -> Place:
        return Place(crs, (px, 0, east, 0, -px, north), 64, 64)

    lon, lat = transform("EPSG:32633", "EPSG:4326", [400_000], [5_000_000])
    east, north = transform("EPSG:32633", "EPSG:32632", [400_000], [5_000_000])
    ours = [square("EPSG:32633", 400_000, 5_000_000), square("EPSG:32633", 400_064, 5_000_000)]
    turned = Place(
        "EPSG:32633", tuple(from_origin(400_130, 5_000_000, 1, 1) @ Affine.rotation(45))[:6], 64, 64
    )
    theirs = [square("EPSG:32632", east[0], north[0]), square("EPSG:4326", lon[0], lat[0], 5e-6), turned]
    found = {(our, their): share for our, their, share in overlaps(ours, theirs)}
    assert found[0, 0] > 0.85 and found[0, 1] > 0.85 and found[1, 2] > 0.3
    assert (0, 2) not in found
    assert overlaps([square("", 0, 0)], [square("", 0, 0)]) == []
