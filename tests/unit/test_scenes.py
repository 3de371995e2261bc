"""The publishers' files in every state in which users have them."""

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from crossearth.components.ingest import IngestConfig, ingest
from crossearth.data.catalog import load_catalog
from crossearth.data.errors import InputError
from crossearth.data.manifest import read_manifest
from crossearth.data.raster import open_raster
from crossearth.data.scenes import find_scenes
from crossearth.data.synthetic import synthesize_dataset

CATALOG = load_catalog()
NAME = "vaihingen-irrg"
DOMAIN = CATALOG.domain(NAME)
CONFIG = IngestConfig(workers=1, tile_px=128)
IMAGES = "ISPRS_semantic_labeling_Vaihingen.zip"
LABELS = "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize_dataset("vaihingen", tmp_path_factory.mktemp("archives"), 0).parent


@pytest.fixture
def archives(drawn: Path, tmp_path: Path) -> Path:
    shutil.copytree(drawn, tmp_path / "archives")
    return tmp_path / "archives" / "vaihingen"


def unpack(folder: Path) -> None:
    for path in list(folder.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(path.with_suffix(""))
        path.unlink()


def into_one_folder(folder: Path) -> None:
    """As after "extract here": both archives' folders merged, one level deeper than expected."""
    unpack(folder)
    for path in list(folder.iterdir()):
        if path.is_dir():
            shutil.copytree(path, folder / "my downloads" / "vaihingen", dirs_exist_ok=True)
            shutil.rmtree(path)


def into_a_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "Vaihingen.zip", "w") as archive:
        for path in list(folder.glob("ISPRS*.zip")):
            archive.write(path, f"Vaihingen/{path.name}")
            path.unlink()


def into_tars(folder: Path) -> None:
    unpack(folder)
    for path in list(folder.iterdir()):
        if path.is_dir():
            with tarfile.open(folder / f"{path.name}.tar.gz", "w:gz") as archive:
                archive.add(path, path.name)
            shutil.rmtree(path)


def in_capitals(folder: Path) -> None:
    unpack(folder)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.name != "PROVENANCE.json":
            path.rename(path.with_name(path.name.upper()))


STATES: dict[str, Callable[[Path], object]] = {
    "unpacked": unpack,
    "unpacked into one folder": into_one_folder,
    "in the zip of the download": into_a_zip,
    "packed again as tars": into_tars,
    "names in capitals": in_capitals,
}


@pytest.fixture(scope="module")
def digests(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the manifests that come of the archives as shipped."""
    (path,) = ingest([NAME], CATALOG, drawn, tmp_path_factory.mktemp("domains"), CONFIG)
    return {split: read_manifest(path, split).digest for split in DOMAIN.splits}


@pytest.mark.parametrize("state", STATES)
def test_the_state_of_the_files_changes_no_tile(
    state: str, archives: Path, digests: dict[str, str], tmp_path: Path
) -> None:
    STATES[state](archives)
    (path,) = ingest([NAME], CATALOG, archives.parent, tmp_path / "domains", CONFIG)
    assert {split: read_manifest(path, split).digest for split in DOMAIN.splits} == digests
    assert read_manifest(path, "test").provenance == "synthetic"


def test_images_in_archives_have_their_place(archives: Path, tmp_path: Path) -> None:
    source = find_scenes(DOMAIN, archives, tmp_path / "scratch")[0]
    with open_raster(source.image) as raster:
        assert raster.dataset.transform.a == pytest.approx(0.09, rel=0.5)
        assert raster.where.endswith(f"{IMAGES}:top/top_mosaic_09cm_area1.tif")


def without(*names: str) -> Callable[[Path], None]:
    """Packs the images again without some."""

    def change(folder: Path) -> None:
        with zipfile.ZipFile(folder / IMAGES) as archive:
            kept = {name: archive.read(name) for name in archive.namelist() if not name.endswith(names)}
        with zipfile.ZipFile(folder / IMAGES, "w") as archive:
            for name, content in kept.items():
                archive.writestr(name, content)

    return change


def truncate(folder: Path) -> None:
    path = folder / IMAGES
    path.write_bytes(path.read_bytes()[:-1000])


def as_rar(folder: Path) -> None:
    (folder / IMAGES).rename((folder / IMAGES).with_suffix(".rar"))


def other_archive(folder: Path) -> None:
    with zipfile.ZipFile(folder / IMAGES, "w") as archive:
        archive.writestr("top_potsdam_2_10_RGB.tif", b"")


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "vaihingen: no such folder"),
    "wrong archive": (
        other_archive,
        "of the train split there is no file for scenes 1, 3, 5, 7, 11 and 11 more",
    ),
    "archive missing": (lambda folder: (folder / IMAGES).unlink(), "crossearth fetch vaihingen-irrg"),
    "labels missing": (
        lambda folder: (folder / LABELS).unlink(),
        "16 of 16 images of the train split have no label",
    ),
    "scenes missing": (without("area7.tif", "area30.tif"), "no file for scenes 7, 30"),
    "truncated": (truncate, "broken or truncated archive"),
    "rar": (as_rar, "unrar x"),
    "a scene twice": (
        lambda folder: shutil.copy(folder / IMAGES, folder / "copy of it.zip"),
        "two files of the name '1': .*ISPRS.*zip:top/top_mosaic_09cm_area1.tif",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_missing_is_named_and_nothing_is_left(case: str, archives: Path, tmp_path: Path) -> None:
    spoil, words = WRONG[case]
    spoil(archives)
    with pytest.raises(InputError, match=words):
        ingest([NAME], CATALOG, archives.parent, tmp_path / "domains", CONFIG)
    assert not list((tmp_path / "domains").rglob("*"))
