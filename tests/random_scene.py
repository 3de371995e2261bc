"""A scene of random pixels, and a small model with random weights to map it with."""

from pathlib import Path
from typing import Any

import numpy as np
import own_domain
import torch
from rasterio.transform import Affine

from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.weights.checkpoint import save


def random_model(folder: Path) -> Path:
    torch.manual_seed(5)
    meta = {"classes": ["a", "b", "c"], "palette": ["#000000", "#888888", "#ffffff"], "provenance": "own"}
    return save(crossearth_tiny(3, 64).eval(), folder, meta)


def write(path: Path, height: int, width: int, **profile: Any) -> Path:
    """A GeoTIFF of three bands, 0.5 m per px in UTM."""
    pixels = np.random.default_rng(0).integers(1, 255, (3, height, width), np.uint8)
    place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 4e5, 0, -0.5, 5e6)}
    return own_domain.save(path, pixels, **place, **profile)


def files(folder: Path) -> dict[str, bytes]:
    """Name -> content."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
