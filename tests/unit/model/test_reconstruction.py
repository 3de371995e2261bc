"""The reconstruction head against the method's list of steps, written out.

Shape legend: B images, H W pixels of a map, C embedding channels, D channels inside, S side of the output.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossearth.model.crossearth import large_config
from crossearth.model.layers.reconstruction import ReconstructionHead

EMBED, CHANNELS, SIDE_PX = 6, 5, 20
ROWS, COLUMNS = 6, 8  # times 4: wider than the largest dilation


def slow_reconstruction(head: ReconstructionHead, maps_BCHW: Sequence[Tensor]) -> Tensor:
    parts = []
    for map_BCHW, (rows, columns) in zip(maps_BCHW, ((24, 32), (12, 16), (6, 8), (3, 4)), strict=True):
        rescaled_BCHW = F.interpolate(map_BCHW, (rows, columns), mode="bilinear", align_corners=False)
        reduced_BDHW = F.conv2d(rescaled_BCHW, head.reduce.weight, head.reduce.bias)
        dilated = [
            F.conv2d(reduced_BDHW, layer.weight, layer.bias, padding=rate, dilation=rate)
            for layer, rate in zip(head.dilated, (1, 6, 12, 18), strict=True)
        ]
        projected_BDHW = F.conv2d(torch.cat(dilated, dim=1), head.project.weight, head.project.bias)
        positive_BDHW = torch.where(projected_BDHW > 0, projected_BDHW, 0)
        parts.append(F.interpolate(positive_BDHW, (SIDE_PX, SIDE_PX), mode="bilinear", align_corners=False))
    joined_BDSS = F.conv2d(torch.cat(parts, dim=1), head.join.weight, head.join.bias)
    return F.conv2d(torch.where(joined_BDSS > 0, joined_BDSS, 0), head.image.weight, head.image.bias)


@torch.no_grad()
def test_aspp_of_the_four_rescaled_maps_joined_to_an_image() -> None:
    torch.manual_seed(0)
    head = ReconstructionHead(EMBED, CHANNELS, SIDE_PX).double()
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.3)
    maps_BCHW = torch.randn(4, 2, EMBED, ROWS, COLUMNS, dtype=torch.float64)
    expected_B3SS = slow_reconstruction(head, maps_BCHW)
    assert expected_B3SS.shape == (2, 3, SIDE_PX, SIDE_PX)
    torch.testing.assert_close(head(tuple(maps_BCHW)), expected_B3SS)


def test_the_papers_head_has_256_channels_and_makes_512_px() -> None:
    config = large_config(6)
    with torch.device("meta"):
        head = ReconstructionHead(config.embed, config.reconstruction_channels, config.reconstruction_px)
        image_B3SS = head([torch.empty(1, 1024, 32, 32)] * 4)
    shapes = [tuple(layer.weight.shape) for layer in head.modules() if isinstance(layer, nn.Conv2d)]
    wide, narrow = 4 * 256, 256
    assert sorted(shapes) == sorted(
        [(narrow, 1024, 1, 1), *[(narrow, narrow, 3, 3)] * 4, *[(narrow, wide, 1, 1)] * 2, (3, narrow, 1, 1)]
    )
    assert image_B3SS.shape == (1, 3, 512, 512)
