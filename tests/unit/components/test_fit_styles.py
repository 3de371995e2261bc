"""Fitting the Earth's styles over folders and archives, in shards; what is skipped is counted and listed."""

import json
import logging
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from own_domain import save
from PIL import Image
from typer.testing import CliRunner

from crossearth.components.cli.app import app
from crossearth.components.runtime.pictures import LINE_PX
from crossearth.components.styles.sheet import GAP_PX, show_image
from crossearth.components.styles.step import SHEET_FILE, STYLES_FILE, SUMMARY_FILE, StylesConfig, fit_styles
from crossearth.data.common.errors import InputError
from crossearth.data.common.prefetch import prefetch
from crossearth.data.common.shards import Shard
from crossearth.data.style.earth import EarthStyles, StyleConfig
from crossearth.data.style.ghiasi import StylePredictor, StyleTransfer
from crossearth.data.style.weights import PREDICTOR_FILE, TRANSFER_FILE

NUM_GOOD = 40


def picture(seed: int, side: int = 64) -> Image.Image:
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(20, 230, (8, 8, 3), np.uint8))
    fine = generator.integers(0, 20, (side, side, 3), np.uint8)
    return Image.fromarray(np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)) // 2 + fine)


@pytest.fixture(scope="module", autouse=True)
def one_code() -> Iterator[None]:
    """An edit of the sources while tests run must not change the identity of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crossearth.components.styles.step.code_digest", lambda _: "tested")
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good images of two sizes in class folders and a zip, and one of each kind of bad ones."""
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(NUM_GOOD - 10):
        path = folder / f"class_{index % 3}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        picture(index, side=64 if index % 2 else 80).save(path)
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        for index in range(NUM_GOOD - 10, NUM_GOOD):
            picture(index).save(folder / "tmp.png")
            archive.write(folder / "tmp.png", f"class_9/{index}.png")
    (folder / "tmp.png").unlink()
    Image.new("RGB", (64, 64), (9, 90, 200)).save(folder / "sea.png")
    Image.new("L", (64, 64)).save(folder / "grey.png")
    picture(0, side=16).save(folder / "tiny.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    picture(1).save(folder / "cut.jpg")
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "read me.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def fitted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_styles(corpus, tmp_path_factory.mktemp("artifacts") / "styles", StylesConfig())


def test_good_images_are_counted_and_bad_ones_listed(fitted: Path) -> None:
    summary = json.loads((fitted / SUMMARY_FILE).read_text())
    problems = {item["path"]: item["problem"] for item in summary["skipped"]}
    assert (summary["count"], summary["images"]) == (NUM_GOOD, NUM_GOOD + 5)
    assert set(problems) == {"sea.png", "grey.png", "tiny.png", "broken.jpg", "cut.jpg"}
    assert problems["sea.png"] == "one colour"
    assert problems["grey.png"] == "1 bands, not three"
    assert "libjpeg: Premature end of JPEG file" in problems["cut.jpg"]
    styles = EarthStyles.load(fitted / STYLES_FILE, "spectral")
    assert (styles.count, styles.corpus_digest) == (NUM_GOOD, summary["corpus_digest"])
    assert not list(fitted.parent.glob(".styles.[0-9a-f]*"))


def test_shards_give_what_one_pass_gives(corpus: Path, fitted: Path, tmp_path: Path) -> None:
    out_dir = tmp_path / "styles"
    for index in (2, 0, 1):
        assert not out_dir.exists()
        fit_styles(corpus, out_dir, StylesConfig(batch_size=3), shard=Shard(index, 3))
    sharded, whole = (EarthStyles.load(folder / STYLES_FILE, "spectral") for folder in (out_dir, fitted))
    assert (sharded.count, sharded.corpus_digest) == (whole.count, whole.corpus_digest)
    torch.testing.assert_close(sharded.mean, whole.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sharded.covariance, whole.covariance, atol=1e-4, rtol=1e-4)


def test_shards_are_told_from_the_command_line_and_leave_each_others_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    with tarfile.open("corpus/images.tar", "w") as archive:
        for index in range(6):
            picture(index).save("tile.png")
            archive.add("tile.png", f"{index}.png")
    left = Path("artifacts/.styles.0-of-2.partial/images/0.png")  # by a shard that was killed
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    others = Path("artifacts/.styles.1-of-2.partial/images")
    others.mkdir(parents=True)
    first = CliRunner().invoke(app, ["styles", "fit", "corpus", "--shard", "0/2"])
    assert "styles comes with the last of the other shards" in first.output, first.output
    assert others.is_dir()
    second = CliRunner().invoke(app, ["styles", "fit", "corpus", "--shard", "1/2"])
    assert "wrote artifacts/styles" in second.output, second.output
    assert json.loads(Path("artifacts/styles", SUMMARY_FILE).read_text())["count"] == 6
    assert not list(Path("artifacts").glob(".styles*"))


def test_same_inputs_are_not_fitted_twice(
    corpus: Path, fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossearth.components.styles.step.read_style_image", None)
    assert fit_styles(corpus, fitted, StylesConfig()) == fitted


def test_few_images_are_regularised_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(4):
        picture(index).save(tmp_path / f"{index}.png")
    with caplog.at_level(logging.WARNING):
        folder = fit_styles(tmp_path, tmp_path / "out" / "styles", StylesConfig())
    assert "4 images do not determine 27 dimensions" in caplog.text
    assert json.loads((folder / SUMMARY_FILE).read_text())["shrinkage"] > 0.5


def test_the_sheet_shows_usable_images_wherever_they_stand(tmp_path: Path) -> None:
    for index in range(20):
        Image.new("L", (64, 64)).save(tmp_path / f"{index:03}_label.png")
        picture(index).save(tmp_path / f"{index:03}_rgb.png")
    folder = fit_styles(tmp_path, tmp_path / "out" / "styles", StylesConfig())
    assert json.loads((folder / SUMMARY_FILE).read_text())["count"] == 20
    assert (folder / SHEET_FILE).is_file()


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_images_of_more_bits_are_scaled_by_the_range_and_skipped_without_one(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("plain", "deep"):
        Path(folder).mkdir()
    for index in range(6):
        picture(index).save(f"plain/{index}.tif")
        picture(index).save(f"deep/{index}.tif")
        if index < 4:
            save(Path(f"deep/{index}.tif"), np.asarray(picture(index)).transpose(2, 0, 1).astype(dtype) * 20)
    save(Path("deep/far.tif"), 9000 + np.asarray(picture(9)).transpose(2, 0, 1).astype(dtype))
    wanted = fit_styles(Path("plain"), tmp_path / "styles", StylesConfig())
    skipped = fit_styles(Path("deep"), tmp_path / "skipped", StylesConfig())
    problems = {each["problem"] for each in json.loads((skipped / SUMMARY_FILE).read_text())["skipped"]}
    assert problems == {f"{dtype}, not uint8, without a value_range"}
    told = CliRunner().invoke(app, ["styles", "fit", "deep", "--value-range", "0,5100"])
    assert told.exit_code == 0, told.output
    found = json.loads(Path("artifacts/styles", SUMMARY_FILE).read_text())
    assert found["count"] == 6
    assert [each["path"] for each in found["skipped"]] == ["far.tif"]
    assert "leaves nothing" in found["skipped"][0]["problem"]
    means = [
        EarthStyles.load(folder / STYLES_FILE, "spectral").mean
        for folder in (wanted, Path("artifacts/styles"))
    ]
    torch.testing.assert_close(*means)


def test_nothing_to_fit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    images = tmp_path / "images"
    with pytest.raises(InputError, match="no such folder"):
        fit_styles(images, tmp_path / "styles", StylesConfig())
    images.mkdir()
    with pytest.raises(InputError, match="no images here"):
        fit_styles(images, tmp_path / "styles", StylesConfig())
    Image.new("RGB", (64, 64)).save(images / "black.png")
    with pytest.raises(InputError, match="0 usable style images"):
        fit_styles(images, tmp_path / "styles", StylesConfig())
    assert not (tmp_path / "styles").exists()


def test_ghiasi_styles_are_fitted_to_resampled_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSEARTH_STYLE_WEIGHTS", str(tmp_path))
    torch.manual_seed(0)
    torch.save({"state_dict_ghiasi": StyleTransfer().state_dict()}, tmp_path / TRANSFER_FILE)
    torch.save({"state_dict_stylepredictor": StylePredictor().state_dict()}, tmp_path / PREDICTOR_FILE)
    for index in range(3):
        picture(index, side=50 + index).save(tmp_path / f"{index}.png")
    config = StylesConfig(engine="ghiasi", image_px=64)
    folder = fit_styles(tmp_path, tmp_path / "out" / "styles", config)
    assert EarthStyles.load(folder / STYLES_FILE, "ghiasi").mean.shape == (100,)


def test_sheets_show_what_is_injected(fitted: Path, tmp_path: Path) -> None:
    picture(77, side=100).save(tmp_path / "tile.png")
    sheet = show_image(tmp_path / "tile.png", fitted / STYLES_FILE, tmp_path / "sheet.png", StyleConfig())
    shown = np.asarray(Image.open(sheet))
    assert shown.shape == (3 * (LINE_PX + 100 + GAP_PX), 6 * (100 + GAP_PX), 3)
    shown = np.concatenate([row[LINE_PX:] for row in np.split(shown, 3)])  # without the titles
    assert np.array_equal(shown[:100, :100], np.asarray(Image.open(tmp_path / "tile.png")))
    mask = shown[104:204, 104:204] == 255
    injected, styled = shown[208:308, 104:204], shown[:100, 104:204]
    assert np.array_equal(injected, np.where(mask, shown[:100, :100], styled))
    assert Image.open(fitted / SHEET_FILE).width > 1000
    with pytest.raises(InputError, match="no such file"):
        show_image(tmp_path / "absent.png", fitted / STYLES_FILE, sheet, StyleConfig())
    with pytest.raises(InputError, match=r"sheet\.jpg: .*\n  expected: .*\.png"):
        show_image(tmp_path / "tile.png", fitted / STYLES_FILE, tmp_path / "sheet.jpg", StyleConfig())


def test_results_come_in_order_and_errors_come_through() -> None:
    assert list(prefetch(lambda number: number * number, range(50), workers=3)) == [n * n for n in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda number: 1 // (7 - number), range(50), workers=3))
