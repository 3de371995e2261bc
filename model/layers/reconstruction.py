"""The reconstruction head R of masked image modelling.

Shape legend: B images, C embedding channels, D channels inside, h w rows and columns of a map before it is
raised, H W after; V dilations, K rows and L columns of a kernel; S side of the output.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossearth.model.layers.pixel_decoder import MAP_SCALES, rescale

DILATIONS = (1, 6, 12, 18)


class ReconstructionHead(nn.Module):
    """One ASPP for the four rescaled maps, joined at a common size, then two 1x1 convolutions to an image.

    No kernel of 3x3 runs over a raised map. Raising is linear and the same for all channels, so it comes
    after what mixes channels, and is a product with a matrix along each side: an eighth of the operations at
    stride 4, where most of them are.

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

    def forward(self, maps_BChw: Sequence[Tensor]) -> Tensor:
        """Tapped maps -> image_B3SS in normalised space."""
        kernels_VKLDD, bias_D = self._projected()
        joins_DD11 = self.join.weight.chunk(len(maps_BChw), dim=1)
        # resizing keeps a constant, so the bias may go before it, once
        biases = [self.join.bias] + [None] * (len(maps_BChw) - 1)
        wide_BDHS, matrices_HS = [], []
        for map_BChw, scale, join_DD11, join_D in zip(maps_BChw, MAP_SCALES, joins_DD11, biases, strict=True):
            part_BDHW = F.relu(self._dilate(map_BChw, scale, kernels_VKLDD) + bias_D[:, None, None])
            down_HS, across_WS = (
                resizing(side, part_BDHW, size=self.side_px) for side in part_BDHW.shape[2:]
            )
            wide_BDHS.append(F.conv2d(part_BDHW, join_DD11, join_D) @ across_WS)
            matrices_HS.append(down_HS)
        # the rows of all maps at once: their sum is never written map by map
        joined_BDSS = F.relu(torch.cat(matrices_HS).mT @ torch.cat(wide_BDHS, dim=2), inplace=True)
        # not `self.image(...)`: oneDNN's convolution to 3 channels takes four times as long as the product
        image_B3SS = torch.einsum("rd,bdyx->bryx", self.image.weight[:, :, 0, 0], joined_BDSS)
        return image_B3SS + cast(Tensor, self.image.bias)[:, None, None]

    def _projected(self) -> tuple[Tensor, Tensor]:
        """Kernels and bias of the dilated convolutions and of the one that joins them, as one linear map."""
        joins_VDD = torch.stack(self.project.weight[..., 0, 0].chunk(len(DILATIONS), dim=1))
        layers = [cast(nn.Conv2d, layer) for layer in self.dilated]
        kernels_VDDKL = torch.stack([layer.weight for layer in layers])
        biases_VD = torch.stack([cast(Tensor, layer.bias) for layer in layers])
        bias_D = torch.einsum("vdi,vi->d", joins_VDD, biases_VD) + cast(Tensor, self.project.bias)
        return torch.einsum("vdi,vickl->vkldc", joins_VDD, kernels_VDDKL), bias_D

    def _dilate(self, map_BChw: Tensor, scale: float, kernels_VKLDD: Tensor) -> Tensor:
        """The sum of the dilated convolutions of a rescaled map, (B, D, H, W)."""
        small_BDhw = self.reduce(rescale(map_BChw, min(scale, 1.0)))
        raising = [resizing(side, small_BDhw, scale=max(scale, 1.0)) for side in small_BDhw.shape[2:]]
        down_VKhH, across_VLwW = (
            torch.stack([shifted(matrix_hH, rate) for rate in DILATIONS]) for matrix_hH in raising
        )
        taps_BVKLDhw = torch.einsum("vkldc,bchw->bvkldhw", kernels_VKLDD, small_BDhw)
        wide_BVKDhW = torch.einsum("bvkldhw,vlwx->bvkdhx", taps_BVKLDhw, across_VLwW)
        return torch.einsum("vkhy,bvkdhx->bdyx", down_VKhH, wide_BVKDhW)


def resizing(length: int, like: Tensor, scale: float | None = None, size: int | None = None) -> Tensor:
    """Bilinear resizing of one side as a matrix, (length, new length): what becomes of each unit vector."""
    exact = torch.promote_types(like.dtype, torch.float32)
    unit_1NN = torch.eye(length, dtype=exact, device=like.device)[None]
    return F.interpolate(unit_1NN, size, scale, mode="linear", align_corners=False)[0].to(like.dtype)


def shifted(matrix_hH: Tensor, rate: int) -> Tensor:
    """A resizing whose outcome is looked at `rate` before, at, and `rate` after each place; 0 outside."""
    length = matrix_hH.shape[1]
    padded = F.pad(matrix_hH, (rate, rate))
    return torch.stack([padded[:, start : start + length] for start in (0, rate, 2 * rate)])
