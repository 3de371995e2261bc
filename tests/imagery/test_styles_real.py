"""Earth styles fitted to real tiles, and three real road domains in them: colours move, roads stay."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from torch import Tensor

from crossearth.components.styles.step import STYLES_FILE, SUMMARY_FILE, StylesConfig, fit_styles
from crossearth.data.style.earth import EarthStyles, StyleConfig, inject, keyed_generator
from crossearth.data.style.spectral import SpectralEngine

DOMAINS = ("road_epfl", "road_vegas", "road_shanghai")
TILES = 6
STYLES = 3


@pytest.fixture(scope="module")
def earth(imagery_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> EarthStyles:
    folder = fit_styles(
        imagery_dir / "style_aid", tmp_path_factory.mktemp("artifacts") / "styles", StylesConfig()
    )
    summary = json.loads((folder / SUMMARY_FILE).read_text())
    assert (summary["count"], summary["skipped"], summary["shrinkage"]) == (600, [], 0.0)
    return EarthStyles.load(folder / STYLES_FILE, "spectral")


def tiles(imagery_dir: Path, domain: str) -> list[tuple[Tensor, Tensor]]:
    """Some images uint8 (1,3,H,W) with their road masks bool (H,W)."""
    images = sorted((imagery_dir / domain / "images").iterdir())
    masks = next(path for path in (imagery_dir / domain).iterdir() if path.is_dir() and path.name != "images")
    found = []
    for path in images[:: len(images) // TILES][:TILES]:
        with rasterio.open(path) as image, rasterio.open(next(masks.glob(f"{path.stem}.*"))) as mask:
            found.append((torch.from_numpy(image.read((1, 2, 3)))[None], torch.from_numpy(mask.read(1) == 1)))
    return found


def gradient(x_13HW: Tensor) -> Tensor:
    """Length of the brightness gradient (H-1, W-1)."""
    grey_HW = x_13HW.float().mean(dim=1)[0]
    return torch.hypot(grey_HW.diff(dim=0)[:, :-1], grey_HW.diff(dim=1)[:-1])


def boundary(mask_HW: Tensor) -> Tensor:
    """Pixels (H-1, W-1) where a road begins or ends."""
    return (mask_HW.diff(dim=0)[:, :-1] != 0) | (mask_HW.diff(dim=1)[:-1] != 0)


@pytest.mark.parametrize("domain", DOMAINS)
def test_colours_move_and_roads_stay(imagery_dir: Path, earth: EarthStyles, domain: str) -> None:
    engine, config = SpectralEngine(), StyleConfig(keep_ratio=0.0)
    moved, alike, edges = [], [], []
    for number, (x_13HW, road_HW) in enumerate(tiles(imagery_dir, domain)):
        edge = boundary(road_HW.int())
        before = gradient(x_13HW)
        for style in range(STYLES):
            x_t = inject(x_13HW, earth, engine, config, [keyed_generator(domain, number, style)]).x_t
            after = gradient(x_t)
            moved.append((x_t - x_13HW).abs().mean().item())
            alike.append(np.corrcoef(before.flatten(), after.flatten())[0, 1])
            if edge.any():
                share = [(part[edge].mean() / part.mean()).item() for part in (before, after)]
                edges.append(share[1] / share[0])
    assert np.mean(moved) > 15
    assert np.mean(alike) > 0.9
    # in every style the boundaries of roads stand out from the rest of the image about as much as before
    assert np.min(edges) > 0.8 and np.max(edges) < 1.5
