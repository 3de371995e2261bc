"""The reconstruction head R of masked image modelling.

Shape legend: B images, H W pixels of a map, C embedding channels, D channels inside, S side of the output.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossearth.model.layers.pixel_decoder import MAP_SCALES, convolve_rescaled

DILATIONS = (1, 6, 12, 18)


class ReconstructionHead(nn.Module):
    """One ASPP for the four rescaled maps, joined at a common size, then two 1x1 convolutions to an image.

    Args:
        embed: C of the maps.
        channels: D.
        side_px: S, side of the square output.
    """

    def __init__(self, embed: int, channels: int, side_px: int) -> None:
        super().__init__()
        self.side_px = side_px
        self.reduce = nn.Conv2d(embed, channels, 1)
        self.dilated = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate) for rate in DILATIONS
        )
        self.project = nn.Conv2d(len(DILATIONS) * channels, channels, 1)
        self.join = nn.Conv2d(len(MAP_SCALES) * channels, channels, 1)
        self.image = nn.Conv2d(channels, 3, 1)

    def forward(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
        """Tapped maps -> image_B3SS in normalised space."""
        kernels_DD11 = self.join.weight.chunk(len(maps_BCHW), dim=1)
        biases = [self.join.bias] + [None] * (len(maps_BCHW) - 1)
        size = (self.side_px, self.side_px)
        parts = []
        for map_BCHW, scale, kernel_DD11, bias_D in zip(
            maps_BCHW, MAP_SCALES, kernels_DD11, biases, strict=True
        ):
            # a 1x1 convolution commutes with bilinear resizing, and is cheaper before it
            part_BDHW = F.conv2d(self._aspp(map_BCHW, scale), kernel_DD11, bias_D)
            parts.append(F.interpolate(part_BDHW, size, mode="bilinear", align_corners=False))
        return self.image(F.relu(torch.stack(parts).sum(0)))

    def _aspp(self, map_BCHW: Tensor, scale: float) -> Tensor:
        reduced_BDHW = convolve_rescaled(map_BCHW, self.reduce, scale)
        dilated_BDHW = torch.cat([convolution(reduced_BDHW) for convolution in self.dilated], dim=1)
        return F.relu(self.project(dilated_BDHW))
