"""What ingest costs, and what formats of tiles cost. CPU seconds of this process and its workers.

python tests/benchmarks/bench_ingest.py scenes                    one scene of each publisher's kind
python tests/benchmarks/bench_ingest.py formats IMAGE [IMAGE...]  stored formats, on real imagery
python tests/benchmarks/bench_ingest.py resume                    what journal and pool cost per small image
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from machine import machine_line
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import from_origin
from rasterio.windows import Window

from crossearth.components.ingest import IngestConfig, ingest
from crossearth.data.catalog import load_catalog
from crossearth.data.manifest import read_image, read_label, read_manifest
from crossearth.data.tiles import windows

TILE_PX = 512
COLOURS = {"#ffffff": 0, "#0000ff": 1, "#00ffff": 2, "#00ff00": 3, "#ffff00": 4, "#ff0000": 5, "#000000": 255}
CATALOG = """
domains:
  scene:
    images: images
    masks: masks
    split: train
    class_set: {class_set}
    labels: {labels}
    tile: {{px: {px}, rule: {rule}}}
"""
ISPRS = (
    '{"#ffffff": impervious surface, "#0000ff": building, "#00ffff": low vegetation, "#00ff00": tree,'
    ' "#ffff00": car, "#ff0000": clutter, "#000000": ignore}'
)
LOVEDA = "{0: ignore, 1: background, 2: building, 3: road, 4: water, 5: barren, 6: forest, 7: agriculture}"
RESCUE = "{0: impervious surface, 1: building, 2: vegetation, 3: car, 4: clutter}"


def cpu_s() -> float:
    own, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime


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


def save(path: Path, array: NDArray[np.uint8], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = array[None] if array.ndim == 2 else array
    size = {"count": planes.shape[0], "height": planes.shape[1], "width": planes.shape[2], "dtype": "uint8"}
    with rasterio.open(path, "w", **{"driver": "GTiff", **size, **options}) as file:
        file.write(planes)


def isprs_colours(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    table = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in COLOURS], np.uint8)
    return np.moveaxis(table[ids], -1, 0)


def convert_plainly(folder: Path) -> float:
    """CPU seconds of what converters commonly do: a PNG a tile and label, colours compared one by one."""
    start = cpu_s()
    with (
        rasterio.open(folder / "images" / "2_10.tif") as image,
        rasterio.open(folder / "masks" / "2_10.tif") as label,
    ):
        pixels, colours = np.moveaxis(image.read(), 0, -1), np.moveaxis(label.read(), 0, -1)
    ids = np.zeros(colours.shape[:2], np.uint8)
    for colour, number in COLOURS.items():
        ids[(colours == np.array(list(bytes.fromhex(colour[1:])), np.uint8)).all(axis=2)] = number
    for left, top, width, height in windows(6000, 6000, TILE_PX, "cut"):
        tile = np.s_[top : top + height, left : left + width]
        Image.fromarray(pixels[tile]).save(folder / f"{left}_{top}.png")
        Image.fromarray(ids[tile]).save(folder / f"{left}_{top}_label.png")
    return cpu_s() - start


def measure(
    folder: Path, name: str, class_set: str, labels: str, px: int, rule: str, limit_s: float
) -> float:
    """CPU seconds of one ingest, or infinity where they are more than `limit_s`."""
    file = folder / "catalog.yaml"
    file.write_text(CATALOG.format(class_set=class_set, labels=labels, px=px, rule=rule))
    known = load_catalog([file], folder)
    start, clock = cpu_s(), time.perf_counter()
    (path,) = ingest(["scene"], known, folder, folder / "domains", IngestConfig(workers=1))
    spent, elapsed = cpu_s() - start, time.perf_counter() - clock
    manifest = read_manifest(path, "train")
    files = [file for file in path.rglob("*") if file.is_file()]
    stored = sum(file.stat().st_size for file in files) / 1e6
    start = time.process_time()
    for index in range(min(50, len(manifest))):
        read_image(manifest, index)
        read_label(manifest, index)
    reading = (time.process_time() - start) / min(50, len(manifest)) * 1000
    print(
        f"{name:42s} {len(manifest):5d} tiles {len(files):4d} files {stored:7.1f} MB  {spent:6.2f} s CPU "
        f"({elapsed:.2f} s)  read {reading:.1f} ms a tile"
    )
    return spent if spent <= limit_s else float("inf")


def scenes() -> bool:
    """Potsdam, Vaihingen, LoveDA, RescueNet: the publishers' sizes and formats."""
    place = {"crs": "EPSG:32633", "transform": from_origin(366_000, 5_808_000, 0.05, 0.05)}
    fast = []
    image, ids = ground(6000, 6000)
    for name, options in (("Potsdam 6000 x 6000", {}), ("Potsdam 6000 x 6000, LZW", {"compress": "lzw"})):
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder) / "images" / "2_10.tif", image, **place, **options)
            save(Path(folder) / "masks" / "2_10.tif", isprs_colours(ids), **options)
            fast.append(measure(Path(folder), name, "isprs", ISPRS, TILE_PX, "cut", 3.0))
            if not options:
                plain = convert_plainly(Path(folder))
                print(f"{'  plain converter':42s} {plain:.2f} s CPU, {plain / fast[-1]:.1f} times as much")
    image, ids = ground(2569, 1919)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "images" / "1.tif", image, **place)
        save(Path(folder) / "masks" / "1.tif", isprs_colours(ids))
        fast.append(measure(Path(folder), "Vaihingen 1919 x 2569", "isprs", ISPRS, TILE_PX, "cut", 1.0))
    image, ids = ground(1024, 1024)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(50):
            save(Path(folder) / "images" / f"{number}.png", np.roll(image, number, 2), driver="PNG")
            save(Path(folder) / "masks" / f"{number}.png", ids + 1, driver="PNG")
        fast.append(
            measure(Path(folder), "LoveDA, 50 PNG of 1024 x 1024", "loveda", LOVEDA, 1024, "whole", 10.0)
        )
    image, ids = ground(3000, 4000)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(5):
            save(Path(folder) / "images" / f"{number}.jpg", image, driver="JPEG", quality=90)
            save(Path(folder) / "masks" / f"{number}.png", ids, driver="PNG")
        fast.append(
            measure(
                Path(folder), "RescueNet, 5 JPEG of 4000 x 3000, fit 512", "rescue", RESCUE, 512, "fit", 5.0
            )
        )
    return max(fast) < float("inf")


FORMATS: dict[str, dict[str, Any]] = {
    "none": {},
    "LZW, predictor 2": {"compress": "lzw", "predictor": 2},
    "DEFLATE 1, predictor 2": {"compress": "deflate", "zlevel": 1, "predictor": 2},
    "DEFLATE 6, predictor 2": {"compress": "deflate", "zlevel": 6, "predictor": 2},
    "ZSTD 1, predictor 2": {"compress": "zstd", "zstd_level": 1, "predictor": 2},
    "ZSTD 9, predictor 2": {"compress": "zstd", "zstd_level": 9, "predictor": 2},
    "ZSTD 1": {"compress": "zstd", "zstd_level": 1},
    "LERC, lossless": {"compress": "lerc", "max_z_error": 0},
    "WebP, lossless": {"compress": "webp", "webp_lossless": True, "interleave": "pixel"},
}


def formats(paths: list[Path]) -> bool:
    """Time to write, size, time to open and decode one 512 px window; all of it lossless."""
    images = []
    for path in paths:
        with rasterio.open(path) as source:
            tile = source.read((1, 2, 3))[:, :TILE_PX, :TILE_PX]
        flips = [tile, tile[:, ::-1], tile[:, :, ::-1], tile[:, ::-1, ::-1]]
        images.append(np.concatenate([np.concatenate(flips[:2], 1), np.concatenate(flips[2:], 1)], 2))
    place = {"crs": "EPSG:32633", "transform": from_origin(366_000, 5_808_000, 0.05, 0.05)}
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": "band", **place}
    print(f"{'format':28s} {'write, s/100 MB':>16s} {'size':>8s} {'read 512 px, ms':>16s}")
    with tempfile.TemporaryDirectory() as folder:
        for name, options in FORMATS.items():
            report(name, Path(folder) / "x.tif", images, {**layout, **options}, tiles=False)
        for name, options in (
            ("PNG, a file a tile", {"driver": "PNG", "zlevel": 6}),
            ("GeoTIFF none, a file a tile", {**place}),
            ("GeoTIFF ZSTD 1, a file a tile", {**place, "compress": "zstd", "zstd_level": 1, "predictor": 2}),
        ):
            report(name, Path(folder) / "x.tif", images, options, tiles=True)
    return True


def report(
    name: str, path: Path, images: list[NDArray[np.uint8]], options: dict[str, Any], tiles: bool
) -> None:
    writing = reading = 0.0
    size = total = reads = 0
    for image in images:
        corners = [(top, left) for top in range(0, 1024, 512) for left in range(0, 1024, 512)]
        pieces = [image[:, t : t + 512, left : left + 512] for t, left in corners] if tiles else [image]
        for piece in pieces:
            start = time.process_time()
            save(path, piece, **options)
            writing += time.process_time() - start
            size, total = size + path.stat().st_size, total + piece.nbytes
            # a scene's windows do not all lie on its blocks: the last ones are shifted back
            offsets = [(0, 0)] if tiles else [(0, 0), (512, 512), (488, 488), (0, 488)]
            for top, left in offsets * 5:
                start = time.process_time()
                with rasterio.open(path) as file:
                    file.read(window=Window(left, top, 512, 512))
                reading, reads = reading + time.process_time() - start, reads + 1
    print(f"{name:28s} {writing / total * 1e8:16.2f} {size / total:8.2f} {reading / reads * 1000:16.2f}")


def resume() -> bool:
    """2000 images of 64 px: what a small image costs beyond its pixels."""
    image, ids = ground(64, 64)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2000):
            save(Path(folder) / "images" / f"{number}.png", image, driver="PNG")
            save(Path(folder) / "masks" / f"{number}.png", ids, driver="PNG")
        return measure(Path(folder), "2000 PNG of 64 x 64", "rescue", RESCUE, 64, "whole", 20.0) < 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["scenes", "formats", "resume"])
    parser.add_argument("images", nargs="*", type=Path)
    arguments = parser.parse_args()
    print(machine_line())
    measures: dict[str, Callable[[], bool]] = {
        "scenes": scenes,
        "formats": lambda: formats(arguments.images),
        "resume": resume,
    }
    if not measures[arguments.what]():
        sys.exit("slower than it may be")


if __name__ == "__main__":
    main()
