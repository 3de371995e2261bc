"""What a scored model predicted for single tiles: to look at, and as rasters of class ids."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine

from crossearth.components.evaluate.scoring import Picture, Pixels
from crossearth.components.predict.maps import write_side_file
from crossearth.components.runtime.palette import colour_table
from crossearth.data.catalog.domains import ClassSet
from crossearth.data.common.files import atomic_path
from crossearth.data.tiles.manifest import Manifest

PANEL_PX = 256
PANEL_GAP_PX = 4
IGNORED_RGB = (30, 30, 30)
FORMATS = {"png": (".png", "PNG"), "geotiff": (".tif", "GTiff")}  # suffix, GDAL's driver


def picture_strip(picture: Picture, class_set: ClassSet) -> Image.Image:
    """Image, truth and prediction side by side, each at most 256 px."""
    colours = colour_table(class_set.palette, IGNORED_RGB)
    image = Image.fromarray(np.ascontiguousarray(picture.image.transpose(1, 2, 0)))
    image.thumbnail((PANEL_PX, PANEL_PX), Image.Resampling.BOX)
    maps = [
        Image.fromarray(colours[ids]).resize(image.size, Image.Resampling.NEAREST)
        for ids in (picture.label, picture.prediction)
    ]
    strip = Image.new("RGB", (3 * image.width + 2 * PANEL_GAP_PX, image.height), "white")
    for place, part in enumerate((image, *maps)):
        strip.paste(part, (place * (image.width + PANEL_GAP_PX), 0))
    return strip


def prediction_writer(
    folder: Path, manifest: Manifest, class_set: ClassSet, kind: str
) -> Callable[[int, Pixels], None] | None:
    """Writes class ids 0..K-1 as they are: for LoveDA's server, which wants 0..6, that is what it wants."""
    if kind == "none":
        return None
    suffix, driver = FORMATS[kind]
    colours = colour_table(class_set.palette)[: len(class_set.palette)]

    def write(index: int, ids_HW: Pixels) -> None:
        row = manifest.rows[index]
        height, width = ids_HW.shape
        place: dict[str, Any] = {}
        if kind == "geotiff" and row["crs"]:
            place = {"crs": CRS.from_string(row["crs"]), "transform": Affine(*row["transform"])}
        path = folder / f"{row['tile_id']}{suffix}"
        with (
            atomic_path(path) as partial,
            rasterio.Env(GDAL_PAM_ENABLED=False),
            rasterio.open(
                partial, "w", driver=driver, width=width, height=height, count=1, dtype="uint8", **place
            ) as file,
        ):
            file.write(ids_HW, 1)
            if kind == "geotiff":
                file.write_colormap(1, dict(enumerate(map(tuple, colours.tolist()))))
        write_side_file(path, place.get("crs"))

    return write
