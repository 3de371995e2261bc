"""Sliding windows: images of any size through a network that takes crops.

Shape legend: B images, H W pixels, K classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossearth.data.catalog.domains import window_starts
from crossearth.model.crossearth import CrossEarth

Size = tuple[int, int]


def slide_logits(
    network: Callable[[Tensor], Tensor],
    image_B3HW: Tensor,
    crop_px: int | Size,
    stride_px: int | Size,
    batch_size: int = 1,
) -> Tensor:
    """Mean of the overlapping windows' logits, (B, K, H, W) float32.

    Args:
        network: windows (b, 3, h, w) -> logits (b, K, h, w): a model, or its `segment` for normalised input.
        image_B3HW: any size; a side below the crop is taken whole and must then suit the network.
        crop_px, stride_px: of the windows; one number, or (rows, columns).
        batch_size: windows per call of the network, at least one position of all images.

    Raises:
        InputError: a side below the crop that is no multiple of the patch.
    """
    batch, _, height, width = image_B3HW.shape
    crop, stride = ((value, value) if isinstance(value, int) else value for value in (crop_px, stride_px))
    rows, columns = min(crop[0], height), min(crop[1], width)
    corners = [
        (top, left)
        for top in window_starts(height, crop[0], stride[0])
        for left in window_starts(width, crop[1], stride[1])
    ]
    step = max(1, batch_size // batch)
    sums_BKHW: Tensor | None = None
    counts_HW = torch.zeros(height, width, device=image_B3HW.device)
    for first in range(0, len(corners), step):
        chosen = corners[first : first + step]
        windows = torch.cat([image_B3HW[..., y : y + rows, x : x + columns] for y, x in chosen])
        logits = network(windows).float()
        if sums_BKHW is None:
            sums_BKHW = logits.new_zeros(batch, logits.shape[1], height, width)
        for (y, x), part_BKhw in zip(chosen, logits.split(batch), strict=True):
            sums_BKHW[..., y : y + rows, x : x + columns] += part_BKhw
            counts_HW[y : y + rows, x : x + columns] += 1
    return torch.as_tensor(sums_BKHW) / counts_HW


def store_weights(model: CrossEarth, dtype: torch.dtype) -> None:
    """Keeps the weights of linear maps and convolutions in `dtype`, nearly all of a network's memory.

    Under autocast to `dtype` the scores stay the same, bit for bit: it would round them in every pass.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


def fill_window(image_B3HW: Tensor, crop_px: int, patch_px: int) -> Tensor:
    """Sides below the window filled up to whole patches, at least two, with their last pixels."""
    missing = [
        0 if side >= crop_px else max(2, -(-side // patch_px)) * patch_px - side
        for side in image_B3HW.shape[2:]
    ]
    if not any(missing):
        return image_B3HW
    return F.pad(image_B3HW.float(), (0, missing[1], 0, missing[0]), mode="replicate")


@torch.inference_mode()
def predict_labels(model: CrossEarth, image_B3HW: Tensor, batch_size: int = 1) -> Tensor:
    """Class ids (B, H, W) uint8 of raw RGB images 0..255 of any size, by the model's own windows."""
    height, width = image_B3HW.shape[2:]
    config = model.config
    filled = fill_window(image_B3HW, config.crop_px, config.patch_px)
    logits_BKHW = slide_logits(model, filled, config.crop_px, config.stride_px, batch_size)
    return best_class(logits_BKHW, 1)[:, :height, :width]


def best_class(scores: Tensor, dim: int) -> Tensor:
    """Uint8 ids of the highest score along the class dimension; the first one of equals."""
    # several times as fast as argmax, which torch runs along a strided dimension one by one
    return scores.max(dim).indices.to(torch.uint8)
