"""Which files of a folder are images, whoever reads it, and which belong to an image."""

import json
import logging
import shlex
from pathlib import Path

import pytest

from crossearth.data.raster.names import rasters_among, sidecar_names, stacking

REPORT = json.dumps({"scene": "a.tif", "model": {}, "classes": []}).encode()
NO_IMAGES = (
    *("a.tif.vat.dbf", "a.shp", "a.dbf", "a.shx", "a.RPB", "a.IMD", "a.TIL", "a.aux", "a.tif.aux.xml"),
    *("a.tfw", "a.tfwx", "a.j2w", "a.qgz", "desktop.ini", "thumbs.db", "read.py", "._a.tif", ".DS_Store"),
    *("a.tif.ovr", "a.tif.msk", "a.hdr", "a.prj", "a.json", "notes.dat", "x.zip", ".cache/b.tif"),
    *("a-BROWSE.JPG", "PREVIEW_a.JPG", "a_thumb.png", "a.quicklook.png", "T32_PVI.jp2", "ql.jpeg"),
)


def nothing(name: str) -> bytes:
    raise AssertionError(f"{name} was read")


def test_what_is_never_an_image() -> None:
    images = ["a.TIF", "b/c.jp2", "b/d.img", "e.dat", "sub.v1/f.PNG", "g.vrt", "iconic_thumbelina.jpg"]
    names = [*images, *NO_IMAGES, "e.hdr"]
    assert rasters_among(names, nothing) == images


def test_quicklooks_are_images_where_no_scene_is_beside_them() -> None:
    assert rasters_among(["a/preview_1.png", "a/preview_2.png", "b.tif"], nothing)[:2] == [
        "a/preview_1.png",
        "a/preview_2.png",
    ]


@pytest.mark.parametrize(("report", "ours"), [(REPORT, True), (b'{"scene": 1}', False), (b"{", False)])
def test_maps_of_an_earlier_run_are_no_scenes(
    report: bytes, ours: bool, caplog: pytest.LogCaptureFixture
) -> None:
    images = ["m.confidence.tif", "m.png", "m.probabilities.tif", "m.tif"]
    a_map = [*images, "m.tif.aux.xml", "m.json"]
    with caplog.at_level(logging.WARNING):
        found = rasters_among([*a_map, "scene.tif", "scene.json"], lambda name: {"m.json": report}[name])
    assert found == (["scene.tif"] if ours else [*images, "scene.tif"])
    assert (f"maps of crossearth predict ({', '.join(images)})" in caplog.text) == ours


def test_sidecars_go_by_either_name() -> None:
    assert {"x/a.tfw", "x/a.tifw", "x/a.wld", "x/a.tif.aux.xml", "x/a.tif.msk"} <= sidecar_names("x/A.TIF")
    assert {"a.j2w", "a.jp2.aux.xml"} <= sidecar_names("a.jp2")
    assert "a.tfw" not in sidecar_names("a.png")


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (
            "T32_B02_10m.jp2 T32_B03_10m.jp2 T32_B04_10m.jp2 T32_B08_10m.jp2 T33_B04_10m.jp2",
            "T32_B04_10m.jp2 T32_B03_10m.jp2 T32_B02_10m.jp2",
        ),
        ("B2.TIF B3.TIF B4.TIF", "B4.TIF B3.TIF B2.TIF"),
        ("LE07_B1.TIF LE07_B2.TIF LE07_B3.TIF LE07_B4.TIF", "LE07_B3.TIF LE07_B2.TIF LE07_B1.TIF"),
        ("a_blue.tif a_green.tif a_nir.tif a_red.tif", "a_red.tif a_green.tif a_blue.tif"),
        ("dem.tif", "RED.tif GREEN.tif BLUE.tif"),
    ],
)
def test_files_of_one_band_each(names: str, wanted: str, tmp_path: Path) -> None:
    folder = tmp_path / "my scenes"
    folder.mkdir()
    for name in names.split():
        (folder / name).touch()
    command = shlex.split(stacking(folder / names.split()[0]))
    assert command[:2] == ["gdalbuildvrt", "-separate"]
    assert [Path(path).name for path in command[3:]] == wanted.split()
