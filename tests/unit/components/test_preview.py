from pathlib import Path

import numpy as np
import pytest
from own_domain import NAME, catalog, own_domain
from PIL import Image, ImageColor

from crossearth.components.ingest.preview import LABEL_WEIGHT, SIDE_PX, preview
from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.components.runtime.pictures import GAP_PX, LINE_PX
from crossearth.data.common.errors import InputError
from crossearth.data.tiles.manifest import read_image, read_label, read_manifest


def draw(folder: Path, **entry: object) -> Image.Image:
    known = catalog(folder, **entry)
    ingest([NAME], known, folder / "archives", folder / "domains", IngestConfig(workers=1))
    return Image.open(preview(NAME, known, folder / "domains", folder / "previews"))


@pytest.fixture
def town(tmp_path: Path) -> Path:
    own_domain(tmp_path)
    return tmp_path


def test_labels_lie_on_their_tiles_in_the_class_sets_colours(town: Path) -> None:
    sheet = np.asarray(draw(town, tile={"px": 64, "rule": "whole"})).astype(int)
    palette = [ImageColor.getrgb(colour) for colour in catalog(town).class_sets["road"].palette]
    manifest = read_manifest(town / "domains" / NAME / NAME, "train")
    label, image = read_label(manifest, 0), read_image(manifest, 0)
    top = 2 * LINE_PX + SIDE_PX + GAP_PX
    overlay = sheet[top : top + SIDE_PX, :SIDE_PX][2::4, 2::4]
    wanted = LABEL_WEIGHT * np.array(palette)[label] + (1 - LABEL_WEIGHT) * image.mean(0)[..., None]
    assert np.abs(overlay - wanted).max() <= 1


def test_the_legend_has_every_class_and_ignored_pixels(town: Path) -> None:
    sheet = draw(town)
    below = 2 * (2 * LINE_PX + 2 * (SIDE_PX + GAP_PX)) + GAP_PX // 2
    assert sheet.height == below + LINE_PX
    legend = {sheet.getpixel((left, below + LINE_PX // 2)) for left in range(sheet.width)}
    palette = catalog(town).class_sets["road"].palette
    assert legend >= {*(ImageColor.getrgb(colour) for colour in palette), (0, 0, 0)}


def test_unlabelled_domains_show_their_tiles(town: Path) -> None:
    sheet = draw(town, masks=None, labels=None, class_set=None, split="train")
    assert sheet.height == 2 * LINE_PX + SIDE_PX + GAP_PX


def test_tiles_of_any_shape_fit(town: Path) -> None:
    assert draw(town, tile={"px": 40, "rule": "fit"}).width == 6 * (SIDE_PX + GAP_PX)


def test_unknown_and_missing_domains(town: Path) -> None:
    with pytest.raises(InputError, match="'town'"):
        preview("twon", catalog(town), town / "domains", town / "previews")
    with pytest.raises(InputError, match="crossearth ingest town"):
        preview(NAME, catalog(town), town / "domains", town / "previews")
