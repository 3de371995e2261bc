from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

import pytest

from crossearth.data.common.errors import InputError
from crossearth.data.raster.reading import Reading
from crossearth.data.tiles.manifest import SCHEMA, held_out, natural, read_manifest, write_manifest

READING = Reading((4, 1, 2), "int16", (-100.0, 3000.0), -9999, 0.5)


def forged(**wrong: Any) -> Reading:
    reading = copy(READING)
    vars(reading).update(wrong)  # past the checks
    return reading


def row(scene: str, left: int = 0, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "tile_id": f"{scene}_{left}",
        "scene": scene,
        "split": "train",
        "image": f"train/images/{scene}.tif",
        "label": f"train/labels/{scene}.tif",
        "col_off": left,
        "row_off": 0,
        "width": 8,
        "height": 8,
        "sha256_image": "aa",
        "sha256_label": "bb",
        "bytes": 256,
        "crs": "",
        "transform": [1.0, 0.0, float(left), 0.0, 1.0, 0.0],
        "gsd_m": 0.5,
        "bands": ["red", "green", "blue"],
        "nodata_share": 0.0,
        "constant": False,
        "dhash": "0" * 64,
        "class_pixels": [60, 4],
        "ignored_pixels": 0,
    }
    return {**values, **changes}


ROWS = [row(f"area{number}", left) for number in (10, 2, 1) for left in (8, 0)]


def write(folder: Path, rows: list[dict[str, Any]] = ROWS) -> Any:
    return write_manifest(folder, "town", "train", ("background", "road"), "own", READING, rows)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written, found = write(tmp_path), read_manifest(tmp_path, "train")
    assert (found.root, found.domain, found.split) == (tmp_path, "town", "train")
    assert found.classes == ("background", "road")
    assert found.provenance == "own"
    assert found.reading == READING
    assert found.digest == written.digest
    assert len(found) == 6
    assert found.table.schema.equals(SCHEMA)
    assert [(entry["scene"], entry["col_off"]) for entry in found.rows] == [
        (scene, left) for scene in ("area1", "area2", "area10") for left in (0, 8)
    ]


def test_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert write(tmp_path / "a").digest == write(tmp_path / "b", ROWS[::-1]).digest
    assert (tmp_path / "a" / "train.parquet").read_bytes() == (tmp_path / "b" / "train.parquet").read_bytes()


@pytest.mark.parametrize("change", [{"sha256_image": "ab"}, {"class_pixels": [63, 1]}, {"gsd_m": 0.6}])
def test_any_content_changes_the_digest(tmp_path: Path, change: dict[str, Any]) -> None:
    assert write(tmp_path).digest != write(tmp_path, [{**ROWS[0], **change}, *ROWS[1:]]).digest


def test_a_missing_split_names_those_there(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match="no test split here\n  expected: one of train"):
        read_manifest(tmp_path, "test")


def test_a_domain_that_was_not_ingested_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="crossearth ingest town"):
        read_manifest(tmp_path / "town", "train")


def test_a_damaged_manifest(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "train.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot read the manifest"):
        read_manifest(tmp_path, "train")


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "..", ".", "", "a\0b"])
def test_a_tile_whose_id_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    """Predictions take it for their files' names."""
    write(tmp_path, [*ROWS, row("area3", tile_id=name)])
    with pytest.raises(InputError, match=r"tile_id: .* is outside the domain's folder"):
        read_manifest(tmp_path, "train")


@pytest.mark.parametrize(
    "change",
    [
        {"image": "../x.tif"},
        {"image": "/x.tif"},
        {"label": "/x.tif"},
        {"label": "../x.tif"},
        {"label": "../../a/labels/x.tif"},
        {"label": "../../a/train/labels/x.vrt"},
        {"label": "../../a/train/labels/../../../x.tif"},
        {"image": "../../a/train/labels/x.tif"},
    ],
)
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path, [*ROWS, row("area3", **change)])
    with pytest.raises(InputError, match=f"{next(iter(change))}: .* is outside the domain's folder"):
        read_manifest(tmp_path, "train")


def test_a_label_may_be_that_of_another_domain(tmp_path: Path) -> None:
    label = "../../../domains/a/train/labels/x.tif"
    write(tmp_path, [row("area3", label=label)])
    assert read_manifest(tmp_path, "train").rows[0]["label"] == label


def test_a_domain_that_is_no_name_is_refused(tmp_path: Path) -> None:
    """Predictions take it for their folder's name."""
    with suppress(InputError):  # the writer looks at what it wrote
        write_manifest(tmp_path, "../../x", "train", (), "own", READING, ROWS)
    with pytest.raises(InputError, match=r"domain: .*'\.\./\.\./x'"):
        read_manifest(tmp_path, "train")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tile_id": None}, "tile_id: some rows have none"),
        ({"dhash": None}, "dhash: some rows have none"),
        ({"class_pixels": [64]}, "class_pixels: some rows have other than 2 counts"),
    ],
)
def test_a_forged_row_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write(tmp_path, [*ROWS, row("area3", **change)])
    with pytest.raises(InputError, match=words):
        read_manifest(tmp_path, "train")


@pytest.mark.parametrize(
    ("split", "classes", "provenance", "reading", "words"),
    [
        ("train", 7, "own", READING, "classes: .*found 7"),
        ("train", {"road": 1}, "own", READING, "classes"),
        ("train", ("background", 1), "own", READING, "classes"),
        (
            "train",
            ("background", "road"),
            "elsewhere",
            READING,
            "provenance: .*'synthetic', 'publisher' or 'own'.*'elsewhere'",
        ),
        ("val", ("background", "road"), "own", READING, "split: .*'train' or 'test'.*'val'"),
        *(
            (
                "train",
                ("background", "road"),
                "own",
                forged(**wrong),
                "reading",
            )
            for wrong in ({"bands": (1, 2)}, {"dtype": 7}, {"nodata": "black"})
        ),
    ],
)
def test_a_forged_head_is_refused(
    tmp_path: Path, split: str, classes: Any, provenance: Any, reading: Reading, words: str
) -> None:
    (tmp_path / "train.parquet").touch()
    with suppress(InputError):  # the writer looks at what it wrote
        write_manifest(tmp_path, "town", split, classes, provenance, reading, ROWS)
    (tmp_path / f"{split}.parquet").rename(tmp_path / "train.parquet")
    with pytest.raises(InputError, match=words):
        read_manifest(tmp_path, "train")


def test_held_out_scenes_are_whole_and_the_last(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    training, held = held_out(manifest, 0.1)
    assert (training, held) == ([0, 1, 2, 3], [4, 5])
    assert held_out(manifest, 0.99) == ([0, 1], [2, 3, 4, 5])


def test_one_scene_cannot_be_held_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 2 scenes"):
        held_out(write(tmp_path, [row("area1", 0), row("area1", 8)]))


def test_natural_order() -> None:
    assert sorted(["a10", "a9", "b1", "a9b", "10", "9"], key=natural) == ["9", "10", "a9", "a9b", "a10", "b1"]
    assert sorted(["1²", "10", "1"], key=natural) == ["1", "1²", "10"]
    assert sorted(["8", "010", "0", "09"], key=natural) == ["0", "8", "09", "010"]
    assert sorted(["1" * 9999, "9" * 9998], key=natural) == ["9" * 9998, "1" * 9999]
