"""Sheets that let people look at styles: an image, its restyled versions, the masks, and what is injected."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from crossearth.components.runtime.pictures import titled
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_path
from crossearth.data.raster.archives import Member
from crossearth.data.style.corpus import read_style_image
from crossearth.data.style.earth import (
    EarthStyles,
    StyleConfig,
    StyleEngine,
    inject,
    keyed_generator,
    style_engine,
)

GAP_PX = 4
SHOWN_PX = 384
WINDOW_PX = 1024
SHOWN_STYLES = 5


def styles_sheet(
    image_3HW: NDArray[np.uint8],
    earth: EarthStyles,
    engine: StyleEngine,
    config: StyleConfig,
    key: Sequence[object],
) -> NDArray[np.uint8]:
    """A row each of: the image and restyled versions of it; its grey self and the masks; the injected ones.

    Args:
        image_3HW: raw values 0..255.
        key: seeds the styles and masks; equal keys give equal sheets.

    Returns:
        uint8 (H,W,3), 0..255, of the image's central window, each row under titles. In masks white keeps the
        original's pixels.
    """
    x_13HW = torch.from_numpy(np.ascontiguousarray(image_3HW))[None].to(engine.device)
    generators = [keyed_generator(*key, number) for number in range(SHOWN_STYLES)]
    config = replace(config, block_px=min(config.block_px, *x_13HW.shape[2:]))
    injected = inject(x_13HW.expand(SHOWN_STYLES, -1, -1, -1), earth, engine, config, generators)
    x_13HW = x_13HW.float()
    grey_13HW = x_13HW.mean(dim=1, keepdim=True).expand_as(x_13HW)
    masks_B3HW = injected.keep_mask.float().mul(255).expand_as(injected.x_s)
    rows = [
        torch.cat([x_13HW, injected.x_t]),
        torch.cat([grey_13HW, masks_B3HW]),
        torch.cat([x_13HW, injected.x_s]),
    ]
    shown = torch.stack(rows)[..., _centre(x_13HW.shape[2]), _centre(x_13HW.shape[3])]
    tiles = shown.round().byte().cpu().permute(0, 1, 3, 4, 2).numpy()
    gaps = ((0, 0), (0, 0), (0, GAP_PX), (0, GAP_PX), (0, 0))
    spaced = np.pad(tiles, gaps, constant_values=255)
    titles = (("image", "restyled"), ("grey", "white: kept"), ("image", "injected"))
    numbers = range(1, SHOWN_STYLES + 1)
    return np.concatenate(
        [
            titled(np.concatenate(list(row), axis=1), [first, *(f"{other} {n}" for n in numbers)])
            for row, (first, other) in zip(spaced, titles, strict=True)
        ]
    )


def _centre(length_px: int) -> slice:
    start = max(0, (length_px - SHOWN_PX) // 2)
    return slice(start, start + SHOWN_PX)


def show_image(image_path: Path, styles_path: Path, out_path: Path, config: StyleConfig) -> Path:
    """Writes the sheet of an image file (its first three bands, uint8; of a large one the central window).

    Raises:
        InputError: no usable image, a sheet that is not to be PNG, or the statistics are absent or of another
            engine.
    """
    if out_path.suffix.lower() != ".png":
        raise InputError("a sheet is a PNG file", where=out_path, expected="a name ending in .png")
    if not image_path.is_file():
        raise InputError("no such file", where=image_path)
    if out_path.exists() and out_path.samefile(image_path):
        raise InputError("the sheet would take the image's place", where=out_path, expected="another file")
    earth = EarthStyles.load(styles_path, config.engine)
    member = Member(image_path.name, image_path, name="", size=image_path.stat().st_size, tag="")
    found = read_style_image(member, WINDOW_PX, resize=False)
    if found.image is None:
        raise InputError(found.problem, where=image_path)
    engine = style_engine(config.engine)
    return write_sheet(out_path, styles_sheet(found.image, earth, engine, config, key=(found.sha256,)))


def write_sheet(path: Path, sheet_HW3: NDArray[np.uint8]) -> Path:
    """Writes a sheet as PNG, atomically."""
    with atomic_path(path) as partial:
        Image.fromarray(sheet_HW3).save(partial, "PNG", compress_level=1)
    return path
