"""The reconstruction head step by step, as the method lists it: every map is raised, then convolved."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from crossearth.model.layers.reconstruction import ReconstructionHead


def plain_reconstruction(head: ReconstructionHead, maps_BCHW: Sequence[Tensor]) -> Tensor:
    """What `head` gives, (B, 3, S, S); the sides of the maps must be even."""
    parts = []
    for map_BCHW, scale in zip(maps_BCHW, (4, 2, 1, 0.5), strict=True):
        size = [int(side * scale) for side in map_BCHW.shape[2:]]
        rescaled_BCHW = F.interpolate(map_BCHW, size, mode="bilinear", align_corners=False)
        reduced_BDHW = F.conv2d(rescaled_BCHW, head.reduce.weight, head.reduce.bias)
        dilated = [
            F.conv2d(reduced_BDHW, layer.weight, layer.bias, padding=rate, dilation=rate)
            for layer, rate in zip(head.dilated, (1, 6, 12, 18), strict=True)
        ]
        projected_BDHW = F.conv2d(torch.cat(dilated, dim=1), head.project.weight, head.project.bias)
        side_px = (head.side_px, head.side_px)
        parts.append(F.interpolate(F.relu(projected_BDHW), side_px, mode="bilinear", align_corners=False))
    joined_BDSS = F.conv2d(torch.cat(parts, dim=1), head.join.weight, head.join.bias)
    return F.conv2d(F.relu(joined_BDSS), head.image.weight, head.image.bias)
