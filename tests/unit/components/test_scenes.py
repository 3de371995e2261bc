"""The publishers' files in every state in which users have them."""

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from own_domain import catalog as own_catalog

from crossearth.components.ingest.sources import find_scenes
from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.components.synthesize.packers import synthesize_dataset
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.errors import InputError
from crossearth.data.raster.reader import open_raster
from crossearth.data.tiles.manifest import read_manifest

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


# --- a user's files in the layouts in which people keep them

TWO_CITIES = {"images": "data/*/images/*", "masks": "data/*/masks/*"}
LAYOUTS: dict[str, tuple[str, dict[str, str], str]] = {
    "one name each": ("images/a/0.tif images/b/1.tif masks/0.png masks/1.png", {}, "0 1"),
    "cities below images and masks": (
        "images/berlin/0.tif images/lima/0.tif masks/berlin/0.png masks/lima/0.png",
        {},
        "berlin_0 lima_0",
    ),
    "images and masks below cities": (
        "data/berlin/images/0.tif data/lima/images/0.tif data/berlin/masks/0.png data/lima/masks/0.png",
        TWO_CITIES,
        "berlin_0 lima_0",
    ),
    "images and masks below cities, numbered through": (
        "data/berlin/images/0.tif data/lima/images/1.tif data/berlin/masks/0.png data/lima/masks/1.png",
        TWO_CITIES,
        "0 1",
    ),
    "a folder each": (
        "data/s_1/image.tif data/s_1/mask.tif data/s_2/image.tif data/s_2/mask.tif",
        {"images": "data/*/image.tif", "masks": "data/*/mask.tif"},
        "s_1 s_2",
    ),
    "flat, by the ends of names": (
        "flat/1_sat.jpg flat/1_mask.png flat/2.5_sat.jpg flat/2.5_mask.png",
        {"images": "flat/*_sat.jpg", "masks": "flat/*_mask.png"},
        "1 2.5",
    ),
    "flat, by suffix": (
        "flat/1.jpg flat/1.png flat/2.jpg flat/2.png",
        {"images": "flat/*.jpg", "masks": "flat/*.png"},
        "1 2",
    ),
    "flat, masks named alone": (
        "flat/1_sat.jpg flat/1_mask.png flat/2_sat.jpg flat/2_mask.png",
        {"images": "flat", "masks": "flat/*_mask.png", "pairs": "{}_sat.jpg -> {}_mask.png"},
        "1 2",
    ),
    "images below the masks' folder": (
        "masks/a.png masks/b.png masks/sat/a.tif masks/sat/b.tif",
        {"images": "masks/sat"},
        "a b",
    ),
    "cities as folders and as names": (
        "images/berlin/x0.tif images/lima/x0.tif masks/of berlin.png masks/of lima.png",
        {"images": "images/*/x0.tif", "masks": "masks/of *.png"},
        "berlin lima",
    ),
    **{
        f"pairs of {masks}": (
            f"flat/0{image}.png flat/0{mask}.png flat/10{image}.png flat/10{mask}.png flat/notes.docx",
            {"images": "flat", "masks": "flat", "pairs": f"{{}}{image}.png -> {{}}{mask}.png"},
            "0 10",
        )
        for image, mask in (("", "_mask"), ("", "-mask"), ("_leftImg8bit", "_gtFine_labelIds"))
        for masks in [mask]
    },
    "pairs with what differs": (
        "images/a_1_sat_20200101.tif images/a_2_sat_20210101.tif masks/gt_1.png masks/gt_2.png",
        {"pairs": "a_{}_sat_*.tif -> gt_{}.png"},
        "1 2",
    ),
}


def lay(folder: Path, paths: str) -> None:
    for path in paths.replace("of ", "of~").split():
        (folder / path.replace("~", " ")).parent.mkdir(parents=True, exist_ok=True)
        (folder / path.replace("~", " ")).touch()


@pytest.mark.parametrize("case", LAYOUTS)
def test_every_image_finds_its_own_mask(case: str, tmp_path: Path) -> None:
    paths, entry, names = LAYOUTS[case]
    lay(tmp_path, paths)
    domain = own_catalog(tmp_path, **entry).domain("town")
    found = find_scenes(domain, tmp_path, tmp_path / "scratch")
    assert [source.name for source in found] == names.split()
    pairs = [(str(source.image), str(source.label)) for source in found]
    for (image, mask), name in zip(pairs, names.split(), strict=True):
        assert image != mask
        assert all(
            set(name.split("_")) & set(path.replace(".", "/").replace("_", "/").replace(" ", "/").split("/"))
            or name in path
            for path in (image, mask)
        )
    assert len({path for pair in pairs for path in pair}) == 2 * len(pairs)
    assert {source.split for source in found} == {"train", "test"}


@pytest.mark.parametrize(
    ("paths", "entry", "words"),
    [
        (
            "flat/1.jpg flat/1.png",
            {"images": "flat", "masks": "flat"},
            r'2 files are both images and masks: 1.jpg, 1.png\n.*\n.*pairs: "{}.jpg -> {}.png"',
        ),
        ("images/a/b_c.tif images/a_b/c.tif images/x/c.tif masks/1.png", {}, "two files of the name 'a_b/c'"),
        (
            "images/a.tif images/b.tif masks/a_lab.png",
            {},
            "that of .*/a.tif is 'a', a label that is left over is .*/a_lab.png",
        ),
        (f"images/{'x' * 210}.tif masks/{'x' * 210}.png", {"split": "train"}, "cannot be the name of a file"),
        (
            "images/a...tif masks/a...png",
            {"split": "train", "pairs": "a{}.tif -> a{}.png"},
            "'..' cannot be the name of a file",
        ),
        ("images/a.tif masks/a.png", {"images": "images/*.jpg"}, "no images in this folder"),
    ],
)
def test_files_that_pair_in_two_ways_or_none_are_named(
    paths: str, entry: dict[str, str], words: str, tmp_path: Path
) -> None:
    lay(tmp_path, paths)
    with pytest.raises(InputError, match=words):
        find_scenes(own_catalog(tmp_path, **entry).domain("town"), tmp_path, tmp_path / "scratch")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("berlin/0.tif,train\nlima/0,test", ""),
        ("images\\berlin\\0.tif,train\nLIMA/0.tif,test", ""),
        ("0,train\nlima/0,test", r"line 2: '0' may be berlin/0, lima/0"),
        ("/,train", r"line 2: '/,train'\n.*id,train or id,test"),
        (",train", "line 2: ',train'"),
        ("paris/1,train", "names in the split file without an image|does not name"),
    ],
)
def test_a_split_file_names_images_by_path(lines: str, words: str, tmp_path: Path) -> None:
    lay(tmp_path, "images/berlin/0.tif images/lima/0.tif masks/berlin/0.png masks/lima/0.png")
    (tmp_path / "split.csv").write_text(f"id,split\n{lines}\n")
    domain = own_catalog(tmp_path, split="split.csv").domain("town")
    if words:
        with pytest.raises(InputError, match=words):
            find_scenes(domain, tmp_path, tmp_path / "scratch")
    else:
        found = find_scenes(domain, tmp_path, tmp_path / "scratch")
        assert [(source.split, source.key) for source in found] == [("train", "berlin/0"), ("test", "lima/0")]


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, "images/0.tif masks/0.png")
    (tmp_path / "split.csv").write_text("id,split\n0,train\n")
    domain = own_catalog(tmp_path, split="split.csv").domain("town")
    with pytest.raises(InputError, match=r"no image with a label in the test split\n.*`split: train`"):
        find_scenes(domain, tmp_path, tmp_path / "scratch")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_a_split_file_that_is_no_text_is_said_to_be_none(encoding: str, tmp_path: Path) -> None:
    lay(tmp_path, "images/0.tif masks/0.png")
    (tmp_path / "split.csv").write_text("id,split\n\xe4,train\n", encoding=encoding)
    domain = own_catalog(tmp_path, split="split.csv").domain("town")
    with pytest.raises(InputError, match=r"split\.csv: cannot read .*\n.*UTF-8, .*\n.*save it again"):
        find_scenes(domain, tmp_path, tmp_path / "scratch")
