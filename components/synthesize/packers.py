"""Miniature archives of every dataset, drawn by code and packed as their publishers pack them.

Archive names, folders, file names, label colours or ids, bit depth, file formats and georeference are the
publishers'; only the pixels are not: they show the world of `world.py` through each domain's sensor. Readers
get these archives as they get real ones, and nothing but PROVENANCE.json beside them says what they are.

The raw label values below are the publishers' own and are not taken from the catalog: where the two differ,
tests and ingest find it.
"""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.transform import Affine
from scipy import ndimage

from crossearth.components.synthesize.world import Climate, Land, Landscape, Material, Sensor, draw, render
from crossearth.data.common.config import checked, load_config, read_yaml
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_dir, write_json

PROVENANCE_FILE = "PROVENANCE.json"
Counts = Literal["mini", "full"]
U8 = NDArray[np.uint8]

# images in a split that the benchmark does not use: enough to be mistaken for the right one
UNUSED = 3
CAR = len(Material)  # its place in the label tables below
RGB, IRRG = (0, 1, 2), (3, 0, 1)
# grass, field, soil, tree, water, road, paved, roof, rubble, car
ISPRS_COLOURS = "00ffff 00ffff ff0000 00ff00 ff0000 ffffff ffffff 0000ff ff0000 ffff00"
ISPRS = np.array([list(bytes.fromhex(colour)) for colour in ISPRS_COLOURS.split()], np.uint8)
LOVEDA = np.array([1, 7, 5, 6, 4, 3, 1, 2, 1], np.uint8)
CASID = np.array([0, 0, 0, 2, 4, 3, 0, 1, 0], np.uint8)
RESCUENET = np.array([0, 0, 0, 9, 1, 7, 7, 2, 0, 6], np.uint8)
RESCUENET_BLOCKED, RESCUENET_POOL = 8, 10

SYNTHETIC = Path(__file__).with_name("synthetic.yaml")
POTSDAM_SCENES = (
    *(f"{row}_{col}" for row in (2, 3, 4, 5) for col in (10, 11, 12)),
    *(f"{row}_{col}" for row in (6, 7) for col in range(7, 13)),
    *(f"{row}_{col}" for row in range(2, 7) for col in (13, 14)),
    *("4_15", "5_15", "6_15", "7_13"),
)
POTSDAM_PX = 6000
VAIHINGEN_TRAIN = (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37)


@checked
class World:
    """What a domain shows, and how."""

    landscape: Landscape
    climate: Climate
    sensor: Sensor


@checked
class Synthetic:
    """components/synthesize/synthetic.yaml.

    Attributes:
        worlds: by domain; Potsdam's two domains are two band choices of one world.
        million_aid: landscape by class folder.
        vaihingen: (width, height) px by area.
    """

    worlds: dict[str, World]
    million_aid: dict[str, Landscape]
    vaihingen: dict[int, tuple[int, int]]


@cache
def synthetic() -> Synthetic:
    """What is drawn, as components/synthesize/synthetic.yaml has it."""
    return load_config(Synthetic, read_yaml(SYNTHETIC), SYNTHETIC)


@dataclass(frozen=True)
class SyntheticScene:
    """One synthetic image.

    Attributes:
        image: uint8 (4, H, W): red, green, blue, near infrared.
    """

    image: U8
    land: Land

    def labels(self, table: U8) -> U8:
        """The table's raw value per px: (H, W), or (3, H, W) of a table of colours."""
        cars_count = len(table) > CAR
        raw = table[np.where(self.land.car, CAR, self.land.material) if cars_count else self.land.material]
        return np.moveaxis(raw, -1, 0) if table.ndim == 2 else raw

    def mask(self, material: Material) -> U8:
        """255 where the ground is of that material, else 0."""
        return np.where(self.land.material == material, np.uint8(255), np.uint8(0))


class Draughtsman:
    """Draws the scenes of one run; each is fixed by the seed and its own name.

    Args:
        seed: 0 or more.
        counts: "mini" = a few dozen images, each a scene of its own; "full" = as many as the publisher ships,
            SHRINK times smaller, cut from large scenes.
    """

    SHRINK = 32

    def __init__(self, seed: int, counts: Counts) -> None:
        self.seed, self.counts = seed, counts

    def number(self, mini: int, published: int) -> int:
        return mini if self.counts == "mini" else published

    def px(self, mini: int, published: int) -> int:
        return mini if self.counts == "mini" else math.ceil(published / self.SHRINK)

    def rng(self, *name: object) -> np.random.Generator:
        """A generator of its own for every name."""
        return np.random.default_rng([self.seed, zlib.crc32("/".join(map(str, name)).encode())])

    def scenes(
        self, domain: str, part: str, count: int, width: int, height: int, crops: int = 1
    ) -> Iterator[SyntheticScene]:
        """`count` scenes of a domain, `crops` (a square number) neighbours of each other in a row."""
        side = self.number(math.isqrt(crops), max(math.isqrt(crops), min(24, math.isqrt(count))))
        for first in range(0, count, side * side):
            rng = self.rng(domain, f"{part}/{first}")
            whole = self.scene(synthetic().worlds[domain], width * side, height * side, rng)
            for index in range(min(side * side, count - first)):
                top, left = index // side * height, index % side * width
                yield SyntheticScene(
                    np.ascontiguousarray(whole.image[:, top : top + height, left : left + width]),
                    whole.land.window(top, left, height, width),
                )

    def scene(self, world: World, width: int, height: int, rng: np.random.Generator) -> SyntheticScene:
        """One scene of a world, its sun and air a little different each time."""
        sensor = replace(
            world.sensor,
            m_per_px=world.sensor.m_per_px * rng.uniform(0.95, 1.05) * (1 if self.counts == "mini" else 3),
            sun_azimuth=world.sensor.sun_azimuth + rng.uniform(-15, 15),
            sun_elevation=world.sensor.sun_elevation + rng.uniform(-5, 5),
            haze=world.sensor.haze * rng.uniform(0.6, 1.4),
            gain=tuple(gain * rng.uniform(0.95, 1.05) for gain in world.sensor.gain),
        )
        land = draw(height, width, world.landscape, sensor, rng)
        return SyntheticScene(render(land, world.climate, sensor, rng), land)


class ArchiveWriter(zipfile.ZipFile):
    """A zip file whose bytes hang on its contents alone."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w")

    def add(self, name: str, content: bytes) -> None:
        """Adds a file; formats without a compression of their own are deflated."""
        entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
        entry.external_attr = 0o644 << 16
        packed = name.endswith((".png", ".jpg"))
        entry.compress_type = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
        self.writestr(entry, content, compresslevel=None if packed else 1)


def encode(
    array: U8, driver: str, transform: Affine | None = None, crs: str | None = None, **options: Any
) -> bytes:
    """An image file of uint8 (H, W) or (bands, H, W)."""
    planes = array[None] if array.ndim == 2 else array
    count, height, width = planes.shape
    place = {} if transform is None else {"transform": transform, "crs": crs}
    with MemoryFile() as memory:
        with memory.open(
            driver=driver, width=width, height=height, count=count, dtype="uint8", **place, **options
        ) as file:
            file.write(planes)
        return bytes(memory.read())


def tif(array: U8, transform: Affine | None = None, crs: str | None = None) -> bytes:
    """A TIFF without compression."""
    return encode(array, "GTiff", transform, crs, photometric="RGB" if array.ndim == 3 else "MINISBLACK")


def png(array: U8) -> bytes:
    return encode(array, "PNG", zlevel=1)


def jpg(array: U8) -> bytes:
    return encode(array, "JPEG", quality=88)


def world_file(transform: Affine) -> bytes:
    """The six lines that place an image: its upper left pixel's centre last, as ESRI has it."""
    left, top = transform.c + 0.5 * transform.a, transform.f + 0.5 * transform.e
    numbers = (transform.a, transform.d, transform.b, transform.e, left, top)
    return "".join(f"{number:.6f}\n" for number in numbers).encode()


def without_borders(colours: U8) -> U8:
    """ISPRS labels with black lines between classes, as they are scored: (3, H, W)."""
    packed = colours[0].astype(np.int32) << 16 | colours[1].astype(np.int32) << 8 | colours[2]
    border = np.zeros(packed.shape, bool)
    border[:, 1:] |= packed[:, 1:] != packed[:, :-1]
    border[1:] |= packed[1:] != packed[:-1]
    return np.where(border, np.uint8(0), colours)


def _potsdam(folder: Path, pen: Draughtsman) -> None:
    size = pen.px(256, POTSDAM_PX)
    with (
        ArchiveWriter(folder / "2_Ortho_RGB.zip") as rgb,
        ArchiveWriter(folder / "3_Ortho_IRRG.zip") as irrg,
        ArchiveWriter(folder / "5_Labels_all_noBoundary.zip") as labels,
    ):
        for name in POTSDAM_SCENES:
            scene = next(pen.scenes("potsdam", name, 1, size, size))
            row, col = map(int, name.split("_"))
            place = Affine(0.05, 0, 366000 + 300 * col, 0, -0.05, 5808600 - 300 * row)
            raw = without_borders(scene.labels(ISPRS))
            for archive, inner, content in (
                (rgb, f"2_Ortho_RGB/top_potsdam_{name}_RGB", scene.image[list(RGB)]),
                (irrg, f"3_Ortho_IRRG/top_potsdam_{name}_IRRG", scene.image[list(IRRG)]),
                (labels, f"top_potsdam_{name}_label_noBoundary", _as_shipped(name, raw, pen)),
            ):
                archive.add(f"{inner}.tif", tif(content, place, "EPSG:32633"))
                archive.add(f"{inner}.tfw", world_file(place))


def _as_shipped(name: str, raw: U8, pen: Draughtsman) -> U8:
    """The publisher's defects: scene 4_12 went through a lossy format, cars of 6_7 have another yellow."""
    if name == "4_12":
        drift = np.abs(pen.rng("potsdam labels", name).normal(0, 12, raw.shape)).astype(np.uint8)
        return np.where(raw == 255, 255 - drift, drift)
    if name == "6_7":
        car = np.all(raw == np.array([255, 255, 0], np.uint8)[:, None, None], axis=0)
        return np.where(car, np.array([252, 255, 0], np.uint8)[:, None, None], raw)
    return raw


def _vaihingen(folder: Path, pen: Draughtsman) -> None:
    name = "ISPRS_semantic_labeling_Vaihingen"
    with (
        ArchiveWriter(folder / f"{name}.zip") as images,
        ArchiveWriter(folder / f"{name}_ground_truth_eroded_COMPLETE.zip") as labels,
    ):
        for area, published in synthetic().vaihingen.items():
            width, height = (pen.px(max(128, side // 12), side) for side in published)
            scene = next(pen.scenes("vaihingen", str(area), 1, width, height))
            place = Affine(0.09, 0, 496800 + 350 * (area % 7), 0, -0.09, 5420600 - 350 * (area // 7))
            raw = scene.labels(ISPRS)
            stem = f"top_mosaic_09cm_area{area}"
            images.add(f"top/{stem}.tif", tif(scene.image[list(IRRG)], place, "EPSG:32632"))
            images.add(f"top/{stem}.tfw", world_file(place))
            if area in VAIHINGEN_TRAIN:
                images.add(f"gts_for_participants/{stem}.tif", tif(raw))
            labels.add(f"{stem}_noBoundary.tif", tif(without_borders(raw)))


def _loveda(folder: Path, pen: Draughtsman) -> None:
    size, number = pen.px(128, 1024), 0
    parts = {
        "Train": {"Rural": (40, 1366), "Urban": (40, 1156)},
        "Val": {"Rural": (16, 992), "Urban": (16, 677)},
    }
    for part, areas in parts.items():
        with ArchiveWriter(folder / f"{part}.zip") as archive:
            for area, counts in areas.items():
                for scene in pen.scenes(f"loveda-{area.lower()}", part, pen.number(*counts), size, size):
                    image, raw = scene.image[list(RGB)], scene.labels(LOVEDA)
                    if number % 9 == 0:  # the publisher's tiles reach beyond the imagery
                        image[:, : size // 6], raw[: size // 6] = 0, 0
                    archive.add(f"{part}/{area}/images_png/{number}.png", png(image))
                    archive.add(f"{part}/{area}/masks_png/{number}.png", png(raw))
                    number += 1


def _whu(folder: Path, pen: Draughtsman) -> None:
    size = pen.px(128, 512)
    sets = {
        "whu-aerial": (
            "3. The cropped image tiles and raster labels",
            "",
            {"train": (40, 4736), "val": (16, 1036), "test": (UNUSED, UNUSED)},
        ),
        "whu-satellite": (
            "Satellite dataset II (East Asia)",
            "1. The cropped image data and raster labels/",
            {"train": (40, 13662), "test": (16, 3726)},
        ),
    }
    for domain, (name, inner, parts) in sets.items():
        with ArchiveWriter(folder / f"{name}.zip") as archive:
            for part, counts in parts.items():
                scenes = pen.scenes(domain, part, pen.number(*counts), size, size)
                for number, scene in enumerate(scenes, 1):
                    archive.add(f"{name}/{inner}{part}/image/{number}.tif", tif(scene.image[list(RGB)]))
                    archive.add(f"{name}/{inner}{part}/label/{number}.tif", tif(scene.mask(Material.ROOF)))


def _deepglobe(folder: Path, pen: Draughtsman) -> None:
    size = pen.px(128, 1024)
    with ArchiveWriter(folder / "DeepGlobe.zip") as archive:
        for part, counts in (("train", (40, 6226)), ("valid", (UNUSED, UNUSED)), ("test", (UNUSED, UNUSED))):
            drawn = pen.rng("deepglobe", part).choice(900_000, pen.number(*counts), replace=False)
            names = sorted(drawn + 100_000)
            for name, scene in zip(names, pen.scenes("deepglobe", part, len(names), size, size), strict=True):
                archive.add(f"{part}/{name}_sat.jpg", jpg(scene.image[list(RGB)]))
                if part == "train":  # grey RGB whose roads have soft edges: the publisher says to cut at 128
                    soft = ndimage.gaussian_filter(scene.mask(Material.ROAD), 0.6)
                    archive.add(f"{part}/{name}_mask.png", png(np.repeat(soft[None], 3, axis=0)))


def _massachusetts(folder: Path, pen: Draughtsman) -> None:
    size = pen.px(192, 1500)
    with ArchiveWriter(folder / "Massachusetts.zip") as archive:
        for part, counts in (("train", (UNUSED, UNUSED)), ("val", (UNUSED, UNUSED)), ("test", (12, 49))):
            for number, scene in enumerate(
                pen.scenes("massachusetts", part, pen.number(*counts), size, size)
            ):
                name = f"{10_078_660 + 15 * number}_15"
                archive.add(f"tiff/{part}/{name}.tiff", tif(scene.image[list(RGB)]))
                archive.add(f"tiff/{part}_labels/{name}.tif", tif(scene.mask(Material.ROAD)))


def _rescuenet(folder: Path, pen: Draughtsman) -> None:
    width, height, number = pen.px(256, 4000), pen.px(192, 3000), 10_770
    with ArchiveWriter(folder / "RescueNet.zip") as archive:
        for part, counts in (("train", (UNUSED, UNUSED)), ("val", (UNUSED, UNUSED)), ("test", (12, 449))):
            for scene in pen.scenes("rescuenet", part, pen.number(*counts), width, height):
                land, raw = scene.land, scene.labels(RESCUENET)
                raw = np.where(land.material == Material.ROOF, raw + land.variant, raw)
                special = (land.variant == 1) & ~land.car
                raw[special & (land.material == Material.RUBBLE)] = RESCUENET_BLOCKED
                raw[special & (land.material == Material.WATER)] = RESCUENET_POOL
                number += 1
                archive.add(f"RescueNet/{part}/{part}-org-img/{number}.jpg", jpg(scene.image[list(RGB)]))
                archive.add(f"RescueNet/{part}/{part}-label-img/{number}_lab.png", png(raw))


def _casid(folder: Path, pen: Draughtsman) -> None:
    size = pen.px(128, 1024)
    crops = pen.number(4, 25)
    zones = {
        "SubMs": ("casid-sub", 4900, 2200),
        "TemMs": ("casid-tem", 5025, 2075),
        "TroMs": ("casid-tms", 3400, 1650),
        "TroRf": ("casid-trf", 3700, 1550),
    }
    with ArchiveWriter(folder / "CASID.zip") as archive:
        for zone, (domain, train, test) in zones.items():
            first = 1
            for part, counts in (("all_train", (48, train)), ("all_test", (16, test))):
                count = pen.number(*counts)
                for index, scene in enumerate(pen.scenes(domain, part, count, size, size, crops)):
                    name = f"{zone}{first + index // crops:04d}_{index % crops:02d}"
                    archive.add(f"CASID/{zone}/{part}/image/{name}.png", png(scene.image[list(RGB)]))
                    archive.add(f"CASID/{zone}/{part}/label/{name}-label.png", png(scene.labels(CASID)))
                first += count // crops


def _million_aid(folder: Path, pen: Draughtsman) -> None:
    size, worlds, number = pen.px(256, 256 * pen.SHRINK), list(synthetic().worlds.values()), 0
    with ArchiveWriter(folder / "train.zip") as archive:
        for place, landscape in synthetic().million_aid.items():
            for index in range(pen.number(16, 40)):
                rng = pen.rng("million-aid", place, index)
                # any climate under any sensor: the style source is wider than every domain
                climate, sensor = (worlds[pick] for pick in rng.integers(len(worlds), size=2))
                sensor = replace(sensor.sensor, m_per_px=rng.uniform(0.4, 1.0), haze=rng.uniform(0, 0.35))
                scene = pen.scene(World(landscape, climate.climate, sensor), size, size, rng)
                number += 1
                archive.add(f"train/{place}/P{number:07d}.jpg", jpg(scene.image[list(RGB)]))


PACKERS: dict[str, Callable[[Path, Draughtsman], None]] = {
    "potsdam": _potsdam,
    "vaihingen": _vaihingen,
    "loveda": _loveda,
    "whu": _whu,
    "deepglobe": _deepglobe,
    "massachusetts": _massachusetts,
    "rescuenet": _rescuenet,
    "casid": _casid,
    "million-aid": _million_aid,
}


def synthesize_dataset(dataset: str, out_dir: Path, seed: int, counts: Counts = "mini") -> Path:
    """Draws and packs one dataset; the same arguments give the same bytes.

    Args:
        dataset: a name of `PACKERS`.
        out_dir: gets a folder of that name with the archives and PROVENANCE.json.
        counts: "mini", or "full" = as many files as the publisher ships of the splits that are used,
            all of them 32 times smaller.

    Returns:
        The folder.

    Raises:
        InputError: a folder of that name that holds something else than synthetic archives.
    """
    folder = out_dir / dataset
    if folder.exists() and any(folder.iterdir()) and not (folder / PROVENANCE_FILE).is_file():
        raise InputError(
            "holds files that are no synthetic archives: they are not overwritten",
            where=folder,
            next_step="choose another folder for synthetic archives",
        )
    with atomic_dir(folder) as partial, rasterio.Env(GDAL_PAM_ENABLED=False, GDAL_NUM_THREADS=1):
        PACKERS[dataset](partial, Draughtsman(seed, counts))
        about = {"provenance": "synthetic", "dataset": dataset, "seed": seed, "counts": counts}
        write_json(partial / PROVENANCE_FILE, about)
    return folder
