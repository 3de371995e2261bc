"""Labels in the layouts in which the tools write that people label with."""

import json
import logging
import os
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
import yaml
from labelled_folders import (
    BOTH,
    BUILDING,
    CLASSES,
    FORMS,
    LANDUSE,
    LEFT,
    OUTSIDE,
    PX,
    ROAD,
    SIDE,
    TOP,
    UTM,
    VALUES,
    class_folders,
    coco,
    coco_file,
    colours,
    cvat,
    drawn,
    fourth_band,
    image_folder,
    images,
    in_degrees,
    labelme,
    layer,
    on_ground,
    polygons,
    second_page,
    voc,
    write,
    yolo,
    yolo_lines,
)
from numpy.typing import NDArray
from own_domain import save
from shapely import LineString, MultiPolygon, Point, Polygon, force_3d

from crossearth.components.ingest import step
from crossearth.components.ingest.pairing import suggested
from crossearth.components.ingest.sources import find_scenes
from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.components.plan.items import _own_files
from crossearth.data.annotations import polygons as polygons_room
from crossearth.data.annotations.coco import read_file as read_coco
from crossearth.data.annotations.polygons import PIECE
from crossearth.data.annotations.shapes import DrawnLabels
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.errors import InputError
from crossearth.data.raster.archives import file_at
from crossearth.data.tiles.manifest import read_label, read_manifest


def run(folder: Path, workers: int = 1, **entry: Any) -> dict[str, NDArray[np.uint8]]:
    """Ingests the domain `town` of `folder`; its labels by the names of their tiles."""
    values = {
        "images": "images",
        "class_set": "town",
        "tile": {"px": 16, "rule": "whole"},
        "split": "train",
        **entry,
    }
    file = folder / "catalog.yaml"
    values = {key: value for key, value in values.items() if value is not None}
    sections = {"class_sets": {"town": {"classes": list(CLASSES)}}, "domains": {"town": values}}
    file.write_text(yaml.safe_dump(sections))
    catalog = load_catalog([file], folder)
    (path,) = ingest(["town"], catalog, folder, folder / "domains", IngestConfig(workers=workers))
    found = {}
    for split in catalog.domain("town").splits:
        manifest = read_manifest(path, split)
        found |= {
            f"{row['split']}/{row['tile_id']}": read_label(manifest, at)
            for at, row in enumerate(manifest.rows)
        }
    return {name.removeprefix("train/"): label for name, label in found.items()}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_labels(form: str, tmp_path: Path) -> None:
    make, entry = FORMS[form]
    make(tmp_path)
    found = run(tmp_path, **entry)
    assert list(found) == ["a1", "a2"]
    for label in found.values():
        np.testing.assert_array_equal(label, BOTH)


# --- what lies on top, and what lies outside


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ({}, drawn((1, BUILDING), (2, ROAD))),
        ({"order": ["road", "building"]}, drawn((2, ROAD), (1, BUILDING))),
        ({"order": "file"}, drawn((2, ROAD), (1, BUILDING))),
        ({"outside": "ignore"}, drawn((1, BUILDING), (2, ROAD), outside=255)),
        ({"all_touched": True}, drawn((1, (1, 3, 9, 10)), (2, (5, 6, 13, 15)))),
    ],
)
def test_overlaps_and_outside_are_as_said(
    masks: dict[str, Any], expected: NDArray[np.uint8], tmp_path: Path
) -> None:
    images(tmp_path)
    grown = {
        name: shape.buffer(0.01 * PX, join_style="mitre")
        for name, shape in (("road", on_ground(ROAD)), ("building", on_ground(BUILDING)))
    }
    if "all_touched" in masks:  # a hundredth of a px beyond
        expected = drawn((1, (1, 2, 9, 10)), (2, (5, 5, 13, 15)))
    layer(tmp_path / "labels.gpkg", [*grown.items(), ("road", on_ground(ROAD, 1))])
    found = run(tmp_path, masks={"polygons": "labels.gpkg", **LANDUSE, **masks})
    np.testing.assert_array_equal(found["a1"], expected)


def test_a_class_may_be_ignored_and_names_may_be_others(tmp_path: Path) -> None:
    images(tmp_path)
    layer(
        tmp_path / "labels.gpkg",
        [("Haus", on_ground(BUILDING)), (None, on_ground(ROAD)), ("Haus", on_ground(ROAD, 1))],
    )
    masks = {"polygons": "labels.gpkg", **LANDUSE}
    found = run(tmp_path, masks=masks, labels={"Haus": "building", "": "ignore"})
    np.testing.assert_array_equal(found["a1"], drawn((1, BUILDING), (255, ROAD)))
    found = run(tmp_path, masks=masks, labels={"Haus": "building"}, unknown_labels="ignore")
    np.testing.assert_array_equal(found["a1"], drawn((1, BUILDING), (255, ROAD)))


def test_tiles_and_fitted_images_have_their_part_of_the_shapes(tmp_path: Path) -> None:
    polygons(tmp_path, "labels.gpkg")
    masks = {"polygons": "labels.gpkg", **LANDUSE}
    tiles = run(tmp_path, masks=masks, tile={"px": 8, "rule": "cut"})
    assert len(tiles) == 8
    np.testing.assert_array_equal(tiles["a1_8_0_16_8"], BOTH[:8, 8:])
    fitted = run(tmp_path, masks=masks, tile={"px": 8, "rule": "fit"})
    np.testing.assert_array_equal(fitted["a1"], BOTH[1::2, 1::2])


def test_a_shape_of_any_extent_is_drawn_at_once() -> None:
    """GDAL walks along edges px by px: of a whole country's outline that took minutes."""
    far = Polygon([[-1e9, -1e9], [8.5, -1e9], [8.5, 1e9], [-1e9, 1e9]])
    labels = DrawnLabels("a", SIDE, SIDE, ((1, far),), 0, all_touched=True)
    np.testing.assert_array_equal(labels.read(None, (SIDE, SIDE)), drawn((1, (0, 0, 9, 16))))


# --- files larger than the memory


STREAMED = {"GeoJSON": "labels.geojson", "shapefile": "v/labels.shp", "GeoPackage": "labels.gpkg"}


@pytest.mark.parametrize("path", STREAMED.values(), ids=STREAMED)
def test_of_polygons_each_image_reads_those_in_its_bounds(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    polygons(tmp_path, path)
    held = []

    def spied(name: str) -> None:
        function = getattr(pyogrio, name)

        def call(*places: Any, **options: Any) -> Any:
            found = function(*places, **options)
            held.append((options.get("bbox"), len(found if name == "read_dataframe" else found[0])))
            return found

        monkeypatch.setattr(pyogrio, name, call)

    spied("read_dataframe")
    spied("read_bounds")
    pieces = []
    opened = pyogrio.open_arrow
    monkeypatch.setattr(
        pyogrio, "open_arrow", lambda *a, **k: pieces.append(k["batch_size"]) or opened(*a, **k)
    )
    found = run(tmp_path, masks={"polygons": path, **LANDUSE})
    np.testing.assert_array_equal(found["a2"], BOTH)
    assert all(bbox and number == 2 for bbox, number in held) and len(held) == 4
    assert {*pieces} == {PIECE}


def test_a_file_without_an_index_gets_one_for_all_processes_and_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    polygons(tmp_path, "labels.geojson")
    write_indexed = polygons_room._write_indexed

    def spied(*arguments: Any) -> None:
        with (tmp_path / "written").open("a") as file:
            file.write(f"{os.getpid()}\n")
        write_indexed(*arguments)

    monkeypatch.setattr(polygons_room, "_write_indexed", spied)
    masks = {"polygons": "labels.geojson", **LANDUSE}
    np.testing.assert_array_equal(run(tmp_path, workers=2, masks=masks)["a2"], BOTH)
    assert (tmp_path / "written").read_text() == f"{os.getpid()}\n"
    assert not [*(tmp_path / "domains").rglob("*.gpkg")]


@pytest.mark.parametrize("form", ["GeoJSON in degrees", "COCO, polygons"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError("no")])
def test_what_was_made_of_the_labels_goes_with_a_run_that_fails(
    form: str, error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, entry = FORMS[form]
    make(tmp_path)
    there = []

    def fail(*_: object) -> None:
        there.extend(path.suffix for path in (tmp_path / "domains").rglob("*.*"))
        raise error

    monkeypatch.setattr(step, "ingest_scene", fail)
    with pytest.raises((KeyboardInterrupt, InputError)):
        run(tmp_path, **entry)
    assert {*there} & {".gpkg", ".sqlite"}
    assert not [path for path in (tmp_path / "domains").rglob("*") if path.suffix in (".gpkg", ".sqlite")]


def test_a_coco_file_is_never_held_whole(tmp_path: Path) -> None:
    content = coco_file()
    one = {**content["annotations"][0], "segmentation": [[float(value) for value in range(60)]]}
    content["annotations"] = [{**one, "id": number} for number in range(2000)]
    file = write(tmp_path / "annotations.json", content)
    member = file_at(file, tmp_path)
    tracemalloc.start()
    try:
        found = read_coco(member, tmp_path / "scratch")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.names == {"Building": 2000}
    assert peak < file.stat().st_size


@pytest.mark.parametrize("path", ["labels.gpkg", "labels.geojson"])
def test_the_files_order_is_kept_whatever_an_index_does(path: str, tmp_path: Path) -> None:
    """An R-tree gives its hits in an order of its own."""
    images(tmp_path)
    rng = np.random.default_rng(0)
    boxes = [(x, y, x + 5, y + 5) for x, y in rng.integers(0, SIDE - 5, (200, 2)).tolist()]
    kinds = ["building", "road"] * 100
    # a box around all of a layer is asked of no index
    features = [(kind, on_ground(area)) for kind, area in zip(kinds, boxes, strict=True)]
    layer(tmp_path / path, [*features, ("road", on_ground(ROAD, 1))])
    masks = {"polygons": path, **LANDUSE, "order": "file"}
    found = run(tmp_path, masks=masks)
    ids = {"building": 1, "road": 2}
    expected = drawn(*((ids[kind], area) for kind, area in zip(kinds, boxes, strict=True)))
    np.testing.assert_array_equal(found["a1"], expected)


@pytest.mark.parametrize("form", ["GeoJSON in degrees", "COCO, polygons"])
def test_labels_identity_hangs_on_the_original_file(form: str, tmp_path: Path) -> None:
    make, entry = FORMS[form]
    make(tmp_path)
    run(tmp_path, **entry)
    catalog = load_catalog([tmp_path / "catalog.yaml"], tmp_path)

    def identities(scratch: str) -> list[str]:
        found = find_scenes(catalog.domain("town"), tmp_path, tmp_path / scratch)
        return [source.identity for source in found]

    before = identities("one")
    assert identities("two") == before
    file = tmp_path / str(next(iter(entry["masks"].values())))
    file.write_text(file.read_text().replace("oad", "oof"))
    with pytest.raises(InputError, match="nobody named"):
        identities("three")


@pytest.mark.parametrize(
    ("form", "path"), [("GeoJSON in degrees", "labels.geojson"), ("COCO, polygons", "annotations.json")]
)
def test_a_fault_deep_in_a_large_file_has_its_place(form: str, path: str, tmp_path: Path) -> None:
    make, entry = FORMS[form]
    make(tmp_path)
    content = json.loads((tmp_path / path).read_text())
    key = "features" if "features" in content else "annotations"
    content[key] *= 1000
    lines = json.dumps(content, indent=1).splitlines()
    at = len(lines) - 50
    lines[at] = "\u00e4" + lines[at]
    (tmp_path / path).write_text("\n".join(lines))
    with pytest.raises(InputError, match=rf"{path}: line {at + 1}, column 1: not JSON"):
        run(tmp_path, **entry)


# --- what people's files have besides


def test_points_may_lie_beside_polygons_in_a_file(tmp_path: Path) -> None:
    polygons(tmp_path, "labels.gpkg", layer="landuse")
    layer(tmp_path / "labels.gpkg", [("x", Point(LEFT, TOP))], layer="survey")
    np.testing.assert_array_equal(run(tmp_path, **GPKG)["a1"], BOTH)


@pytest.mark.parametrize("encoding", ["cp1252", "UTF-8", "without .cpg"])
def test_names_of_a_shapefile_are_read_in_its_encoding(encoding: str, tmp_path: Path) -> None:
    images(tmp_path, "images/a1.tif")
    said = encoding.removeprefix("without .cpg") or "ISO-8859-1"
    layer(tmp_path / "v/labels.shp", [("Gebäude", on_ground(BUILDING))], encoding=said)
    if said != encoding:
        (tmp_path / "v/labels.cpg").unlink()
    found = run(tmp_path, **SHP, labels={"Gebäude": "building"})
    np.testing.assert_array_equal(found["a1"], drawn((1, BUILDING)))


@pytest.mark.parametrize("path", ["labels.gpkg", "labels.geojson", "v/labels.shp"])
def test_holes_parts_and_heights(path: str, tmp_path: Path) -> None:
    images(tmp_path, "images/a1.tif")
    outer, hole, other = (1, 1, 9, 9), (3, 3, 6, 6), (12, 12, 15, 15)
    ring = Polygon(on_ground(outer).exterior, [on_ground(hole).exterior])
    layer(tmp_path / path, [("building", force_3d(MultiPolygon([ring, on_ground(other)]), 7.0))])
    found = run(tmp_path, masks={"polygons": path, **LANDUSE})
    np.testing.assert_array_equal(found["a1"], drawn((1, outer), (0, hole), (1, other)))


# --- images without a label


def test_images_without_a_label_are_what_the_domain_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images(tmp_path, "images/a1.png", "images/a2.png", "images/a3.png")
    write(tmp_path / "labels/a1.txt", yolo_lines())
    write(tmp_path / "labels/a2.txt", "")  # labelled, and there is nothing
    entry = {"masks": {"yolo": "labels", **OUTSIDE}, "labels": {0: "building", 1: "road"}}
    with pytest.raises(InputError, match=r"1 of 3 images have no label: .*a3\.png") as error:
        run(tmp_path, **entry)
    assert "`unlabelled: skip`" in str(error.value) and "`unlabelled: outside`" in str(error.value)
    with caplog.at_level(logging.WARNING):
        assert [*run(tmp_path, **entry, unlabelled="skip")] == ["a1", "a2"]
        found = run(tmp_path, **entry, unlabelled="outside")
    assert [label.any() for label in found.values()] == [True, False, False]
    assert "left out" in caplog.text and "are all `outside`" in caplog.text


def test_an_image_that_a_coco_file_lists_without_shapes_is_outside(tmp_path: Path) -> None:
    coco()(tmp_path)
    content = coco_file()
    content["annotations"] = content["annotations"][:2]
    write(tmp_path / "annotations.json", content)
    found = run(tmp_path, masks={"coco": "annotations.json", **OUTSIDE})
    assert [label.any() for label in found.values()] == [True, False]


def test_polygons_outside_of_every_image_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images(tmp_path)
    layer(
        tmp_path / "labels.gpkg",
        [("road", on_ground(ROAD)), ("road", on_ground(ROAD, 5)), ("building", on_ground(BUILDING, 6))],
    )
    masks = {"polygons": "labels.gpkg", **LANDUSE}
    with caplog.at_level(logging.WARNING):
        assert [*run(tmp_path, masks=masks, unlabelled="skip")] == ["a1"]
    assert "2 polygons of" in caplog.text and "lie outside of every image" in caplog.text


# --- wrong input of each form


def edited(make: Callable[[Path], object], path: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        make(folder)
        text = (folder / path).read_text()
        assert change(text) != text
        (folder / path).write_text(change(text))

    return edit


def changed_coco(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        coco()(folder)
        content = coco_file()
        change(content)
        write(folder / "annotations.json", content)

    return edit


def without_crs(of: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        polygons(folder, "v/labels.shp")
        if of == "polygons":
            (folder / "v/labels.prj").unlink()
        else:
            images(folder, "images/a1.tif", transform=UTM["transform"])

    return make


def elsewhere(folder: Path) -> None:
    images(folder)
    layer(folder / "labels.gpkg", [("road", on_ground(ROAD, 5))])


def lines(folder: Path) -> None:
    images(folder)
    layer(folder / "labels.gpkg", [("road", LineString([(LEFT, TOP), (LEFT + 9, TOP - 9)]))])


def two_layers(folder: Path) -> None:
    polygons(folder, "labels.gpkg", layer="roofs")
    layer(folder / "labels.gpkg", [("road", on_ground(ROAD))], layer="roads")


def empty(folder: Path) -> None:
    images(folder)
    geopandas.GeoDataFrame({"landuse": []}, geometry=[], crs="EPSG:32633").to_file(folder / "labels.gpkg")


def lists(folder: Path) -> None:
    polygons(folder, "labels.geojson")
    text = (folder / "labels.geojson").read_text().replace('"road"', '[ "road" ]')
    write(folder / "labels.geojson", text.replace('"Building"', '[ "Building" ]'))


def metres_as_degrees(folder: Path) -> None:
    """GeoJSON without a CRS is in degrees, whatever its numbers are."""
    images(folder)
    collection = {
        "type": "Feature",
        "properties": {"landuse": "road"},
        "geometry": on_ground(ROAD).__geo_interface__,
    }
    write(folder / "labels.geojson", {"type": "FeatureCollection", "features": [collection]})


COCO = {"masks": {"coco": "annotations.json", **OUTSIDE}}
GPKG = {"masks": {"polygons": "labels.gpkg", **LANDUSE}}
SHP = {"masks": {"polygons": "v/labels.shp", **LANDUSE}}
GEOJSON = {"masks": {"polygons": "labels.geojson", **LANDUSE}}
YOLO = {"masks": {"yolo": "labels", "names": "data.yaml", **OUTSIDE}}
LABELME = {"masks": {"labelme": "images", **OUTSIDE}}
ONE_MORE = "images/a1.json"
WRONG: dict[str, tuple[Callable[[Path], object], Mapping[str, Any], str]] = {
    "polygons: a class that nobody named": (
        lambda f: polygons(f, "labels.gpkg"),
        {**GPKG, "labels": {"road": "road"}},
        r"labels\.gpkg: classes that nobody named: 'Building' \(2 polygons\)",
    ),
    "polygons: all elsewhere": (elsewhere, GPKG, "all 1 polygons lie outside of every image"),
    "polygons: metres taken for degrees": (metres_as_degrees, GEOJSON, "outside of every image"),
    "polygons without a CRS": (without_crs("polygons"), SHP, r"labels\.shp: no CRS\n.*\n.*crs: EPSG:32633"),
    "image without a CRS": (without_crs("image"), SHP, r"a1\.tif: no CRS"),
    "image without a place": (
        lambda f: polygons(f, "labels.gpkg") or images(f, "images/a3.png"),
        GPKG,
        r"a3\.png: an image without a place",
    ),
    "polygons: no such attribute": (
        lambda f: polygons(f, "labels.gpkg"),
        {"masks": {"polygons": "labels.gpkg", "attribute": "landus", **OUTSIDE}},
        "no attribute 'landus'\n  expected: 'landuse'",
    ),
    "polygons that are lines": (lines, GPKG, r"labels\.gpkg: shapes that are no polygons: LineString"),
    "polygons: two layers": (two_layers, GPKG, '2 layers\n.*roads\n.*layer: "roofs"'),
    "polygons: none": (empty, GPKG, r"labels\.gpkg: no polygons"),
    "polygons: lists for names": (lists, GEOJSON, "no attribute 'landuse'"),
    "polygons: broken JSON": (
        edited(in_degrees, "labels.geojson", lambda text: text[:-20]),
        GEOJSON,
        r"labels\.geojson: line \d+, column \d+: not JSON",
    ),
    "polygons: another kind inside": (
        lambda f: images(f) or write(f / "labels.gpkg", "<OGRVRTDataSource></OGRVRTDataSource>"),
        GPKG,
        r"labels\.gpkg: not what \.gpkg files are",
    ),
    "polygons: half a shapefile": (
        lambda f: (
            polygons(f, "v/labels.shp") or (f / "v/labels.shx").unlink() or (f / "v/labels.dbf").unlink()
        ),
        SHP,
        r"labels\.shp: (cannot be read|no attribute)",
    ),
    "polygons: no such file": (images, GPKG, r"labels\.gpkg: no such file"),
    "polygons without a class": (
        lambda f: polygons(f, "labels.gpkg"),
        {"masks": {"polygons": "labels.gpkg", **OUTSIDE}},
        "classes that nobody named: 'polygon'",
    ),
    "COCO: a class that nobody named": (
        changed_coco(lambda c: c["categories"][0].update(name="roof")),
        COCO,
        r"annotations\.json: classes that nobody named: 'roof' \(2 shapes\)",
    ),
    "COCO: broken JSON": (
        edited(coco(), "annotations.json", lambda text: text.replace('"categories":', '"categories"', 1)),
        COCO,
        r"annotations\.json: line 1, column \d+: not JSON",
    ),
    "COCO: no list": (changed_coco(lambda c: c.pop("images")), COCO, r"annotations\.json: images: None"),
    "COCO: boxes": (
        changed_coco(lambda c: c["annotations"][3].update(segmentation=[], bbox=[1, 1, 3, 3])),
        COCO,
        r"annotations\[3\]: segmentation: \[\]\n.*boxes",
    ),
    "COCO: two points": (
        changed_coco(lambda c: c["annotations"][1].update(segmentation=[[1, 1, 2, 2]])),
        COCO,
        r"annotations\[1\]: segmentation: 2 points",
    ),
    "COCO: run lengths of another size": (
        changed_coco(lambda c: c["annotations"][1].update(segmentation={"size": [9, 9], "counts": [81]})),
        COCO,
        r"annotations\[1\]: segmentation: size: \[9, 9\]\n.*\[16, 16\]",
    ),
    "COCO: run lengths beyond the image": (
        changed_coco(
            lambda c: c["annotations"][1].update(segmentation={"size": [16, 16], "counts": [1, 2_000_000]})
        ),
        COCO,
        r"annotations\[1\]: segmentation: no run lengths",
    ),
    "COCO: run lengths of nonsense": (
        changed_coco(
            lambda c: c["annotations"][1].update(segmentation={"size": [16, 16], "counts": "oooooooo" * 9})
        ),
        COCO,
        r"annotations\[1\]: segmentation: no run lengths",
    ),
    "COCO: another size": (
        changed_coco(lambda c: c["images"][1].update(width=32, height=32)),
        COCO,
        r"labels of 32 x 32 px for an image of 16 x 16 px",
    ),
    "COCO: other images": (
        changed_coco(lambda c: [each.update(file_name=f"b{each['id']}.png") for each in c["images"]]),
        COCO,
        r"no image that a COCO file names: b1\.png, b2\.png",
    ),
    "COCO: an image that is not listed": (
        changed_coco(lambda c: (c["images"].pop(), c.update(annotations=c["annotations"][:2]))),
        COCO,
        r"1 of 2 images have no label: .*a2\.png",
    ),
    "YOLO: a class that nobody named": (
        edited(yolo, "data.yaml", lambda text: text.replace("building", "roof")),
        YOLO,
        r"a1\.txt: classes that nobody named: 'roof' \(1 shapes\)",
    ),
    "YOLO: a class without a name": (
        edited(yolo, "labels/train/a2.txt", lambda text: text.replace("1 ", "5 ", 1)),
        YOLO,
        r"a2\.txt: line 2: class 5 has no name",
    ),
    "YOLO: boxes": (
        edited(yolo, "labels/train/a2.txt", lambda text: "0 0.5 0.5 0.2 0.2"),
        YOLO,
        r"a2\.txt: line 1: a box",
    ),
    "YOLO: px": (
        edited(yolo, "labels/train/a2.txt", lambda text: "0 5 5 9 9 5 9"),
        YOLO,
        r"a2\.txt: line 1: a point at 5 or 9",
    ),
    "YOLO: words": (edited(yolo, "labels/train/a2.txt", lambda text: "road 1 2"), YOLO, r"a2\.txt: line 1"),
    "YOLO: no names": (
        edited(yolo, "data.yaml", lambda text: "names: 3"),
        YOLO,
        r"data\.yaml: names: 3",
    ),
    "labelme: a class that nobody named": (
        edited(labelme, ONE_MORE, lambda text: text.replace('"building"', '"shed"')),
        LABELME,
        r"a1\.json: classes that nobody named: 'shed' \(1 shapes\)",
    ),
    "labelme: broken JSON": (
        edited(labelme, ONE_MORE, lambda text: text[:40]),
        LABELME,
        r"a1\.json: line 1, column \d+: not JSON",
    ),
    "labelme: a line": (
        edited(labelme, ONE_MORE, lambda text: text.replace("rectangle", "linestrip")),
        LABELME,
        r"a1\.json: shapes\[0\]: a linestrip",
    ),
    "labelme: another size": (
        edited(labelme, ONE_MORE, lambda text: text.replace(": 16", ": 64")),
        LABELME,
        "labels of 64 x 64 px",
    ),
    "CVAT: a class that nobody named": (
        cvat,
        {"masks": {"cvat": "export.zip"}, "labels": {"background": "background", "building": "building"}},
        "classes that nobody named: 'road'",
    ),
    "CVAT without its table": (
        lambda f: images(f, "images/a1.png") or save(f / "x/SegmentationClass/a1.png", colours(BOTH)),
        {"masks": {"cvat": "x"}},
        r"no labelmap\.txt",
    ),
    "class folders: a class that nobody named": (
        lambda f: class_folders(f) or save(f / "masks/shed/a1.png", drawn((1, ROAD))),
        {"masks": {"class_folders": "masks", **OUTSIDE}},
        "classes that nobody named: 'shed'",
    ),
    "image folder: a mask that is not there": (
        edited(image_folder, "hf/train/metadata.jsonl", lambda text: text.replace("masks/2", "masks/3")),
        {"images": "hf", "masks": {"imagefolder": "hf"}, "labels": VALUES},
        r"metadata\.jsonl: no mask 'train/masks/3\.png'",
    ),
    "image folder: a mask elsewhere": (
        edited(image_folder, "hf/train/metadata.jsonl", lambda text: text.replace("masks/2", "../masks/3")),
        {"images": "hf", "masks": {"imagefolder": "hf"}, "labels": VALUES},
        "'../masks/3.png' is no file below its folder",
    ),
    "image folder: broken JSON": (
        edited(image_folder, "hf/train/metadata.jsonl", lambda text: text[:-3]),
        {"images": "hf", "masks": {"imagefolder": "hf"}, "labels": VALUES},
        r"metadata\.jsonl: line 2: line 1, column \d+: not JSON",
    ),
    "no such band": (
        fourth_band,
        {"masks": {"band": 5}, "labels": VALUES},
        r"a1\.tif: a file of 4 bands\n  expected: labels in band 5",
    ),
    "no such page": (second_page, {"masks": {"page": 3}, "labels": VALUES}, "page 3: not an image"),
    "nothing says what is outside": (
        images,
        {"masks": {"labelme": "images"}},
        r"labelme: nothing says what lies outside of all shapes\n  expected: outside: one of background",
    ),
    "two forms": (images, {"masks": {"coco": "a.json", "yolo": "b"}}, "says coco and yolo"),
    "an option of another form": (
        images,
        {"masks": {"coco": "a.json", "attribute": "x", **OUTSIDE}},
        "`attribute` does not go with `coco`",
    ),
    "a form misspelt": (images, {"masks": {"polygon": "a.json"}}, "unknown key 'polygon'\n.*'polygons'"),
    "an order of other classes": (
        images,
        {"masks": {"coco": "a.json", **OUTSIDE, "order": ["raod"]}},
        "unknown class 'raod'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_labels_are_one_clear_error_and_leave_nothing(case: str, tmp_path: Path) -> None:
    make, entry, words = WRONG[case]
    make(tmp_path)
    with pytest.raises(InputError, match=words):
        run(tmp_path, **entry)
    assert not (tmp_path / "domains").exists() or not list((tmp_path / "domains").rglob("*"))


# --- published splits


def values(folder: Path, *names: str) -> None:
    """Images and masks in folders that differ in the words `images` and `masks`."""
    for number, name in enumerate(names):
        images(folder, f"{name}.png")
        save(
            folder / f"{name.replace('images', 'masks').replace('JPEGImages', 'Seg')}.png",
            BOTH if number else BOTH * 0,
        )


MASKS = {"masks": "masks", "labels": VALUES, "split": None}
CITIES = {"images": "data/*/images/*", "masks": "data/*/masks/*", "labels": VALUES, "split": None}


@pytest.mark.parametrize(
    ("names", "entry", "splits"),
    [
        ("images/train/a images/train/b images/test/a", MASKS, "train/train_a train/train_b test/test_a"),
        ("images/train/a images/val/b", MASKS, "train/a test/b"),
        ("images/val2017/a images/train2017/b", MASKS, "train/b test/a"),
        ("data/train/images/a data/validation/images/b", CITIES, "train/a test/b"),
        (
            "images/train/a images/val/b images/test/c",
            {**MASKS, "split": {"by": "folder", "train": ["train"], "test": ["test"]}},
            "train/a test/c",
        ),
        (
            "images/fold1/a images/fold2/b images/fold3/c",
            {**MASKS, "split": {"by": "folder", "train": ["fold1", "fold2"], "test": ["fold3"]}},
            "train/a train/b test/c",
        ),
        ("images/train/a images/train/b", MASKS, "train/a test/b"),  # nothing was published of the other
        ("images/train/a images/test/b", {**MASKS, "split": "train"}, "train/a train/b"),
    ],
)
def test_a_published_split_is_used(
    names: str, entry: dict[str, Any], splits: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values(tmp_path, *names.split())
    assert {name if "/" in name else f"train/{name}" for name in run(tmp_path, **entry)} == {*splits.split()}
    if entry["split"] == "train":
        assert "the split that was published is not used" in caplog.text


@pytest.mark.parametrize(
    ("names", "entry", "words"),
    [
        (
            "images/train/a images/val/b images/test/c",
            MASKS,
            r"published split of train, val, test\n.*\n.*{by: folder, train: \[train\], test: \[test\]}",
        ),
        (
            "images/train/a images/test/b images/c",
            MASKS,
            "a published split of train, test, and images outside",
        ),
        ("images/test/a images/test/b", MASKS, "split: test"),
        (
            "images/train/a images/test/b",
            {**MASKS, "split": {"by": "folder", "train": ["trian"], "test": ["test"]}},
            r"no images below trian\n  expected: folders of the train split: test, train",
        ),
        ("images/a images/b", {**MASKS, "split": {"by": "foldr"}}, "unknown rule 'foldr'\n.*'folder'"),
        (
            "images/a images/b",
            {**MASKS, "split": {"by": "folder", "train": ["x"], "test": ["x"]}},
            "other names for train than for test",
        ),
    ],
)
def test_a_published_split_that_is_not_clear_is_refused(
    names: str, entry: dict[str, Any], words: str, tmp_path: Path
) -> None:
    values(tmp_path, *names.split())
    with pytest.raises(InputError, match=words):
        run(tmp_path, **entry)


def test_lists_of_pascal_voc_are_the_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = voc(tmp_path, train="a1\na3\n", val="a2\n", trainval="a1\na2\na3\n")
    with pytest.raises(InputError, match=r"1 of 3 images have no label: .*a3\.jpg"):
        run(tmp_path, **entry)
    assert [*run(tmp_path, **entry, unlabelled="skip")] == ["a1", "test/a2"]
    assert "split as published: train.txt is train, val.txt is test" in caplog.text
    assert "1 images are in no split and left out: a4" in caplog.text
    write(tmp_path / "VOC/ImageSets/Segmentation/train.txt", "a1\na9\n")
    with pytest.raises(InputError, match=r"train\.txt: line 2: 'a9' is no image's name"):
        run(tmp_path, **entry)
    lists = {"by": "lists", "train": ["mine.txt"], "test": ["theirs.txt"]}
    write(tmp_path / "mine.txt", "SegmentationClass/a2.png")
    write(tmp_path / "theirs.txt", "\nA1.jpg\n")
    assert [*run(tmp_path, **(entry | {"split": lists}))] == ["a2", "test/a1"]


def test_lists_beside_the_images_are_the_split_or_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values(tmp_path, "images/a1", "images/a2", "images/a3")
    write(tmp_path / "train.txt", "./images/a3.png\n")
    write(tmp_path / "val.txt", "./images/a1.png\n")
    assert [*run(tmp_path, **MASKS)] == ["a3", "test/a1"]
    for name in ("train", "val"):  # of tiles that are made of the images later
        write(tmp_path / f"{name}.txt", f"{name}_0\n")
    assert [*run(tmp_path, **MASKS)] == ["a1", "a2", "test/a3"]
    assert "name no images of these, and are not used as a split" in caplog.text


def test_lists_in_the_archive_of_the_images_are_the_split(tmp_path: Path) -> None:
    entry = voc(tmp_path, train="a1\n", val="a2\n")
    with zipfile.ZipFile(tmp_path / "VOC.zip", "w") as archive:
        for path in [path for path in (tmp_path / "VOC").rglob("*") if path.is_file()]:
            archive.write(path, path.relative_to(tmp_path))
    shutil.rmtree(tmp_path / "VOC")
    assert [*run(tmp_path, **entry)] == ["a1", "test/a2"]


# --- resume, archives, identity


def test_an_edited_annotation_makes_its_image_stale_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coco()(tmp_path)
    identities: list[dict[str, str]] = []
    find = step.find_scenes

    def spied(*arguments: Any) -> Any:
        found = find(*arguments)
        identities.append({source.key: source.identity for source in found})
        return found

    monkeypatch.setattr(step, "find_scenes", spied)
    entry = {"masks": {"coco": "annotations.json", **OUTSIDE}}
    run(tmp_path, **entry)
    content = coco_file()
    content["annotations"][0]["segmentation"][0][0] += 1
    write(tmp_path / "annotations.json", content)
    run(tmp_path, **entry)
    before, after = identities
    assert before["a1"] != after["a1"] and before["a2"] == after["a2"]


@pytest.mark.parametrize(
    ("form", "path"),
    [
        ("GeoPackage", "labels.gpkg"),
        ("shapefile", "v/labels.dbf"),
        ("YOLO", "data.yaml"),
        ("YOLO", "labels/train/a1.txt"),
        ("labelme", "images/a1.json"),
        ("COCO, polygons", "annotations.json"),
        ("Hugging Face", "hf/train/metadata.jsonl"),
    ],
)
def test_kubeflows_key_of_own_files_holds_those_of_the_labels(form: str, path: str, tmp_path: Path) -> None:
    make, entry = FORMS[form]
    make(tmp_path)
    run(tmp_path, **entry)
    catalog = load_catalog([tmp_path / "catalog.yaml"], tmp_path)
    before = _own_files(catalog, ["town"])
    os.utime(tmp_path / path, (1, 1))
    assert _own_files(catalog, ["town"]) != before


def test_all_of_it_may_lie_in_one_archive(tmp_path: Path) -> None:
    yolo(tmp_path)
    with zipfile.ZipFile(tmp_path / "town.zip", "w") as archive:
        for path in [*(tmp_path / "images").rglob("*.*"), *(tmp_path / "labels").rglob("*.txt")]:
            archive.write(path, f"town/{path.relative_to(tmp_path)}")
        archive.write(tmp_path / "data.yaml", "town/data.yaml")
    masks = {"yolo": "town/labels", "names": "town/data.yaml", **OUTSIDE}
    found = run(tmp_path, images="town/images", masks=masks)
    np.testing.assert_array_equal(found["a2"], BOTH)


def test_a_fourth_band_of_labels_hides_no_pixel(tmp_path: Path) -> None:
    fourth_band(tmp_path)
    run(tmp_path, masks={"band": 4}, labels=VALUES)
    manifest = read_manifest(tmp_path / "domains/town/town", "train")
    assert {row["ignored_pixels"] for row in manifest.rows} == {0}
    assert {row["nodata_share"] for row in manifest.rows} == {0.0}
    assert manifest.reading.label_band == 4


# --- messages


@pytest.mark.parametrize(
    ("form", "what", "line"),
    [
        ("GeoPackage", "polygons", "masks: {polygons: .*labels.gpkg, attribute: NAME, outside: background}"),
        ("COCO, polygons", "a COCO file", "masks: {coco: .*annotations.json, outside: background}"),
        ("labelme", "labelme's shapes", "masks: {labelme: .*images, outside: background}"),
        ("YOLO", "a dataset of YOLO", "masks: {yolo: .*labels, names: .*data.yaml, outside: background}"),
        ("Hugging Face", "an image folder of Hugging Face", "masks: {imagefolder: .*train}"),
    ],
)
def test_what_lies_there_instead_of_masks_is_named_with_the_words_for_it(
    form: str, what: str, line: str, tmp_path: Path
) -> None:
    FORMS[form][0](tmp_path)
    for path in [*tmp_path.rglob("*.png"), *tmp_path.rglob("*.tif"), *tmp_path.rglob("*.jpg")]:
        path.unlink()
    images(tmp_path, "pictures/a1.png", "pictures/a2.png")
    with pytest.raises(InputError, match=f"here: .*: {what}; write\n    {line}"):
        run(tmp_path, images="pictures", masks=".", labels=VALUES)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("x.h5", "a container of many images"),
        ("x.mrf", "an image of a kind that is not read"),
        ("x.ers", "an image of a kind that is not read"),
    ],
)
def test_what_holds_images_and_is_not_read_is_named(name: str, what: str, tmp_path: Path) -> None:
    for other in (name, "x.idx", "data.yaml.bak", "notes.docx", "labels.cache"):
        write(tmp_path / f"images/{other}", b"\x89HDF")
    with pytest.raises(InputError, match=rf"no images in this folder\n  here: .*{name}: {what}"):
        run(tmp_path, class_set=None)


def test_the_message_of_names_that_differ_has_the_line_that_pairs_them(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        images(tmp_path, f"images/t_{number}_sat.png")
        save(tmp_path / f"masks/t_{number}-label.png", BOTH)
    with pytest.raises(InputError) as error:
        run(tmp_path, masks="masks", labels=VALUES)
    line = next(line.strip() for line in str(error.value).splitlines() if line.strip().startswith("pairs:"))
    assert len(run(tmp_path, masks="masks", labels=VALUES, **yaml.safe_load(line))) == 3


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        ("0.png 0_mask.png 1.png 1_mask.png 10.png 10_mask.png", "{}.png -> {}_mask.png"),
        ("0.jpg 0-gt.png 1.jpg 1-gt.png", "{}.jpg -> {}-gt.png"),
        ("a_1_leftImg8bit.png a_1_gtFine_labelIds.png", "{}_leftImg8bit.png -> {}_gtFine_labelIds.png"),
        ("img_1.tif label_1.tif img_2.tif label_2.tif", "img_{}.tif -> label_{}.tif"),
        ("1.jpg 1.png 2.jpg 2.png", "{}.jpg -> {}.png"),
        ("a_sat_1.tif a_mask_1.tif a_sat_2.tif a_mask_2.tif", "{}_sat_{}.tif -> {}_mask_{}.tif"),
        ("1_sat.jpg 1_mask.png 2_sat.jpg 2_mask.png 3_sat.jpg", "{}_sat.jpg -> {}_mask.png"),
        ("1.jpg 2.jpg 3.jpg", None),
        ("1_a.png 1_b.png", None),
    ],
)
def test_names_show_how_they_pair(names: str, pairs: str | None) -> None:
    found = suggested(names.split(), names.split())
    assert (None if found is None else str(found)) == pairs
