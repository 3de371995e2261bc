"""Ingested domains of random pixels: scoring needs no archives."""

from pathlib import Path

import numpy as np
import rasterio

from crossearth.data.catalog.loader import load_catalog
from crossearth.data.raster.reading import Reading
from crossearth.data.tiles.manifest import write_manifest
from crossearth.data.tiles.scenes import describe


def write_domain(
    folder: Path,
    domain: str,
    class_set: str,
    tiles: int = 7,
    seed: int = 0,
    tile_px: int = 64,
    ignore: bool = False,
    split: str = "test",
    absent: int = 0,
    lower: int | None = 3,
) -> None:
    """Writes a split of `tiles` scenes of one tile each in the layout of `ingest`.

    Args:
        ignore: whether no pixel has a label.
        absent: how many of the last classes no pixel has.
        lower: the tile that has three quarters of the height; None = none.
    """
    classes = load_catalog().class_sets[class_set].classes
    num_classes = len(classes)
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(tiles):
        height = tile_px if index != lower else tile_px * 3 // 4
        image_3HW = rng.integers(1, 256, (3, height, tile_px), dtype=np.uint8)
        label_HW = rng.integers(0, num_classes - absent, (height, tile_px), dtype=np.uint8)
        label_HW[rng.random(label_HW.shape) < 0.1] = 255
        if ignore:
            label_HW[:] = 255
        place = {
            "crs": "EPSG:32632",
            "transform": rasterio.transform.from_origin(5e5 + 32 * index, 5e6, 0.5, 0.5),
        }
        for kind, planes in (("image", image_3HW), ("label", label_HW[None])):
            path = folder / split / f"{kind}{index}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            with rasterio.open(
                path,
                "w",
                driver="GTiff",
                width=tile_px,
                height=height,
                count=len(planes),
                dtype="uint8",
                **place,
            ) as file:
                file.write(planes)
        rows.append(
            {
                "tile_id": f"scene{index}_0_0",
                "scene": f"scene{index}",
                "split": split,
                "image": f"{split}/image{index}.tif",
                "label": f"{split}/label{index}.tif",
                "col_off": 0,
                "row_off": 0,
                "width": tile_px,
                "height": height,
                "crs": "EPSG:32632",
                "transform": list(place["transform"])[:6],
                "gsd_m": 0.5,
                "bands": ["red", "green", "blue"],
                **describe(image_3HW, label_HW, None, num_classes),
            }
        )
    write_manifest(folder, domain, split, classes, "synthetic", Reading((1, 2, 3), "uint8"), rows)
