import errno
import fcntl
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from own_domain import NAME, catalog, draw, own_domain, save, tree
from PIL import ExifTags, Image
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.transform import from_origin

from crossearth.components.ingest import step
from crossearth.components.ingest.scene import Plan
from crossearth.components.ingest.sources import SceneSource
from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.components.runtime.shell import refusals
from crossearth.data.catalog.labels import IGNORE
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common import files
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import digest
from crossearth.data.tiles.manifest import Manifest, read_image, read_label, read_manifest

TESTS = Path(__file__).parents[2]
ONE = IngestConfig(workers=1)


def run(folder: Path, out: str = "domains", config: IngestConfig = ONE, **entry: Any) -> Path:
    (path,) = ingest([NAME], catalog(folder, **entry), folder / "archives", folder / out, config)
    return path


def manifests(path: Path) -> tuple[Manifest, Manifest]:
    return read_manifest(path, "train"), read_manifest(path, "test")


@pytest.fixture
def town(tmp_path: Path) -> Path:
    own_domain(tmp_path)
    return tmp_path


# --- what a user's folder becomes


def test_tiles_hold_the_users_pixels(town: Path) -> None:
    train, test = manifests(run(town))
    assert (len(train), len(test)) == (6 * 4, 2 * 4)
    assert train.provenance == "own"
    assert {entry["scene"] for entry in test.rows} == {"scene_6", "scene_7"}
    for manifest in (train, test):
        for index, entry in enumerate(manifest.rows):
            image, mask = draw(int(entry["scene"][-1]))
            down = slice(entry["row_off"], entry["row_off"] + 48)
            across = slice(entry["col_off"], entry["col_off"] + 48)
            np.testing.assert_array_equal(read_image(manifest, index), image[:, down, across])
            np.testing.assert_array_equal(read_label(manifest, index), mask[down, across])
    assert train.rows[1]["tile_id"] == "scene_0_16_0_64_48"
    assert train.rows[0]["bands"] == ["red", "green", "blue"]


def test_workers_change_no_byte(town: Path) -> None:
    assert tree(run(town)) == tree(run(town, "two", IngestConfig(workers=2)))


def test_tile_px_overrides_the_catalog_but_whole_images_stay_whole(town: Path) -> None:
    small = IngestConfig(workers=1, tile_px=32)
    assert {entry["width"] for entry in manifests(run(town, config=small))[0].rows} == {32}
    whole = run(town, config=small, tile={"px": 48, "rule": "whole"})
    assert {entry["width"] for entry in manifests(whole)[0].rows} == {64}


EDGES = {7: (64, 30), 2: (20, 20), 5: (30, 200)}  # height, width


@pytest.mark.parametrize(
    ("tile", "shapes"),
    [
        ({"px": 48, "rule": "cut"}, {7: (48, 48), 2: (48, 48), 5: (48, 48)}),
        ({"px": 512, "rule": "cut"}, {7: (64, 64), 2: (64, 64), 5: (64, 200)}),
        ({"px": 48, "rule": "whole"}, {7: (64, 48), 2: (48, 48), 5: (48, 200)}),
        ({"px": 128, "rule": "fit"}, {7: (128, 128), 2: (128, 128), 5: (128, 128)}),
    ],
)
def test_a_scene_smaller_than_most_is_padded_and_ignored_there(
    tile: dict[str, Any], shapes: dict[int, tuple[int, int]], town: Path
) -> None:
    for number, (height, width) in EDGES.items():
        image, mask = draw(number, 200)
        save(town / "images" / f"scene_{number}.tif", image[:, :height, :width])
        save(town / "masks" / f"scene_{number}.png", mask[:height, :width])
    found = manifests(run(town, tile=tile))
    for manifest in found:
        for index, row in enumerate(manifest.rows):
            number = int(row["scene"][-1])
            label, image = read_label(manifest, index), read_image(manifest, index)
            if number not in EDGES:
                assert row["ignored_pixels"] == 0
            else:
                height, width = EDGES[number]
                assert label.shape == shapes[number]
                if tile["rule"] != "fit":
                    seen = label[: height - row["row_off"], : width - row["col_off"]]
                    assert row["ignored_pixels"] == label.size - seen.size == (label == IGNORE).sum()
                    assert not image[:, seen.shape[0] :].any() and not image[:, :, seen.shape[1] :].any()
                    assert row["nodata_share"] == pytest.approx(1 - seen.size / label.size, abs=0.02)


def test_images_of_one_small_size_or_without_labels_are_not_padded(town: Path) -> None:
    assert {row["width"] for row in manifests(run(town, tile={"px": 512}))[0].rows} == {64}
    save(town / "images" / "scene_2.tif", draw(2)[0][:, :20])
    path = run(town, masks=None, labels=None, class_set=None, split="train")
    assert {row["height"] for row in read_manifest(path, "train").rows} == {48, 20}


def test_ingest_again_replaces_the_domain(town: Path) -> None:
    run(town)
    path = run(town, tile={"px": 64, "rule": "cut"})
    assert len(manifests(path)[0]) == 6
    assert sorted(entry.name for entry in path.parent.iterdir()) == [NAME]


def test_names_may_differ_in_case_and_masks_in_suffix(town: Path) -> None:
    for path in (town / "masks").iterdir():
        path.rename(path.with_name(path.name.upper()))
    assert len(manifests(run(town))[0]) == 24


def test_pairs_say_how_names_are_alike(town: Path) -> None:
    for path in (town / "masks").iterdir():
        path.rename(path.with_name(f"mask_{path.stem.split('_')[1]}.png"))
    assert len(manifests(run(town, pairs="scene_{}.tif -> mask_{}.png"))[0]) == 24


def test_tiles_of_one_scene_stay_in_one_split(town: Path) -> None:
    train, test = manifests(
        run(
            town,
            pairs="scene_{}.tif -> scene_{}.png",
            scene=r"^([0-3]|[4-7])",
            tile={"px": 64, "rule": "whole"},
        )
    )
    assert not {entry["scene"] for entry in train.rows} & {entry["scene"] for entry in test.rows}


def test_images_in_a_zip_and_masks_inside_the_images_folder(town: Path) -> None:
    plain = tree(run(town))
    packed = shutil.make_archive(str(town / "pack"), "zip", town / "images")
    shutil.rmtree(town / "images")
    (town / "images").mkdir()
    shutil.move(packed, town / "images")
    shutil.move(town / "masks", town / "images" / "masks")
    assert tree(run(town, "packed", masks="images/masks")) == plain


@pytest.mark.parametrize(
    ("crs", "x", "y", "width", "gsd_m"),
    [
        ("EPSG:32633", 5e5, 5e6, 0.5, 0.5 / 0.9996),
        ("EPSG:3857", 1e6, 8_399_738, 1, 0.5),
        ("EPSG:4326", 9, 0, 1e-5, 1.11),
        ("+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=40 +lon_0=10", 0, 0, 1e-5, 1.11),
    ],
)
def test_metres_per_pixel_are_the_grounds(
    crs: str, x: float, y: float, width: float, gsd_m: float, town: Path
) -> None:
    turned = rasterio.Affine.rotation(60) @ rasterio.Affine.scale(width, -width)
    place = rasterio.Affine.translation(x, y) @ turned
    save(town / "images" / "scene_0.tif", draw(0)[0], crs=crs, transform=place)
    train, _ = manifests(run(town))
    assert train.rows[0]["gsd_m"] == pytest.approx(gsd_m, rel=5e-3)


PLACE = {"crs": "EPSG:32633", "transform": from_origin(300_000, 5_000_000, 0.5, 0.5)}


def control_points(left: float) -> dict[str, Any]:
    """PLACE, or that beside it, as ground control points say it."""
    corners = [(0, 0), (0, 64), (64, 0), (64, 64)]
    points = [GroundControlPoint(row, col, left + col / 2, 5e6 - row / 2) for row, col in corners]
    return {"gcps": points, "crs": "EPSG:32633"}


def rpcs(lon: float) -> RPC:
    """Of a camera right above: samples go with longitude, lines against latitude, a hundredth of a degree."""
    one = [1.0] + [0.0] * 19
    east, south = [0.0, 1.0] + [0.0] * 18, [0.0, 0.0, -1.0] + [0.0] * 17
    return RPC(0, 1, 50, 0.01, one, south, 32, 32, lon, 0.01, one, east, 32, 32)


def placed(town: Path, **place: Any) -> None:
    """The first scene with a georeference, and its mask with another."""
    image, mask = draw(0)
    save(town / "images" / "scene_0.tif", image, **PLACE)
    (town / "masks" / "scene_0.png").unlink(missing_ok=True)
    save(town / "masks" / "scene_0.tif", mask, **place)


@pytest.mark.parametrize(
    "place",
    [
        PLACE,
        {},
        {"crs": "EPSG:32633"},
        PLACE | {"transform": from_origin(300_000.25, 5_000_000.25, 0.5, 0.5)},
        PLACE | {"crs": "EPSG:25833"},
        control_points(300_000),
    ],
    ids=["the same", "none", "a CRS alone", "half a pixel off", "a CRS of another name", "control points"],
)
def test_a_mask_lies_where_its_image_does_or_says_nothing(place: dict[str, Any], town: Path) -> None:
    placed(town, **place)
    train, _ = manifests(run(town))
    assert (train.rows[0]["crs"], train.rows[0]["transform"][2]) == ("EPSG:32633", 300_000)


def test_split_file(town: Path) -> None:
    lines = [
        f"scene_{number}{'.tif' * (number % 2)},{'test' if number < 3 else 'train'}" for number in range(8)
    ]
    (town / "split.csv").write_text("\n".join(["id,split", *lines]))
    train, test = manifests(run(town, split="split.csv"))
    assert {entry["scene"] for entry in test.rows} == {"scene_0", "scene_1", "scene_2"}
    assert len(train) == 20


@pytest.mark.parametrize(
    "content",
    [
        "id\tsplit\r\n{}".encode("utf-16"),
        "id;split\n{}".encode("utf-8-sig"),
        b"\nid,split\n{}",
    ],
    ids=["UTF-16 with tabs", "semicolons", "an empty line"],
)
def test_split_files_of_windows(content: bytes, town: Path) -> None:
    coding = "utf-16" if content[:2] == b"\xff\xfe" else "utf-8-sig"
    between = next(mark for mark in "\t;," if mark in content.decode(coding))
    lines = [f"images\\scene_{n}.tif{between}{'test' if n < 3 else 'train'}" for n in range(8)]
    text = content.decode(coding).format("\n".join(lines))
    (town / "split.csv").write_bytes(text.encode(coding))
    _, test = manifests(run(town, split="split.csv"))
    assert {entry["scene"] for entry in test.rows} == {"scene_0", "scene_1", "scene_2"}


def test_names_with_windows_separators_in_a_zip(town: Path) -> None:
    plain = tree(run(town))
    with zipfile.ZipFile(town / "pack.zip", "w") as archive:
        for path in sorted((town / "images").iterdir()):
            entry = zipfile.ZipInfo("x")
            entry.filename = f"tiles\\{path.name}"
            archive.writestr(entry, path.read_bytes())
    shutil.rmtree(town / "images")
    (town / "images").mkdir()
    shutil.move(town / "pack.zip", town / "images")
    assert tree(run(town, "packed")) == plain


def test_all_in_one_split(town: Path) -> None:
    path = run(town, split="test")
    assert len(read_manifest(path, "test")) == 32
    assert not (path / "train.parquet").exists()


def test_unlabelled_images_are_ingested(town: Path) -> None:
    path = run(town, masks=None, labels=None, class_set=None, split="train")
    manifest = read_manifest(path, "train")
    assert manifest.classes == ()
    assert read_image(manifest, 0).shape == (3, 48, 48)
    with pytest.raises(InputError, match="no labels"):
        read_label(manifest, 0)


def test_unknown_labels_can_be_ignored(town: Path) -> None:
    _, mask = draw(0)
    mask[5:7] = 9
    save(town / "masks" / "scene_0.png", mask)
    with pytest.raises(InputError, match=r"scene_0\.png: 128 of 4096 label pixels"):
        run(town)
    lenient = IngestConfig(workers=1, unknown_labels="ignore")
    with pytest.raises(InputError, match=r"scene_0\.png: 128 of 4096 label pixels"):
        run(town, config=lenient, unknown_labels="error")
    for path in (run(town, config=lenient), run(town, unknown_labels="ignore")):
        assert (read_label(manifests(path)[0], 0) == IGNORE).sum() == 2 * 48


def test_names_of_datasets_and_domains() -> None:
    benchmark = load_catalog()
    assert [domain.name for domain in benchmark.domains_named("potsdam")] == ["potsdam-rgb", "potsdam-irrg"]
    assert [domain.name for domain in benchmark.domains_named("casid-sub")] == ["casid-sub"]
    with pytest.raises(InputError, match="'potsdam-rgb'"):
        benchmark.domains_named("potsdam-rbg")


# --- wrong input: one clear error, nothing left behind


def jpeg_label(town: Path) -> None:
    (town / "masks" / "scene_3.png").unlink()
    save(town / "masks" / "scene_3.jpg", draw(3)[1] * 255)


def turned(town: Path) -> None:
    image = Image.fromarray(draw(3)[0].transpose(1, 2, 0))
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = 6
    (town / "images" / "scene_3.tif").unlink()
    image.save(town / "images" / "scene_3.jpg", exif=exif)


def described(path: Path, *names: str) -> None:
    with rasterio.open(path, "r+") as file:
        file.descriptions = names


def coloured(path: Path, *colours: str) -> None:
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp[colour] for colour in colours]


def truncated(town: Path) -> None:
    path = town / "images" / "scene_3.tif"
    path.write_bytes(path.read_bytes()[:9000])


def half_png(town: Path) -> None:
    path = town / "masks" / "scene_3.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pointer_in_a(kind: str) -> Callable[[Path], None]:
    """The images in an archive of `kind`, one of them a VRT that points to a file of the user's."""

    def pack(town: Path) -> None:
        images, own = town / "images", town / "own.tif"
        (images / "scene_3.tif").rename(own)
        rasterio.shutil.copy(own, town / "own.vrt", driver="VRT")
        pointer = (town / "own.vrt").read_text().replace('relativeToVRT="1">own', f'relativeToVRT="0">{own}')
        (images / "scene_3.tif").write_text(pointer)
        for inner in kind.split(" in "):
            packed = shutil.make_archive(str(town / "pack"), inner, images)
            shutil.rmtree(images)
            images.mkdir()
            shutil.move(packed, images)

    return pack


def copy_deeper(town: Path) -> None:
    (town / "images" / "more").mkdir()
    shutil.copy(town / "images" / "scene_3.tif", town / "images" / "more" / "SCENE_3.tif")


def palette_image(town: Path) -> None:
    path = town / "images" / "scene_3.tif"
    save(path, draw(3)[1], photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (9, 99, 9), 1: (200, 200, 200)})


def split_file(*lines: str) -> Callable[[Path], None]:
    def write(town: Path) -> None:
        (town / "split.csv").write_text("\n".join(["id,split", *lines]))

    return write


EVERY = [f"scene_{number},{'test' if number > 5 else 'train'}" for number in range(8)]
WRONG: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "value outside the map": (
        lambda town: save(town / "masks" / "scene_3.png", draw(3)[1] * 3),
        {},
        r"scene_3\.png: 512 of 4096 label pixels have values outside the map: 3 \(512 px\)",
    ),
    "image without a mask": (
        lambda town: (town / "masks" / "scene_3.png").unlink(),
        {},
        r"1 of 8 images have no label: .*scene_3\.tif",
    ),
    "sizes differ": (
        lambda town: save(town / "masks" / "scene_3.png", draw(3, 60)[1]),
        {},
        r"scene_3\.png: a label of 60 x 60 px for an image of 64 x 64 px",
    ),
    "empty folder": (
        lambda town: shutil.rmtree(town / "images") or (town / "images").mkdir(),
        {},
        "no images in this",
    ),
    "no folder": (lambda town: None, {"images": "imges"}, "imges: no such folder"),
    "truncated tiff": (truncated, {}, r"scene_3\.tif: cannot read its pixels"),
    "not an image": (
        lambda town: (town / "images" / "scene_3.tif").write_text("hello"),
        {},
        r"scene_3\.tif: not an image",
    ),
    **{
        f"pointer in a {kind}": (pointer_in_a(kind), {}, r"scene_3\.tif: not an image")
        for kind in ("zip", "tar", "gztar", "zip in tar", "tar in zip")
    },
    "label is not an image": (
        lambda town: (town / "masks" / "scene_3.png").write_text("hello"),
        {},
        r"scene_3\.png: not an image",
    ),
    "jpeg label": (jpeg_label, {}, r"scene_3\.jpg: a label compressed with loss"),
    "image turned by its EXIF": (
        turned,
        {},
        r"scene_3\.jpg: an image that viewers turn \(EXIF orientation 6",
    ),
    **{
        f"lossy label: {compression}": (
            lambda town, options=options: (
                (town / "masks" / "scene_3.png").unlink()
                or save(town / "masks" / "scene_3.tif", np.repeat(draw(3)[1][None], 3, 0), **options)
            ),
            {},
            r"scene_3\.tif: a label compressed with loss",
        )
        for compression, options in (
            ("WebP", {"compress": "webp", "webp_level": 50}),
            ("LERC", {"compress": "lerc", "max_z_error": 2}),
        )
    },
    "jpeg in tiff": (
        lambda town: (
            (town / "masks" / "scene_3.png").unlink(),
            save(town / "masks" / "scene_3.tif", draw(3)[1], compress="jpeg"),
        ),
        {},
        r"scene_3\.tif: a label compressed with loss",
    ),
    **{
        f"mask {case}": (
            lambda town, place=place: placed(town, **place),
            {},
            rf"scene_0\.tif: a label at {words}.*\), for an image at EPSG:32633 \(300000, 4999968, 300032, "
            r"5000000\)\n  expected: the place of .*images/scene_0\.tif",
        )
        for case, place, words in (
            ("in another zone", PLACE | {"crs": "EPSG:32632"}, r"EPSG:32632 \(300000,"),
            (
                "beside",
                PLACE | {"transform": from_origin(300_001, 5_000_000, 0.5, 0.5)},
                r"EPSG:32633 \(300001,",
            ),
            (
                "of larger pixels",
                PLACE | {"transform": from_origin(300_000, 5_000_000, 0.6, 0.6)},
                r"EPSG:32633 \(300000, 4999961\.6, 300038\.4,",
            ),
            ("by a world file alone", {"transform": from_origin(7, 9, 2, 2)}, r"no CRS \(7,"),
            (
                "upside down",
                PLACE | {"transform": from_origin(300_000, 4_999_968, 0.5, -0.5)},
                r"EPSG:32633 \(300000, 4999968,",
            ),
            ("by ground control points", control_points(300_001), r"EPSG:32633 \(300001,"),
        )
    },
    "both placed by ground control points, apart": (
        lambda town: (
            save(town / "images" / "scene_3.tif", draw(3)[0], **control_points(300_000)),
            (town / "masks" / "scene_3.png").unlink(),
            save(town / "masks" / "scene_3.tif", draw(3)[1], **control_points(900_000)),
        ),
        {},
        r"scene_3\.tif: a label at EPSG:32633 \(900000, .* for an image at EPSG:32633 \(300000,",
    ),
    "both placed by RPCs, apart": (
        lambda town: (
            save(town / "images" / "scene_3.tif", draw(3)[0], rpcs=rpcs(10)),
            (town / "masks" / "scene_3.png").unlink(),
            save(town / "masks" / "scene_3.tif", draw(3)[1], rpcs=rpcs(11)),
        ),
        {},
        r"scene_3\.tif: a label at EPSG:4326 \(10\.9",
    ),
    "mask placed by its aux.xml": (
        lambda town: (
            save(town / "images" / "scene_3.tif", draw(3)[0], **PLACE),
            (town / "masks" / "scene_3.png.aux.xml").write_text(
                "<PAMDataset><SRS>EPSG:32633</SRS>"
                "<GeoTransform>300000,0.5,0,9000000,0,-0.5</GeoTransform></PAMDataset>"
            ),
        ),
        {},
        r"scene_3\.png: a label at EPSG:32633 \(300000, 8999968,",
    ),
    "both placed by world files, apart": (
        lambda town: (
            (town / "images" / "scene_3.tfw").write_text("0.5\n0\n0\n-0.5\n1000\n2000\n")
            and (town / "masks" / "scene_3.pgw").write_text("0.5\n0\n0\n-0.5\n1000\n502000\n")
        ),
        {},
        r"scene_3\.png: a label at no CRS .* for an image at no CRS",
    ),
    "half a png": (half_png, {}, r"scene_3\.png: cannot read its pixels, .*: libpng: Read Error"),
    "one file per band": (
        lambda town: [
            save(town / kind / f"x_B0{band}.{suffix}", draw(3)[1])
            for band in (2, 3, 4)
            for kind, suffix in (("images", "tif"), ("masks", "png"))
        ],
        {},
        r"x_B0\d\.tif: an image of 1 bands\n.*\n  next: .*gdalbuildvrt -separate \S+rgb\.vrt \S+B04\.tif",
    ),
    "16 bit": (
        lambda town: save(town / "images" / "scene_3.tif", draw(3)[0].astype(np.uint16) * 20),
        {},
        r"scene_3\.tif: an image of uint16, values 8\d\d to \d+\n  expected: 8 bit\n  .*value_range: \[8",
    ),
    "16 bit with holes": (
        lambda town: save(
            town / "images" / "scene_3.tif",
            np.where(draw(3)[1] == 1, -9999, draw(3)[0].astype(np.int16) * 20),
            nodata=-9999,
        ),
        {},
        r"scene_3\.tif: an image of int16, values 8\d\d to \d+\n  expected: 8 bit\n  .*value_range: \[8",
    ),
    "palette": (palette_image, {"bands": [1, 1, 1]}, r"scene_3\.tif: .*a palette.*\n.*\n.*-expand rgb"),
    "too few bands": (
        lambda town: save(town / "images" / "scene_3.tif", draw(3)[0][:2]),
        {},
        r"scene_3\.tif: an image of 2 bands\n  expected: at least 3",
    ),
    "bands that the file names otherwise": (
        lambda town: described(town / "images" / "scene_3.tif", "Blue", "Green", "Red"),
        {},
        r"scene_3\.tif: bands that the file names blue, green, red\n.*\n.* red: 3, green: 2, blue: 1",
    ),
    "bands in the order of other colours": (
        lambda town: coloured(town / "images" / "scene_3.tif", "blue", "green", "red"),
        {},
        r"scene_3\.tif: bands that the file names blue, green, red\n.*\n.* red: 3, green: 2, blue: 1",
    ),
    "band beyond the file": (lambda town: None, {"bands": [4, 2, 1]}, r"of 3 bands\n  expected: at least 4"),
    "one name twice": (
        copy_deeper,
        {},
        r"1 of 9 images have no label: .*more/SCENE_3\.tif\n.*is 'more/scene_3'",
    ),
    "one scene": (
        lambda town: [path.unlink() for path in (town / "images").glob("*[1-7].tif")],
        {},
        "one scene cannot be split",
    ),
    "rar": (
        lambda town: (
            shutil.rmtree(town / "images")
            or (town / "images").mkdir()
            or (town / "images" / "x.rar").write_text("")
        ),
        {},
        "unrar x",
    ),
    "scene in both splits": (
        split_file(*EVERY, "scene_0,test"),
        {"split": "split.csv"},
        r"split\.csv: line 10: scene 'scene_0' is in both splits",
    ),
    "image not in the split file": (split_file(*EVERY[1:]), {"split": "split.csv"}, "does not name: scene_0"),
    "split file of other images": (
        split_file(*EVERY, "town,test"),
        {"split": "split.csv"},
        "without an image: town",
    ),
    "no split file": (lambda town: None, {"split": "split.csv"}, r"split\.csv: cannot read"),
    "word in the split file": (
        split_file("scene_0,val"),
        {"split": "split.csv"},
        "expected: id,train or id,test",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_error_and_leaves_nothing(case: str, town: Path) -> None:
    spoil, entry, words = WRONG[case]
    spoil(town)
    with pytest.raises(InputError, match=words):
        run(town, **entry)
    assert not list((town / "domains").rglob("*"))


def test_wrong_input_keeps_the_domain_that_was_there(town: Path) -> None:
    before = tree(run(town))
    truncated(town)
    with pytest.raises(InputError):
        run(town, config=IngestConfig(workers=2))
    assert tree(town / "domains" / NAME / NAME) == before
    assert [path.name for path in (town / "domains").iterdir()] == [NAME]


def test_a_domain_of_the_datasets_name_leaves_the_others_of_the_dataset(town: Path) -> None:
    shutil.copytree(town / "images", town / "archives" / "city" / "images")
    split = {"train": {"images": "*images/scene_*.tif"}}
    domains = {name: {"dataset": "city", **split} for name in ("city", "city-small")}
    (town / "city.yaml").write_text(json.dumps({"datasets": {"city": {"title": "City"}}, "domains": domains}))
    known = load_catalog([town / "city.yaml"], town)
    assert [domain.name for domain in known.domains_named("city")] == ["city", "city-small"]
    for name in ("city-small", "city"):
        ingest([name], known, town / "archives", town / "domains", ONE)
        small = town / "domains" / "city" / "city-small"
        assert len(read_manifest(small, "train")) == 8
    ingest(["city-small"], known, town / "archives", town / "domains", ONE)
    assert sorted(path.name for path in small.parent.iterdir()) == ["city", "city-small"]


def test_a_label_of_jpeg_2000_without_loss_is_taken(town: Path) -> None:
    (town / "masks" / "scene_7.png").unlink()
    mask = town / "masks" / "scene_7.jp2"
    save(mask, draw(7)[1], driver="JP2OpenJPEG", reversible="yes", quality=100)
    _, test = manifests(run(town))
    assert sum(row["class_pixels"][1] for row in test.rows if row["scene"] == "scene_7") > 0


def test_an_accent_is_the_same_letter_however_a_disk_writes_it(town: Path) -> None:
    for folder, suffix, form in (("images", ".tif", "NFC"), ("masks", ".png", "NFD")):
        name = unicodedata.normalize(form, f"Süd{suffix}")
        (town / folder / f"scene_7{suffix}").rename(town / folder / name)
    split_file(*EVERY[:7], unicodedata.normalize("NFD", "SÜD.tif,test"))(town)
    _, test = manifests(run(town, split="split.csv"))
    assert {row["scene"] for row in test.rows} == {"scene_6", "Süd"}


def test_too_little_disk_is_seen_before_anything_is_written(
    town: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"town needs about \S+ MB, 1\.0 kB are free"):
        run(town)
    assert not list((town / "domains").rglob("*"))


def test_a_disk_that_fills_up_leaves_nothing(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def full(path: Path, content: Any) -> int:
        if path.name == "scene_5.tif":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left on device\n  next: free some disk"), refusals():
        run(town)
    assert not list((town / "domains").rglob("*"))


def test_a_target_that_cannot_be_written(town: Path) -> None:
    (town / "domains").write_text("a file")
    with pytest.raises(InputError, match="next: a file lies where a folder should"), refusals():
        run(town)


def test_two_ingests_at_once(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (town / "domains").mkdir()
    monkeypatch.setattr(files, "PATIENCE_S", 0.0)
    with (
        files.file_lock(town / "domains" / NAME, "this"),
        pytest.raises(InputError, match=f"an ingest of town is running already: process {os.getpid()} on"),
    ):
        run(town)
    assert not list((town / "domains").iterdir())


# --- killed in the middle


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("workers outlive their parent")


def lock_is_free(domains_dir: Path) -> bool:
    with (domains_dir / f".{NAME}.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_a_killed_ingest_goes_on_where_it_stopped(tmp_path: Path) -> None:
    own_domain(tmp_path, num=60, side=200)
    whole = tree(run(tmp_path, "whole"))
    arguments = ([NAME], catalog(tmp_path), tmp_path, tmp_path / "domains", IngestConfig(workers=2))
    process = multiprocessing.get_context("fork").Process(target=ingest, args=arguments)
    process.start()
    journal = tmp_path / "domains" / ".ingest" / NAME / "journal.jsonl"
    while process.is_alive() and not (journal.exists() and journal.stat().st_size > 20_000):
        time.sleep(0.005)
    process.kill()
    process.join()
    wait_for(lambda: lock_is_free(tmp_path / "domains"))
    assert journal.exists(), "it was done before it could be killed"
    done = len(journal.read_text().splitlines())
    assert 0 < done < 60
    # half a line and half a scene, as a kill may leave them
    journal.write_text(journal.read_text() + '{"key": "ab')
    first = next((journal.parent / "train" / "images").iterdir())
    times = {path: path.stat().st_mtime_ns for path in journal.parent.rglob("*.tif") if path != first}
    first.write_bytes(first.read_bytes()[:100])

    path = run(tmp_path)
    assert tree(path) == whole
    kept = [
        source
        for source, when in times.items()
        if (path / source.relative_to(journal.parent)).stat().st_mtime_ns == when
    ]
    assert len(kept) >= 2 * (done - 3)  # but for what was damaged above and what the kill cut
    assert sorted(entry.name for entry in path.parent.iterdir()) == [NAME]


def test_a_changed_scene_is_done_again(town: Path) -> None:
    """A journal of another version of the input is no journal."""
    work = town / "domains" / ".ingest" / NAME
    plain = tree(run(town))
    (work / "train" / "images").mkdir(parents=True)
    (work / "train" / "images" / "gone.tif").write_bytes(b"from an image that was removed since")
    entry = {"key": "old", "files": {}, "rows": []}
    (work / "journal.jsonl").write_text(json.dumps({**entry, "digest": digest(entry)}) + "\n")
    assert tree(run(town)) == plain


@pytest.fixture
def killed(town: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What an ingest leaves that was killed before its last step."""

    def killing(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(step, "_tidy", killing)
        run(town)
    return town / "domains" / ".ingest" / NAME


def cut_again(town: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, bytes], list[str]]:
    """The domain, and the scenes that the run which finishes it cuts."""
    scenes: list[str] = []
    ingest_scene = step.ingest_scene

    def counting(plan: Plan, work: Path, source: SceneSource) -> list[dict[str, Any]]:
        scenes.append(source.key)
        return ingest_scene(plan, work, source)

    monkeypatch.setattr(step, "ingest_scene", counting)
    return tree(run(town)), scenes


LINES: dict[str, Callable[[bytes], bytes]] = {
    "whole": lambda line: line,
    "another count": lambda line: re.sub(rb'("class_pixels": \[)\d', rb"\g<1>5", line),
    "another file": lambda line: line.replace(b"scene_2.tif", b"scene_1.tif"),
    "no text": lambda line: b"\xff" + line[1:],
    "half": lambda line: line[:500],
    "a list": lambda _: b"[]",
    "nothing said": lambda _: b"{}",
    "a number": lambda _: b"5",
    "deep": lambda _: b"[" * 100_000,
}


@pytest.mark.parametrize("case", LINES)
def test_a_damaged_line_of_the_journal_is_none(
    case: str, town: Path, killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tree(run(town, "plain"))
    lines = (killed / "journal.jsonl").read_bytes().split(b"\n")
    (place,) = [number for number, line in enumerate(lines) if b"scene_2.tif" in line]
    damaged = LINES[case](lines[place])
    assert (damaged != lines[place]) == (case != "whole")
    lines[place] = damaged
    (killed / "journal.jsonl").write_bytes(b"\n".join(lines))
    assert cut_again(town, monkeypatch) == (plain, [] if case == "whole" else ["scene_2"])


def test_a_stored_scene_that_changed_after_a_kill_is_cut_again(
    town: Path, killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tree(run(town, "plain"))
    path = killed / "train" / "labels" / "scene_2.tif"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    assert cut_again(town, monkeypatch) == (plain, ["scene_2"])


def test_a_scene_of_36_million_pixels_needs_less_than_a_gigabyte(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = np.tile(rng.integers(0, 256, (3, 500, 500), np.uint8), (1, 12, 12))
    save(tmp_path / "images" / "big.tif", image)
    save(tmp_path / "masks" / "big.tif", (image > 128).astype(np.uint8) * 255)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path;"
        "from own_domain import *;"
        "from crossearth.components.ingest.step import *;"
        "folder = Path(sys.argv[2]);"
        "labels = {'#%02x%02x%02x' % (r, g, b): 'road' if r else 'background'"
        " for r in (0, 255) for g in (0, 255) for b in (0, 255)};"
        "known = catalog(folder, split='train', labels=labels, tile={'px': 512, 'rule': 'cut'});"
        "ingest([NAME], known, folder, folder / 'domains', IngestConfig(workers=1));"
        # not ru_maxrss, which a child takes over from the process that starts it
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    command = [sys.executable, "-c", script, str(TESTS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**20, "kilobytes"
    with rasterio.open(next((tmp_path / "domains").rglob("images/big.tif"))) as stored:
        np.testing.assert_array_equal(stored.read(), image)
