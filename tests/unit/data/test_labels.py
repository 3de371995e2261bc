"""Label maps: what becomes which id, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from crossearth.data.catalog.labels import IGNORE, LabelSpec, parse_labels, remap_table
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.errors import InputError
from crossearth.data.raster.masks import RasterLabels
from crossearth.data.raster.reader import Raster, gdal

CATALOG = load_catalog()
LABELLED = [domain for domain in CATALOG.domains.values() if domain.labels]
CLASSES = ("background", "road", "water")

# the publishers' raw values by hand: a second opinion on catalog.yaml
ISPRS = [
    (0xFFFFFF, 0),
    (0x0000FF, 1),
    (0x00FFFF, 2),
    (0x00FF00, 3),
    (0xFFFF00, 4),
    (0xFF0000, 5),
    (0, IGNORE),
]
LOVEDA = [(0, IGNORE), (1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (6, 5), (7, 6)]
RESCUENET = [(0, 4), (1, 4), (2, 1), (3, 1), (4, 1), (5, 1), (6, 3), (7, 0), (8, 0), (9, 2), (10, 4)]
CASID = [(value, value) for value in range(5)]
BINARY = [(0, 0), (127, 0), (128, 1), (255, 1)]
RAW = {
    "potsdam": ISPRS,
    "vaihingen": ISPRS,
    "loveda": LOVEDA,
    "rescuenet": RESCUENET,
    "casid": CASID,
    "whu": BINARY,
    "deepglobe": BINARY,
    "massachusetts": BINARY,
}


def raster(raws: list[int], colours: bool) -> np.ndarray[Any, Any]:
    values = np.array([raws])
    return np.stack([values >> 16, values >> 8 & 255, values & 255]).astype(np.uint8) if colours else values


@pytest.mark.parametrize(
    "domain", [each for each in LABELLED if each.dataset in RAW], ids=lambda domain: domain.name
)
def test_every_raw_value_of_the_publisher_becomes_its_class(domain: Any) -> None:
    raws, ids = zip(*RAW[domain.dataset], strict=True)
    decoded = domain.labels.decode(raster(list(raws), domain.labels.kind == "colour").astype(np.uint8))
    assert decoded.dtype == np.uint8
    assert decoded.tolist() == [list(ids)]


@pytest.mark.parametrize("domain", LABELLED, ids=lambda domain: domain.name)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_ids_survive_the_publishers_form(domain: Any, data: st.DataObject) -> None:
    known = sorted({target for _, target in domain.labels.table})
    ids = data.draw(
        arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from(known))
    )
    assert np.array_equal(domain.labels.decode(domain.labels.encode(ids)), ids)


@pytest.mark.parametrize("domain", LABELLED, ids=lambda domain: domain.name)
def test_every_class_has_a_raw_value(domain: Any) -> None:
    classes = len(CATALOG.class_sets[domain.class_set].classes)
    assert {target for _, target in domain.labels.table} - {IGNORE} == set(range(classes))


def test_the_foreground_of_binary_sets_is_index_1() -> None:
    binary = [item for item in CATALOG.class_sets.values() if len(item.classes) == 2]
    assert {item.name: item.classes for item in binary} == {
        "road": ("background", "road"),
        "building": ("background", "building"),
    }
    assert all(item.primary_metric == "foreground" for item in binary)


def test_classes_stand_in_the_order_of_the_published_tables() -> None:
    assert CATALOG.class_sets["isprs"].classes == (
        "impervious surface",
        "building",
        "low vegetation",
        "tree",
        "car",
        "clutter",
    )
    assert CATALOG.class_sets["loveda"].classes == (
        "background",
        "building",
        "road",
        "water",
        "barren",
        "forest",
        "agriculture",
    )
    assert CATALOG.class_sets["casid"].classes == ("background", "building", "forest", "road", "water")


def test_potsdam_becomes_the_five_classes_shared_with_rescuenet() -> None:
    remap = CATALOG.remap("isprs", "rescue")
    assert remap == (0, 1, 2, 2, 3, 4)
    ids = np.array([[0, 1, 2, 3, 4, 5, IGNORE]], np.uint8)
    assert remap_table(remap)[ids].tolist() == [[0, 1, 2, 2, 3, 4, IGNORE]]


@pytest.mark.parametrize("name", CATALOG.class_sets)
def test_a_class_set_maps_to_itself_unchanged(name: str) -> None:
    assert CATALOG.remap(name, name) == tuple(range(len(CATALOG.class_sets[name].classes)))


colour_maps = st.lists(st.integers(0, 2**24 - 1), min_size=3, max_size=3, unique=True)


@given(colour_maps, arrays(np.uint8, st.tuples(st.just(3), st.integers(1, 20), st.integers(1, 20))))
@settings(deadline=None, max_examples=30)
def test_unknown_colours_are_counted_or_ignored(colours: list[int], raw: np.ndarray[Any, Any]) -> None:
    labels = parse_labels(
        {f"#{colour:06x}": name for colour, name in zip(colours, CLASSES, strict=True)}, CLASSES, ""
    )
    packed = raw[0].astype(int) << 16 | raw[1].astype(int) << 8 | raw[2]
    unknown = ~np.isin(packed, colours)
    decoded = labels.decode(raw, unknown="ignore")
    assert np.array_equal(decoded == IGNORE, unknown)
    for index, colour in enumerate(colours):
        assert np.array_equal(decoded == index, packed == colour)
    if unknown.any():
        with pytest.raises(
            InputError, match=f"{unknown.sum()} of {unknown.size} label pixels have colours outside"
        ):
            labels.decode(raw)
    else:
        assert np.array_equal(labels.decode(raw), decoded)


@given(
    arrays(
        st.sampled_from([np.uint8, np.uint16, np.int16, np.int32, np.int64, np.float32]),
        (5, 7),
        elements=st.integers(0, 127),
    )
)
@settings(deadline=None, max_examples=40)
def test_values_of_any_type_are_looked_up(raw: np.ndarray[Any, Any]) -> None:
    labels = parse_labels({0: "background", 100: "road", 7: "water", 1: "ignore"}, CLASSES, "")
    expected = np.select([raw == 0, raw == 100, raw == 7], [0, 1, 2], IGNORE)
    assert np.array_equal(labels.decode(raw, unknown="ignore"), expected)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        *[(-1, dtype) for dtype in ("int8", "int16", "int32", "int64", "float32")],
        *[(65536, dtype) for dtype in ("int32", "uint32", "int64", "uint64", "float32")],
        (2**31 - 1, "int64"),
    ],
)
def test_values_outside_every_table_are_unknown_and_do_not_wrap(value: int, dtype: str) -> None:
    labels = parse_labels({0: "background", 255: "road", 65535: "water"}, CLASSES, "")
    raw = np.array([[0, value]], dtype)
    assert labels.decode(raw, unknown="ignore").tolist() == [[0, IGNORE]]
    with pytest.raises(
        InputError, match=rf"1 of 2 label pixels have values outside the map: {raw[0, 1]} \(1 px\)"
    ):
        labels.decode(raw, "mask.tif")


def test_what_is_no_number_is_a_value_outside_the_map() -> None:
    labels = parse_labels({0: "background", 1: "road"}, CLASSES, "")
    raw = np.array([[0, 1, np.nan, np.nan, np.inf]], np.float32)
    assert labels.decode(raw, unknown="ignore").tolist() == [[0, 1, IGNORE, IGNORE, IGNORE]]
    with pytest.raises(InputError, match=r"(?s)3 of 5 .*: nan \(2 px\), inf \(1 px\).*-a_nodata nan"):
        labels.decode(raw)


def test_the_error_names_file_values_counts_and_choices() -> None:
    labels = parse_labels({0: "background", 1: "road", 2: "water"}, CLASSES, "")
    raw = np.zeros((4, 5), np.uint8)
    raw[0, :3], raw[1, 0] = 9, 200
    with pytest.raises(InputError) as caught:
        labels.decode(raw, "tiles/7.png")
    assert str(caught.value).startswith(
        "tiles/7.png: 4 of 20 label pixels have values outside the map: 9 (3 px), 200 (1 px)\n"
        "  expected: 0, 1, 2\n"
    )


@given(st.integers(1, 255), arrays(np.uint8, (6, 6)))
def test_a_threshold_belongs_to_its_upper_side(threshold: int, raw: np.ndarray[Any, Any]) -> None:
    labels = parse_labels({f"<{threshold}": "background", f">={threshold}": "road"}, CLASSES, "")
    assert np.array_equal(labels.decode(raw), (raw >= threshold).astype(np.uint8))


def test_thresholds_may_be_written_upside_down() -> None:
    labels = parse_labels({">=10": "background", "<10": "road"}, CLASSES, "")
    assert labels.decode(np.array([[0, 9, 10, 255]], np.uint8)).tolist() == [[1, 1, 0, 0]]
    assert np.array_equal(labels.decode(labels.encode(np.array([[0, 1]], np.uint8))), [[0, 1]])


def test_colours_of_a_lossy_label_snap_to_the_nearest_corner() -> None:
    potsdam = CATALOG.domain("potsdam-rgb")
    raw = np.array([[[9, 225, 252]], [[222, 227, 255]], [[221, 227, 0]]], np.uint8).reshape(3, 1, 3)
    lossy = potsdam.label_spec("4_12")
    assert lossy is not None
    assert lossy.decode(raw).tolist() == [[2, 0, 4]]
    with pytest.raises(InputError, match="3 of 3 label pixels have colours outside the map"):
        potsdam.label_spec("2_10").decode(raw)  # type: ignore[union-attr]


def test_magenta_is_unknown_even_when_snapped() -> None:
    labels = CATALOG.domain("potsdam-rgb").labels
    assert labels is not None
    with pytest.raises(InputError, match=r"#ff00ff \(1 px\)"):
        replace(labels, snap=True).decode(np.array([250, 3, 240], np.uint8).reshape(3, 1, 1))


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (np.array([[0.5, np.nan]], np.float32), "with fractions"),
        (np.zeros((4, 4), np.complex64), "a label of complex64"),
    ],
)
def test_rasters_that_cannot_hold_values_are_refused(raw: np.ndarray[Any, Any], problem: str) -> None:
    labels = parse_labels({0: "background", 1: "road"}, CLASSES, "")
    with pytest.raises(InputError, match=problem):
        labels.decode(raw)


def test_grey_is_read_as_values_or_as_colours_in_one_band_or_three() -> None:
    grey = np.repeat(np.array([[[0, 255]]], np.uint8), 3, axis=0)
    assert parse_labels({"<128": "background", ">=128": "road"}, CLASSES, "").decode(grey).tolist() == [
        [0, 1]
    ]
    colours = parse_labels({"#000000": "background", "#ffffff": "road"}, CLASSES, "")
    assert colours.decode(grey[:1]).tolist() == [[0, 1]]
    with pytest.raises(InputError, match="3 bands of uint16"):
        colours.decode(grey.astype(np.uint16))


def test_maps_survive_json_in_which_pipelines_hand_them_on() -> None:
    values, classes = {0: "background", 255: "road"}, ("background", "road")
    assert parse_labels(json.loads(json.dumps(values)), classes, "") == parse_labels(values, classes, "")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "labels are not a map"),
        ([0, 1], "labels are not a map"),
        ({0: "background", 1: "raod"}, "unknown class 'raod'.*\n.*'road'"),
        ({0: "background", "#ffffff": "road"}, "several kinds: colour, value"),
        ({"white": "road"}, "'white' is no raw value"),
        ({2**64: "road"}, "label value 18446744073709551616 out of range"),
        ({"band 0": "road", "band ": "road"}, "'band ' is no raw value"),
        ({"band 1": "road", "Band 1": "water"}, "'Band 1' is no raw value"),
        ({"band Roads": "road", "band roads": "water"}, "they are one raw value"),
        ({"#aabbcc": "background", "#AABBCC": "road"}, "they are one raw value"),
        ({True: "road"}, "True is no raw value"),
        ({"<128": "background"}, "not the two sides"),
        ({"<100": "background", ">=128": "road"}, "not the two sides"),
        ({"<128": "background", "<64": "road"}, "not the two sides"),
        ({"<0": "background", ">=0": "road"}, "out of range"),
        ({"9" * 5000: "road"}, "is no raw value"),
        ({"<" + "9" * 5000: "road"}, "is no raw value"),
    ],
)
def test_maps_that_cannot_be_meant_are_refused(values: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        parse_labels(values, CLASSES, "own.yaml: domains.x: labels")
    assert str(caught.value).startswith("own.yaml: domains.x: labels: ")


def test_encode_refuses_ids_without_a_raw_value() -> None:
    labels: LabelSpec = parse_labels({0: "background", 1: "road"}, CLASSES, "")
    with pytest.raises(InputError, match=r"no raw value for ids \[2, 255\]"):
        labels.encode(np.array([[0, 2, 255]], np.uint8))


def test_a_large_label_is_decoded_to_its_last_row() -> None:
    labels = CATALOG.domain("potsdam-rgb").labels
    assert labels is not None
    part = np.tile(np.arange(6, dtype=np.uint8), (60, 10))
    raw = np.tile(labels.encode(part), (1, 100, 100))
    assert np.array_equal(labels.decode(raw), np.tile(part, (100, 100)))


# --- masks in the forms in which programs write them

# what every mask shows, pixel by pixel: two of ground, two of road, one of water, one without a label
WANTED = [[0, 0, 1, 1, 2, IGNORE]]
NAMES = dict(zip((0, 1, 2), CLASSES, strict=True))
GROUND_ROAD = {0: "background", 255: "road"}


def values(*row: float, dtype: str = "uint8", **options: Any) -> Callable[[Path], Path]:
    """A GeoTIFF of one band."""
    return bands(row, dtype=dtype, **options)


def bands(
    *rows: Any,
    dtype: str = "uint8",
    names: tuple[str, ...] = (),
    mask: Any = None,
    palette: Any = None,
    **options: Any,
) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path, planes = folder / "mask.tif", np.array(rows, dtype)[:, None]
        with (
            gdal(),
            rasterio.open(
                path,
                "w",
                driver="GTiff",
                width=planes.shape[2],
                height=1,
                count=len(planes),
                dtype=dtype,
                **options,
            ) as file,
        ):
            file.write(planes)
            if names:
                file.descriptions = names
            if mask is not None:
                file.write_mask(np.array([mask], bool))
            if palette:
                file.write_colormap(1, palette)
        return path

    return write


def picture(
    mode: str, row: Any, name: str = "mask.png", palette: Any = None, **options: Any
) -> Callable[[Path], Path]:
    """An image as PIL saves it."""

    def write(folder: Path) -> Path:
        depth = {"1": "L", "P": "L"}.get(mode, mode)
        image = Image.fromarray(np.array([row], np.uint8), depth)
        if mode == "1":
            image = image.convert("1")
        if mode == "P":
            image = Image.fromarray(np.array([row], np.uint8), "P")
            image.putpalette(palette)
        image.save(folder / name, **options)
        return folder / name

    return write


RED_BLUE = {"#000000": "background", "#ff0000": "road", "#0000ff": "water"}
PALETTE = {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 0, 255), 300: (0, 0, 255)}
K, R, B = (0, 0, 0), (255, 0, 0), (0, 0, 255)
ONE_HOT = ((1, 1, 0, 0, 0, 0), (0, 0, 1, 1, 0, 0), (0, 0, 0, 0, 1, 0))
MASKS: dict[str, tuple[Callable[[Path], Path], dict[Any, str]]] = {
    "negative: ignore": (values(0, 0, 1, 1, 2, -1, dtype="int16"), NAMES | {-1: "ignore"}),
    "a negative class": (
        values(0, 0, -7, -7, 2, 9, dtype="int8"),
        {0: "background", -7: "road", 2: "water", 9: "ignore"},
    ),
    "more than 16 bits": (
        values(0, 0, 70000, 70000, 2**31, 5, dtype="uint32"),
        {0: "background", 70000: "road", 2**31: "water", 5: "ignore"},
    ),
    "64 bits": (
        values(-(2**63), -(2**63), 2**62 + 1, 2**62 + 1, 2, 5, dtype="int64"),
        {-(2**63): "background", 2**62 + 1: "road", 2: "water", 5: "ignore"},
    ),
    "nodata without a key": (values(0, 0, 1, 1, 2, -9999, dtype="int32", nodata=-9999), NAMES),
    "nodata of the type's end": (values(0, 0, 1, 1, 2, 2**31 - 1, dtype="int32", nodata=2**31 - 1), NAMES),
    "nodata that is no number": (values(0, 0, 1, 1, 2, np.nan, dtype="float32", nodata=np.nan), NAMES),
    "nodata that has a key": (values(0, 0, 1, 1, 2, 9, nodata=0), NAMES | {9: "ignore"}),
    "its own mask": (values(0, 0, 1, 1, 2, 0, mask=[1, 1, 1, 1, 1, 0]), NAMES),
    "grey and alpha": (picture("LA", [(0, 255), (0, 255), (1, 255), (1, 9), (2, 255), (0, 0)]), NAMES),
    "grey, alpha, colours": (
        picture("LA", [(0, 255), (0, 255), (255, 255), (255, 255), (9, 255), (0, 0)]),
        {"#000000": "background", "#ffffff": "road", "#090909": "water"},
    ),
    "colours and alpha": (
        picture("RGBA", [(*K, 255), (*K, 255), (*R, 255), (*R, 255), (*B, 255), (*K, 0)]),
        RED_BLUE,
    ),
    "colours with nodata": (
        bands((0, 0, 255, 255, 0, 7), (0, 0, 0, 0, 0, 7), (0, 0, 0, 0, 255, 7), nodata=7, photometric="RGB"),
        RED_BLUE,
    ),
    "a palette with a transparent colour": (
        picture("P", [0, 0, 1, 1, 2, 3], palette=[*K, *R, *B, *K], transparency=3),
        RED_BLUE,
    ),
    "a palette, by index": (
        picture("P", [0, 0, 1, 1, 2, 3], palette=[*K, *R, *B, *K]),
        NAMES | {3: "ignore"},
    ),
    "a palette of 16 bits": (
        bands((0, 0, 1, 1, 300, 9), dtype="uint16", palette=PALETTE | {9: (9, 9, 9)}, photometric="palette"),
        RED_BLUE | {"#090909": "ignore"},
    ),
    "a TIFF's palette with nodata that has a key": (
        bands((0, 0, 1, 1, 2, 9), palette=PALETTE | {9: (9, 9, 9)}, photometric="palette", nodata=0),
        RED_BLUE | {"#090909": "ignore"},
    ),
    "whole numbers in floats": (
        values(0, 0, 1, 1, -2, 9, dtype="float64"),
        {0: "background", 1: "road", -2: "water", 9: "ignore"},
    ),
    "one band per class": (
        bands(*ONE_HOT, nodata=0),
        {"band 1": "background", "band 2": "road", "band 3": "water"},
    ),
    "one band per class, tagged alpha": (
        bands((0,) * 6, *ONE_HOT, nodata=0),
        {"band 2": "background", "band 3": "road", "band 4": "water"},
    ),
    "one band per class, by name": (
        bands(*ONE_HOT, (0, 0, 0, 0, 0, 255), names=("Ground", "Roads", "the sea", "unseen")),
        {"band the sea": "water", "band roads": "road", "band ground": "background", "band unseen": "ignore"},
    ),
    "2 bits of grey": (
        values(0, 0, 1, 1, 2, 3, nbits=2),
        {0: "background", 85: "road", 170: "water", 255: "ignore"},
    ),
    "2 bits of numbers": (values(0, 0, 1, 1, 2, 3, nbits=2), NAMES | {3: "ignore"}),
}


def read_mask(path: Path, labels: dict[Any, str], **more: Any) -> list[list[int]]:
    with gdal(), rasterio.open(path) as mask:
        spec = parse_labels(labels, CLASSES, "")
        labels_of = RasterLabels(Raster(mask, str(path)), spec, more.get("unknown", "error"))
        return labels_of.read(None, mask.shape).tolist()


@pytest.mark.parametrize("case", MASKS)
def test_a_mask_is_read_as_its_file_means_it(case: str, tmp_path: Path) -> None:
    write, labels = MASKS[case]
    assert read_mask(write(tmp_path), labels) == WANTED


@pytest.mark.parametrize(
    ("name", "options"),
    [("mask.png", {}), ("mask.tif", {}), ("mask.tif", {"compression": "group4"}), ("mask.bmp", {})],
)
@pytest.mark.parametrize(
    "labels",
    [
        GROUND_ROAD,
        {0: "background", 1: "road", 255: "ignore"},
        {"<128": "background", ">=128": "road"},
        {"#000000": "background", "#ffffff": "road"},
    ],
    ids=["0 and 255", "0 and 1", "threshold", "colours"],
)
def test_one_bit_is_black_and_white(name: str, options: Any, labels: dict[Any, str], tmp_path: Path) -> None:
    path = picture("1", [0, 0, 255, 255, 0, 255], name, **options)(tmp_path)
    assert read_mask(path, labels) == [[0, 0, 1, 1, 0, 1]]


def test_one_bit_of_which_0_is_white(tmp_path: Path) -> None:
    path = values(1, 0, nbits=1, photometric="MINISWHITE")(tmp_path)
    assert read_mask(path, GROUND_ROAD) == [[0, 1]]


def test_a_threshold_may_lie_between_probabilities(tmp_path: Path) -> None:
    path = values(0, 0.49, 0.5, 1, 70000, np.nan, dtype="float32", nodata=np.nan)(tmp_path)
    assert read_mask(path, {"<0.5": "background", ">=0.5": "road"}) == [[0, 0, 1, 1, 1, IGNORE]]


@pytest.mark.parametrize(
    ("write", "labels", "words"),
    [
        (values(0, 1), NAMES, r"scaled by 0\.1 and moved by 0"),
        (values(0, 0.5, dtype="float32"), NAMES, 'with fractions\n.*\n.*"<0.5"'),
        (bands((0, 1), (0, 0), (0, 0)), NAMES, 'a label of 3 bands that differ\n.*\n.*"#ff0000"'),
        (bands((0, 1), (1, 0)), NAMES, 'a label of 2 bands that differ\n.*\n.*"band 1"'),
        (bands((0, 1), dtype="uint16"), RED_BLUE, "1 band of uint16\n.*\n.*raw values as keys"),
        (
            bands((0, 65535), (0, 0), (0, 0), dtype="uint16"),
            RED_BLUE,
            "-ot Byte -scale 0 65535 0 255 IN OUT.tif",
        ),
        (bands((0, 255), (0, 0), (0, 0), dtype="uint16"), RED_BLUE, "-ot Byte IN OUT.tif"),
        (
            bands((1, 1), (0, 1)),
            {"band 1": "background", "band 2": "road"},
            r"1 of 2 .* outside the map: 2 \(1 px\)",
        ),
        (
            bands((1, 1), (0, 1)),
            {"band 1": "background", "band 3": "road"},
            "without the band 3\n.*one of 1 to 2",
        ),
        (
            bands((1, 1), (0, 1), names=("soil", "road")),
            {"band soil": "background", "band raod": "road"},
            "without the band raod\n.*one of 1 to 2, soil, road",
        ),
    ],
)
def test_masks_that_cannot_be_meant_are_refused_with_a_way(
    write: Callable[[Path], Path], labels: dict[Any, str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        path = write(tmp_path)
        if "scaled" in words:
            with rasterio.open(path, "r+") as file:
                file.scales = (0.1,)
        read_mask(path, labels)
    assert str(caught.value).startswith(f"{tmp_path}/mask.tif: ")


def test_of_many_names_a_message_shows_some() -> None:
    names = [f"class {number}" for number in range(250)]
    with pytest.raises(InputError) as caught:
        parse_labels({0: "clas 7"}, names, "own.yaml")
    assert "'class 7'? (choices: class 0, class 1, class 10" in str(caught.value).replace(
        "class 7?", "'class 7'?"
    )
    assert "and 226 more" in str(caught.value) and len(str(caught.value)) < 600
