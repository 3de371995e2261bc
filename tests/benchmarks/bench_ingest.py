"""Ingest of one scene as its publisher ships it, and of polygons, on one worker; files written included.

The baselines do what converters commonly do: a PNG per tile and label, colours compared one by one; all
polygons of a file in one table.
"""

import json
from pathlib import Path

import geopandas
import numpy as np
import rasterio
from harness import Action, Case, Form, fresh, scratch
from numpy.typing import NDArray
from own_domain import save
from PIL import Image
from rasterio.features import rasterize
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
POLYGONS = 100_000, 400_000
ON_IMAGE = 200  # of them; the others lie beside
POLYGONS_CATALOG = """
class_sets:
  town: {classes: [background, building, road]}
domains:
  town:
    images: images
    masks: {polygons: labels.geojson, attribute: landuse, outside: background}
    split: train
    class_set: town
"""


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
    return lambda: ingest(["scene"], known, folder, fresh("potsdam"), IngestConfig(workers=1))


def geojson(number: int) -> Path:
    """Folder with an image of 512 px and a GeoJSON of so many polygons of 12 points, a few of them on it."""
    folder = scratch(f"polygons-{number}")
    if not folder.exists():
        left, top = 300_000.0, 5_000_000.0
        image, _ = ground(512, 512)
        place = {"crs": "EPSG:32633", "transform": from_origin(left, top, 0.5, 0.5)}
        save(folder / "images" / "a.tif", image, **place)
        angles = np.linspace(0, 2 * np.pi, 13)
        circle = 5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        circle[-1] = circle[0]
        rng = np.random.default_rng(0)
        with (folder / "labels.geojson").open("w") as file:
            name = '{"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}'
            file.write(f'{{"type": "FeatureCollection", "crs": {name}, "features": [\n')
            for at in range(number):
                shift = 0 if at % (number // ON_IMAGE) == 0 else 1000
                ring = circle + [left + shift, top] + rng.uniform(0, 256, 2) * [1, -1]
                feature = {
                    "type": "Feature",
                    "properties": {"landuse": "road" if at % 2 else "building", "name": f"number {at}"},
                    "geometry": {"type": "Polygon", "coordinates": [ring.round(3).tolist()]},
                }
                file.write(json.dumps(feature) + (",\n" if at + 1 < number else "]}\n"))
        (folder / "catalog.yaml").write_text(POLYGONS_CATALOG)
    return folder


def held_whole() -> Action:
    """What converters commonly do: the file as one table, and of it what meets the image."""
    folder = geojson(POLYGONS[1])

    def convert() -> None:
        frame = geopandas.read_file(folder / "labels.geojson")
        with rasterio.open(folder / "images" / "a.tif") as image:
            near = frame.cx[image.bounds.left : image.bounds.right, image.bounds.bottom : image.bounds.top]
            ids = near["landuse"].map({"building": 1, "road": 2})
            rasterize(zip(near.geometry, ids, strict=True), image.shape, transform=image.transform)

    return convert


def streamed(number: int) -> Form:
    """The peak must not grow with the file."""

    def prepare() -> Action:
        folder = geojson(number)
        known = load_catalog([folder / "catalog.yaml"], folder)
        return lambda: ingest(["town"], known, folder, fresh("polygons"), IngestConfig(workers=1))

    return Form(prepare, number)


CASES = {
    "ingest polygons of a large GeoJSON": Case(
        {
            f"plain, {POLYGONS[1]}": Form(held_whole, POLYGONS[1]),
            **{f"ingest, {number}": streamed(number) for number in POLYGONS},
        },
        "polygon",
        rounds=1,
    ),
    "ingest Potsdam, 6000 px": Case(
        {"plain": Form(plain, TILES), "ingest": Form(ours, TILES)}, "tile", rounds=3
    ),
}
