"""Sheets that let people look at styles: an image, its restyled versions, the masks, and what is injected."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from crossearth.data.files import atomic_path
from crossearth.data.style import EarthStyles, StyleConfig, StyleEngine, inject, keyed_generator

GAP_PX = 4


def styles_sheet(
    image_3HW: NDArray[np.uint8],
    earth: EarthStyles,
    engine: StyleEngine,
    config: StyleConfig,
    num: int = 5,
    key: Sequence[object] = (),
) -> NDArray[np.uint8]:
    """One row each of: the image and `num` restyled versions; its grey self and the masks; the injected ones.

    Args:
        image_3HW: raw values 0..255.
        key: seeds the styles and masks; equal keys give equal sheets.

    Returns:
        uint8 (H,W,3), 0..255. In masks white keeps the original's pixels.
    """
    x_13HW = torch.from_numpy(np.ascontiguousarray(image_3HW))[None].to(engine.device)
    generators = [keyed_generator(*key, number) for number in range(num)]
    injected = inject(x_13HW.expand(num, -1, -1, -1), earth, engine, config, generators)
    x_13HW = x_13HW.float()
    grey_13HW = x_13HW.mean(dim=1, keepdim=True).expand_as(x_13HW)
    masks_B3HW = injected.keep_mask.float().mul(255).expand_as(injected.x_s)
    rows = [
        torch.cat([x_13HW, injected.x_t]),
        torch.cat([grey_13HW, masks_B3HW]),
        torch.cat([x_13HW, injected.x_s]),
    ]
    tiles = torch.stack(rows).round().byte().cpu().permute(0, 1, 3, 4, 2).numpy()
    gaps = ((0, 0), (0, 0), (0, GAP_PX), (0, GAP_PX), (0, 0))
    spaced = np.pad(tiles, gaps, constant_values=255)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in spaced])


def write_sheet(path: Path, sheet_HW3: NDArray[np.uint8]) -> Path:
    """Writes a sheet as PNG, atomically."""
    with atomic_path(path) as partial:
        Image.fromarray(sheet_HW3).save(partial, "PNG")
    return path
