"""A trained network slid over the strips of a scene.

Legend: B windows, K classes, H W pixels of a window or strip.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossearth.components.predict.maps import Grid
from crossearth.components.predict.strips import Strip
from crossearth.components.runtime.processes import choose_device
from crossearth.data.common.cpu import has_amx
from crossearth.model.crossearth import CrossEarth
from crossearth.model.inference import fill_window, window_starts
from crossearth.model.weights.checkpoint import load, read_meta

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Loaded:
    """A model ready to map: network on its device, precision, and what the report says of it."""

    network: CrossEarth
    precision: torch.dtype
    classes: list[str]
    palette: list[str]
    about: dict[str, Any]


def load_network(
    model: Path, precision: Precision = "auto", device: str = "auto", backbone: Path | None = None
) -> Loaded:
    """Reads a model and puts it on its device, its weights in the precision that they are used in.

    Raises:
        InputError: whatever `choose_device` and `checkpoint.load` refuse.
    """
    device = choose_device(device)
    meta = read_meta(model)
    dtype = choose_precision(precision, device)
    about = {
        "sha256": meta["sha256"],
        "provenance": meta["provenance"],
        "precision": str(dtype).removeprefix("torch."),
    }
    network = load(model, device, backbone, dtype)
    return Loaded(network, dtype, meta["classes"], meta["palette"], about)


def choose_precision(precision: Precision, device: str) -> torch.dtype:
    """The dtype of the network's arithmetic; "auto" = bfloat16 where the hardware multiplies it fast."""
    if precision != "auto":
        return torch.float32 if precision == "float32" else torch.bfloat16
    fast = device.startswith("cuda") or has_amx()
    return torch.bfloat16 if fast else torch.float32


def scene_scores(
    loaded: Loaded, strips: Iterator[Strip], grid: Grid, batch_size: int, advance: Callable[[], None]
) -> Iterator[tuple[int, NDArray[np.bool_], Tensor]]:
    """Slides the network over strips and yields rows as soon as no window will touch them again.

    The scores of a pixel are the mean over all windows that hold it, exactly as `inference.slide_logits` has
    it; windows without a valid pixel are not computed. Memory: one row of windows, K x crop x W float32.

    Args:
        strips: one per row of windows, top to bottom, as tall as a window.
        advance: called once per window.

    Yields:
        (first row, valid_HW, scores_KHW float32 on the network's device, overwritten by the next rows).
    """
    config = loaded.network.config
    tops, lefts = starts(grid, loaded.network)
    height, width = min(config.crop_px, grid.height), min(config.crop_px, grid.width)
    device = next(loaded.network.parameters()).device
    sums_KHW = torch.zeros(config.num_classes, height, grid.width, device=device)
    counts_HW = torch.zeros(height, grid.width, device=device)
    for top, below, strip in zip(tops, [*tops[1:], grid.height], strips, strict=True):
        needed = [left for left in lefts if strip.valid[:, left : left + width].any()]
        for _ in range(len(lefts) - len(needed)):
            advance()
        image_3HW = torch.from_numpy(strip.image)
        for first in range(0, len(needed), batch_size):
            batch = needed[first : first + batch_size]
            windows_B3HW = torch.stack([image_3HW[:, :, left : left + width] for left in batch]).to(device)
            for left, scores_KHW in zip(batch, window_scores(loaded, windows_B3HW), strict=True):
                sums_KHW[:, :, left : left + width] += scores_KHW[:, :height, :width]
                counts_HW[:, left : left + width] += 1
                advance()
        done = below - top
        yield top, strip.valid[:done], sums_KHW[:, :done].div_(counts_HW[:done].clamp(min=1))
        for buffer in (sums_KHW, counts_HW):
            buffer[..., : height - done, :] = buffer[..., done:, :].clone()
            buffer[..., height - done :, :] = 0


def window_scores(loaded: Loaded, windows_B3HW: Tensor) -> Tensor:
    """Scores (B, K, h, w) float32; a window that is no whole number of patches gains some right and below."""
    config = loaded.network.config
    windows_B3HW = fill_window(windows_B3HW, config.crop_px, config.patch_px)
    bf16 = loaded.precision != torch.float32
    with torch.inference_mode(), torch.autocast(windows_B3HW.device.type, loaded.precision, enabled=bf16):
        return loaded.network(windows_B3HW)


def starts(grid: Grid, network: CrossEarth) -> tuple[list[int], list[int]]:
    """First rows and first columns of the windows that cover a scene."""
    crop_px, stride_px = network.config.crop_px, network.config.stride_px
    return window_starts(grid.height, crop_px, stride_px), window_starts(grid.width, crop_px, stride_px)


def num_windows(grid: Grid, network: CrossEarth) -> int:
    """Windows that cover a scene."""
    tops, lefts = starts(grid, network)
    return len(tops) * len(lefts)
