"""A small domain of drawn scenes, as `ingest` leaves one."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio

from crossearth.data.raster.grid import Grid
from crossearth.data.raster.reading import Reading
from crossearth.data.tiles.manifest import Manifest, write_manifest
from crossearth.data.tiles.scenes import describe, scene_writer, windows


def draw_domain(
    root: Path,
    split: str,
    scenes: Mapping[str, tuple[int, int]],
    tile_px: int,
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0),
    seed: int = 0,
) -> Manifest:
    """Writes infrared-red-green scenes of these (height, width), cut into tiles that may overlap.

    Args:
        root: the domain's folder, named as the domain.
        tint: factor of each band.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for scene, (height, width) in scenes.items():
        coarse = generator.integers(0, 200, (3, height // 16 + 1, width // 16 + 1)).astype(np.uint8)
        image = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
        image = image + generator.integers(0, 40, image.shape).astype(np.uint8)
        label = (image[0] > 120).astype(np.uint8)
        image = (image * np.array(tint)[:, None, None]).astype(np.uint8)
        grid = Grid(width, height, None, rasterio.Affine.translation(500, 900))
        paths = {"image": f"{split}/images/{scene}.tif", "label": f"{split}/labels/{scene}.tif"}
        with scene_writer(root / paths["image"], grid, 3) as writer:
            writer.write(image)
        with scene_writer(root / paths["label"], grid, 1) as writer:
            writer.write(label, 1)
        for window in windows(width, height, tile_px, "cut"):
            (top, bottom), (left, right) = window.slices()
            rows.append(
                {
                    **paths,
                    **window._asdict(),
                    **describe(image[:, top:bottom, left:right], label[top:bottom, left:right], None, 2),
                    "tile_id": f"{scene}_{left}_{top}",
                    "scene": scene,
                    "split": split,
                    "crs": "",
                    "transform": list(grid.transform @ rasterio.Affine.translation(left, top))[:6],
                    "gsd_m": 0.3,
                    "bands": ["near infrared", "red", "green"],
                }
            )
    return write_manifest(
        root, root.name, split, ("background", "road"), "own", Reading((4, 1, 2), "uint16", (0, 3000)), rows
    )
