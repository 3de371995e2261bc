"""Ingest of one scene as its publisher ships it, on one worker; files written included.

The baseline does what converters commonly do: a PNG per tile and label, colours compared one by one.
"""

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from harness import Action, Case, Form, scratch
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import from_origin

from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.tiles.scenes import windows

SCENE_PX, TILE_PX = 6000, 512
TILES = 144
COLOURS = {"#ffffff": 0, "#0000ff": 1, "#00ffff": 2, "#00ff00": 3, "#ffff00": 4, "#ff0000": 5, "#000000": 255}
CATALOG = """
domains:
  scene:
    images: images
    masks: masks
    split: train
    class_set: isprs
    labels: {"#ffffff": impervious surface, "#0000ff": building, "#00ffff": low vegetation, "#00ff00": tree,
             "#ffff00": car, "#ff0000": clutter, "#000000": ignore}
    tile: {px: 512, rule: cut}
"""
runs = count()


def ground(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image that compresses about as aerial imagery does, and ids 0..4 in patches."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(3, height // 16 + 1, width // 16 + 1)).cumsum(1).cumsum(2)
    coarse = 60 + 120 * (coarse - coarse.min()) / np.ptp(coarse)
    smooth = coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width]
    noise = np.tile(rng.normal(0, 6, (1, 512, 512)), (1, height // 512 + 1, width // 512 + 1))
    image = np.clip(smooth + noise[:, :height, :width], 0, 255).astype(np.uint8)
    patches = rng.integers(0, 5, (height // 64 + 1, width // 64 + 1), np.uint8)
    return image, patches.repeat(64, 0).repeat(64, 1)[:height, :width]


def save(path: Path, planes: NDArray[np.uint8], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = {"count": planes.shape[0], "height": planes.shape[1], "width": planes.shape[2], "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", **size, **options) as file:
        file.write(planes)


def potsdam() -> Path:
    """Folder with a scene of Potsdam's size and its coloured label."""
    folder = scratch("potsdam")
    if not folder.exists():
        image, ids = ground(SCENE_PX, SCENE_PX)
        place = {"crs": "EPSG:32633", "transform": from_origin(366_000, 5_808_000, 0.05, 0.05)}
        table = np.array([list(bytes.fromhex(colour[1:])) for colour in COLOURS], np.uint8)
        save(folder / "images" / "2_10.tif", image, **place)
        save(folder / "masks" / "2_10.tif", np.moveaxis(table[ids], -1, 0))
        (folder / "catalog.yaml").write_text(CATALOG)
    return folder


def plain() -> Action:
    folder, written = potsdam(), scratch("potsdam-plain")
    written.mkdir(exist_ok=True)

    def convert() -> None:
        with rasterio.open(folder / "images" / "2_10.tif") as image:
            pixels = np.moveaxis(image.read(), 0, -1)
        with rasterio.open(folder / "masks" / "2_10.tif") as label:
            colours = np.moveaxis(label.read(), 0, -1)
        ids = np.zeros(colours.shape[:2], np.uint8)
        for colour, number in COLOURS.items():
            ids[(colours == np.array(list(bytes.fromhex(colour[1:])), np.uint8)).all(axis=2)] = number
        for left, top, width, height in windows(SCENE_PX, SCENE_PX, TILE_PX, "cut"):
            tile = np.s_[top : top + height, left : left + width]
            Image.fromarray(pixels[tile]).save(written / f"{left}_{top}.png")
            Image.fromarray(ids[tile]).save(written / f"{left}_{top}_label.png")

    return convert


def ours() -> Action:
    folder = potsdam()
    known = load_catalog([folder / "catalog.yaml"], folder)
    return lambda: ingest(["scene"], known, folder, scratch(f"potsdam-{next(runs)}"), IngestConfig(workers=1))


CASES = {
    "ingest Potsdam, 6000 px": Case(
        {"plain": Form(plain, TILES), "ingest": Form(ours, TILES)}, "tile", rounds=3
    )
}
