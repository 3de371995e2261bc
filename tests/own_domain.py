"""A user's domain in a folder, for tests: images, masks and the catalog file that names them."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import yaml
from numpy.typing import NDArray

from crossearth.data.catalog.domains import Catalog
from crossearth.data.catalog.loader import load_catalog

NAME = "town"


def draw(number: int, side: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image (3, H, W) and its mask (H, W) of 0 and 1."""
    rng = np.random.default_rng(number)
    mask = np.zeros((side, side), np.uint8)
    mask[rng.integers(8, side - 16) :][:8] = 1
    image = rng.integers(40, 120, (3, side, side)).astype(np.uint8)
    return image + mask * np.uint8(100), mask


def save(path: Path, array: NDArray[Any], **options: Any) -> Path:
    """Writes planes (bands, H, W), or one (H, W), as its suffix says, else as GeoTIFF."""
    planes = array[None] if array.ndim == 2 else array
    count, height, width = planes.shape
    options = {"driver": {".png": "PNG", ".jpg": "JPEG"}.get(path.suffix, "GTiff")} | options
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", width=width, height=height, count=count, dtype=planes.dtype, **options
    ) as file:
        file.write(planes)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by its path in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def own_domain(folder: Path, num: int = 8, side: int = 64, **entry: Any) -> Catalog:
    """Draws `num` scenes below `folder`; the catalog with the domain `town`, whose keys `entry` changes."""
    for number in range(num):
        image, mask = draw(number, side)
        save(folder / "images" / f"scene_{number}.tif", image)
        save(folder / "masks" / f"scene_{number}.png", mask)
    return catalog(folder, **entry)


def catalog(folder: Path, **entry: Any) -> Catalog:
    """The catalog with the domain `town` in `folder`."""
    values = {
        "images": "images",
        "masks": "masks",
        "class_set": "road",
        "labels": {0: "background", 1: "road"},
        "tile": {"px": 48, "rule": "cut"},
        **entry,
    }
    file = folder / "catalog.yaml"
    file.write_text(yaml.safe_dump({"domains": {NAME: values}}))
    return load_catalog([file], folder)
