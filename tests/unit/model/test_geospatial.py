"""Geospatial extractor and injector against their formulas, written out step by step.

Shape legend: B images, H W pixels, N patches, C embedding channels.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossearth.model.crossearth import CrossEarth, crossearth_tiny, large_config
from crossearth.model.layers.geospatial import GeospatialExtractor, Injector

EMBED, PATCH_PX = 32, 16
STRIDES = (2, 2, 2, 2, 1)  # 16 in all, the last convolution keeps the size
TAPS = (0, 2, 3, 5)


def lively(module: nn.Module) -> None:
    """Weights that keep the size of what goes through them, and biases that count."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.3)


def slow_extraction(extractor: GeospatialExtractor, x_B3HW: Tensor) -> Tensor:
    convolutions = [layer for layer in extractor.modules() if isinstance(layer, nn.Conv2d)]
    map_BCHW = x_B3HW
    for layer, stride in zip(convolutions, STRIDES, strict=True):
        map_BCHW = F.conv2d(map_BCHW, layer.weight, layer.bias, stride=stride, padding=1)
        map_BCHW = torch.where(map_BCHW > 0, map_BCHW, 0)
    rows, columns = map_BCHW.shape[2:]
    tokens = [map_BCHW[:, :, row, column] for row in range(rows) for column in range(columns)]
    return torch.stack(tokens, dim=1)


def slow_injection(feat_BNC: Tensor, geospatial_BNC: Tensor, linear: nn.Linear) -> Tensor:
    """Every geospatial token asks all backbone tokens; the mixture of them goes through the linear map."""
    added_BNC = torch.zeros_like(feat_BNC)
    for feat_NC, geospatial_NC, added_NC in zip(feat_BNC, geospatial_BNC, added_BNC, strict=True):
        for query_C, added_C in zip(geospatial_NC, added_NC, strict=True):
            scores = [float(query_C @ key_C) / math.sqrt(len(query_C)) for key_C in feat_NC]
            shares = [math.exp(score - max(scores)) for score in scores]
            found_C = torch.zeros_like(query_C)
            for share, value_C in zip(shares, feat_NC, strict=True):
                found_C += share / sum(shares) * value_C
            added_C += linear.weight @ found_C + linear.bias
    return added_BNC


@torch.no_grad()
def test_the_extractor_is_five_convolutions_with_relu_of_stride_16_in_all() -> None:
    torch.manual_seed(0)
    extractor = GeospatialExtractor(EMBED, PATCH_PX).double()
    lively(extractor)
    x_B3HW = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    expected_BNC = slow_extraction(extractor, x_B3HW)
    assert expected_BNC.shape == (2, 4 * 6, EMBED)
    assert 0.2 < float((expected_BNC > 0).double().mean()) < 0.8, "ReLU shows"
    torch.testing.assert_close(extractor(x_B3HW), expected_BNC)


def test_the_papers_extractor_makes_64_by_64_tokens_of_1024_px() -> None:
    config = large_config(6, 1024)
    with torch.device("meta"):
        extractor = GeospatialExtractor(config.embed, config.patch_px)
        tokens_BNC = extractor(torch.empty(1, 3, 1024, 1024))
    shapes = [tuple(layer.weight.shape) for layer in extractor.modules() if isinstance(layer, nn.Conv2d)]
    ladder = (3, 64, 128, 256, 512, 1024)
    assert shapes == [(after, before, 3, 3) for before, after in pairwise(ladder)]
    assert tokens_BNC.shape == (1, 64 * 64, 1024)


@torch.no_grad()
@pytest.mark.parametrize("own_linear", [False, True])
def test_geospatial_tokens_are_the_queries_and_backbone_tokens_the_keys_and_values(own_linear: bool) -> None:
    torch.manual_seed(0)
    injector, shared = Injector(EMBED, own_linear).double(), nn.Linear(EMBED, EMBED).double()
    lively(injector)
    feat_BNC, geospatial_BNC = torch.randn(2, 2, 7, EMBED, dtype=torch.float64)
    linear = injector.linear if own_linear else shared
    torch.testing.assert_close(
        injector(feat_BNC, geospatial_BNC, shared), slow_injection(feat_BNC, geospatial_BNC, linear)
    )


def make_network(injector: str) -> CrossEarth:
    torch.manual_seed(0)
    network = crossearth_tiny(
        3,
        64,
        patch_px=PATCH_PX,
        embed=EMBED,
        heads=2,
        depth=6,
        taps=TAPS,
        geospatial=True,
        injector=injector,
    ).eval()
    for part in (network.gse, network.injector, network.rein):
        lively(part)
    nn.init.constant_(network.rein.scale, 0.1)
    return network


@torch.no_grad()
@pytest.mark.parametrize("injector", ["shared", "own"])
def test_the_injection_is_added_to_the_patch_tokens_at_the_four_taps_and_goes_on(injector: str) -> None:
    """Through Rein's W2, or a linear map of its own; the class token and the other blocks get none."""
    network = make_network(injector)
    x_B3HW = torch.randn(2, 3, 64, 64)
    linear = network.rein.delta if injector == "shared" else network.injector.linear
    geospatial_BNC = slow_extraction(network.gse, x_B3HW)
    tokens_BTC, expected = network.backbone.embed(x_B3HW), []
    for number, block in enumerate(network.backbone.blocks):
        tokens_BTC = network.rein(block(tokens_BTC), number)
        if number in TAPS:
            class_B1C, feat_BNC = tokens_BTC[:, :1], tokens_BTC[:, 1:]
            feat_BNC = feat_BNC + slow_injection(feat_BNC, geospatial_BNC, linear)
            tokens_BTC = torch.cat([class_B1C, feat_BNC], dim=1)
            expected.append(feat_BNC.transpose(1, 2).unflatten(2, (4, 4)))
    found = network.extract(x_B3HW, torch.tensor([True, True])).maps
    for found_BChw, expected_BChw in zip(found, expected, strict=True):
        torch.testing.assert_close(found_BChw, expected_BChw, rtol=1e-4, atol=1e-4)


def test_the_papers_taps_and_linear_map() -> None:
    config = large_config(6, geospatial=True)
    assert (config.taps, config.injector, config.inject_at_inference) == ((7, 11, 15, 23), "shared", False)
