"""A folder of one's own becomes a catalog and numbers that work at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from labelled_folders import (
    FORMS,
    SIDE,
    cityscapes,
    coco_2017,
    deep_globe,
    i_said,
    images,
    inria,
    labelme_file,
    land_cover_ai,
    layer,
    massachusetts,
    on_ground,
    space_net,
    voc,
    with_masks,
    write,
)
from own_domain import draw, own_domain, save

from crossearth.components.plan.step import check
from crossearth.components.runtime.params import load_params
from crossearth.components.train.setup import TrainConfig
from crossearth.data.catalog.loader import load_catalog

Typed = Callable[[str], str]
ROOT = Path(__file__).parents[3]


def started(typed: Typed, folder: Path) -> tuple[dict[str, Any], str]:
    """The domain that `init` writes for `town`; its own `next:` line, which reads all images, went well."""
    printed = typed("crossearth init town")
    following = printed.partition("next: ")[2].strip()
    assert following == "crossearth ingest town --check 8"
    typed(following)
    entry: dict[str, Any] = yaml.safe_load((folder / "town.yaml").read_text())["domains"]["town"]
    return entry, printed


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_labels_is_recognised(form: str, typed: Typed, tmp_path: Path) -> None:
    make, wanted = FORMS[form]
    make(tmp_path / "town")
    typed("crossearth init town")
    entry = yaml.safe_load((tmp_path / "town.yaml").read_text())["domains"]["town"]
    if isinstance(wanted["masks"], dict):
        assert entry["masks"].keys() == wanted["masks"].keys() | ({"names"} if "YOLO" in form else set())
    assert {*entry["labels"].values()} >= {"building", "road"} or len(entry["labels"]) == 3


def test_images_and_masks_are_described(typed: Typed, tmp_path: Path) -> None:
    own_domain(tmp_path / "town")
    (tmp_path / "town/masks/scene_3.png").unlink()
    (tmp_path / "town/catalog.yaml").unlink()
    entry, printed = started(typed, tmp_path)
    assert entry["images"] == "town/images" and entry["masks"] == "town/masks"
    assert entry["tile"] == {"px": 64, "rule": "whole"} and entry["unlabelled"] == "skip"
    assert entry["labels"] == {0: "background", 1: "foreground"}
    for words in (
        "images: 7, GTiff",
        "sizes: 64 x 64 px",
        "bands: 3; type: uint8",
        "CRS: none",
        "5 train, 2 test",
    ):
        assert words in printed
    assert "left out, neither an image of a split nor its label: images/scene_3.tif\n" in printed
    share = np.mean([draw(number)[1] for number in range(8) if number != 3])
    assert f"1: foreground, {share:.1%} of the pixels" in printed
    assert "scene_3" in printed


def test_its_recipe_can_be_trained(typed: Typed, tmp_path: Path) -> None:
    own_domain(tmp_path / "town")
    typed("crossearth init town")
    params, catalog = load_params(tmp_path / "params.yaml"), load_catalog([tmp_path / "town.yaml"], tmp_path)
    assert params.catalogs == (Path("town.yaml"),)
    config = params.config(TrainConfig, "train", catalog.recipe("town").name)
    assert (config.network, config.ablation, config.crop_px) == ("tiny", "rein", 64)
    check(params, catalog)


def test_numbers_that_are_not_bytes_get_a_range(typed: Typed, tmp_path: Path) -> None:
    for number in range(4):
        image, mask = draw(number)
        save(tmp_path / f"town/img/{number}.tif", image[:1].astype(np.uint16) * 20)
        save(tmp_path / f"town/gt/{number}.tif", np.where(mask, 255, np.uint8(3)))
    entry, _ = started(typed, tmp_path)
    assert entry["bands"] == [1, 1, 1]
    low, high = entry["value_range"]
    assert 750 < low < 900 and 3900 < high < 4500
    assert entry["labels"] == {3: "background", 255: "foreground"}


def test_lists_of_pascal_voc_and_colours(typed: Typed, tmp_path: Path) -> None:
    voc(tmp_path / "town", train="a1", val="a2")
    entry, printed = started(typed, tmp_path)
    assert "split" not in entry and "1 train, 1 test" in printed


def test_a_split_in_three_is_written(typed: Typed, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        image, mask = draw(len(split), SIDE * 2)
        save(tmp_path / f"town/{split}/images/{split}.tif", image)
        save(tmp_path / f"town/{split}/masks/{split}.png", mask)
    entry, _ = started(typed, tmp_path)
    assert entry["split"] == {"by": "folder", "train": ["train"], "test": ["test"]}
    assert entry["images"] == "town/*/images/*"


@pytest.mark.parametrize(
    ("make", "expected", "splits"),
    [
        (space_net, {"pairs": "{}_PS-RGB_{}.tif -> {}_geojson-buildings_{}.geojson"}, "2 train, 1 test"),
        (inria, {"images": "town/*/images/*", "unlabelled": "skip"}, "1 train, 1 test"),
        (deep_globe, {"pairs": "{}_sat.jpg -> {}_mask.png", "unlabelled": "skip"}, "2 train, 1 test"),
        (land_cover_ai, {"pairs": "{}.jpg -> {}_m.png"}, "1 train, 1 test"),
        (i_said, {"masks": "town/Semantic_masks"}, "1 train, 1 test"),
        (massachusetts, {"masks": "town/tiff/*_labels/*"}, "2 train, 1 test"),
        (cityscapes, {"pairs": "{}_leftImg8bit.png -> {}_gtFine_labelIds.png"}, "2 train, 1 test"),
        (coco_2017, {"images": "town"}, "2 train, 1 test"),
    ],
)
def test_layouts_of_publishers(
    make: Callable[[Path], None], expected: dict[str, Any], splits: str, typed: Typed, tmp_path: Path
) -> None:
    make(tmp_path / "town")
    entry, printed = started(typed, tmp_path)
    assert entry.items() >= expected.items()
    assert f"split: {splits}" in printed
    assert "11.7% of the pixels" in printed or make is space_net  # of it a third has no building


def test_masks_come_before_outlines_that_lie_beside(typed: Typed, tmp_path: Path) -> None:
    with_masks(tmp_path / "town", *(f"images/{name}.tif -> masks/{name}.png" for name in ("a1", "a2")))
    layer(tmp_path / "town/area.gpkg", [("area", on_ground((0, 0, 16, 16), number)) for number in (0, 1)])
    entry, printed = started(typed, tmp_path)
    assert entry["masks"] == "town/masks"
    assert "area.gpkg: polygons\n" in printed


def test_names_that_differ_in_their_case_are_one_class(typed: Typed, tmp_path: Path) -> None:
    images(tmp_path / "town", "a1.png", "a2.png")
    for number, name in ((1, "Road"), (2, "road")):
        shape = {"label": name, "points": [[2, 3], [8, 9]], "shape_type": "rectangle"}
        write(tmp_path / f"town/a{number}.json", labelme_file(f"a{number}.png", shapes=[shape]))
    entry, _ = started(typed, tmp_path)
    assert [*entry["labels"].values()] == ["road"]


def test_a_published_test_set_is_never_trained_on(typed: Typed, tmp_path: Path) -> None:
    with_masks(tmp_path / "town", *(f"images/test/{name}.png -> masks/test/{name}.png" for name in "ab"))
    entry, _ = started(typed, tmp_path)
    assert entry["split"] == "test"


def test_images_alone_are_a_style_source(typed: Typed, tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path / f"town/{number}.png", draw(number)[0])
    entry, printed = started(typed, tmp_path)
    assert "masks" not in entry and "labels: none were found" in printed


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "town").mkdir(), "town: no images in this folder"),
        (lambda folder: None, "town: no such folder"),
        (
            lambda folder: own_domain(folder / "town") and (folder / "town.yaml").write_text("{}"),
            "town.yaml: is there already",
        ),
        (
            lambda folder: (
                own_domain(folder / "town")
                and [save(path.with_suffix(".png"), draw(9)[0]) for path in (folder / "town/masks").iterdir()]
            ),
            "colours in the masks",
        ),
    ],
)
def test_what_cannot_be_described_is_said_and_nothing_is_written(
    spoil: Callable[[Path], object], words: str, tmp_path: Path, refused: Callable[[str], str]
) -> None:
    spoil(tmp_path)
    assert words in refused("crossearth init town")
    assert not (tmp_path / "params.yaml").exists()


@pytest.mark.parametrize(("folder", "name"), [("road", "my-road"), ("2020", "2020"), ("No", "no")])
def test_any_folders_name_becomes_a_domains(folder: str, name: str, typed: Typed, tmp_path: Path) -> None:
    own_domain(tmp_path / folder)
    assert f"next: crossearth ingest {name} --check 8" in typed(f"crossearth init {folder}")
    assert list(load_catalog([tmp_path / f"{name}.yaml"], tmp_path).domains)[-1] == name


def test_a_params_file_that_is_there_stays(typed: Typed, tmp_path: Path) -> None:
    own_domain(tmp_path / "town")
    (tmp_path / "params.yaml").write_text("preset: mine\npresets: {mine: {}}\n")
    printed = typed("crossearth init town")
    assert "next: crossearth ingest town --check 8 --catalog town.yaml" in printed
    assert (tmp_path / "params.yaml").read_text() == "preset: mine\npresets: {mine: {}}\n"


def test_the_benchmarks_files_come_with_the_package(
    typed: Typed, tmp_path: Path, refused: Callable[[str], str]
) -> None:
    printed = typed("crossearth init --benchmark there")
    assert "next: cd there && dvc init --no-scm && dvc repro" in printed
    for name in ("params.yaml", "dvc.yaml"):
        assert (tmp_path / "there" / name).read_bytes() == (ROOT / name).read_bytes()
    (tmp_path / "there" / "params.yaml").unlink()
    assert "there/dvc.yaml: is there already" in refused("crossearth init --benchmark there")
    assert not (tmp_path / "there" / "params.yaml").exists()


@pytest.mark.parametrize("words", ["", " town --benchmark there"])
def test_a_folder_or_the_benchmark(words: str, refused: Callable[[str], str]) -> None:
    assert "a folder of images, or --benchmark FOLDER" in refused(f"crossearth init{words}")
