"""The reconstruction head against the method's list of steps, written out.

Shape legend: B images, H W pixels of a map, C embedding channels, S side of the output.
"""

from collections.abc import Callable

import torch
from plain_reconstruction import plain_reconstruction
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from crossearth.model.crossearth import large_config
from crossearth.model.layers.reconstruction import ReconstructionHead

EMBED, CHANNELS, SIDE_PX = 6, 5, 20
ROWS, COLUMNS = 6, 8  # times 4: wider than the largest dilation; times 0.5: narrower than most


def lively_head() -> ReconstructionHead:
    torch.manual_seed(0)
    head = ReconstructionHead(EMBED, CHANNELS, SIDE_PX)
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.3)
    return head


def large_head() -> tuple[ReconstructionHead, list[Tensor]]:
    config = large_config(6)
    with torch.device("meta"):
        head = ReconstructionHead(config.embed, config.reconstruction_channels, config.reconstruction_px)
        return head, [torch.empty(1, 1024, 32, 32)] * 4


def test_aspp_of_the_four_rescaled_maps_joined_to_an_image_and_its_gradients() -> None:
    head = lively_head().double()
    maps_BCHW = torch.randn(4, 2, EMBED, ROWS, COLUMNS, dtype=torch.float64).requires_grad_()
    image_B3SS, expected_B3SS = head(tuple(maps_BCHW)), plain_reconstruction(head, tuple(maps_BCHW))
    assert expected_B3SS.shape == (2, 3, SIDE_PX, SIDE_PX)
    torch.testing.assert_close(image_B3SS, expected_B3SS)
    inputs = [maps_BCHW, *head.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(image_B3SS.square().sum(), inputs),
        torch.autograd.grad(expected_B3SS.square().sum(), inputs),
    )


@torch.no_grad()
def test_in_bfloat16_the_order_of_operations_loses_no_more_than_the_plain_one() -> None:
    head = lively_head()
    maps = list(torch.randn(4, 2, EMBED, ROWS, COLUMNS))
    exact_B3SS = plain_reconstruction(head, maps)

    def error(form: Callable[[], Tensor]) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return float((form().float() - exact_B3SS).norm() / exact_B3SS.norm())

    assert error(lambda: head(maps)) < 1.5 * error(lambda: plain_reconstruction(head, maps)) < 0.1


def test_raising_after_what_mixes_channels_halves_the_operations() -> None:
    head, maps = large_head()

    def operations(form: Callable[[], Tensor]) -> int:
        with FlopCounterMode(display=False) as counter:
            form()
        return int(counter.get_total_flops())

    assert operations(lambda: head(maps)) < 0.6 * operations(lambda: plain_reconstruction(head, maps))


def test_the_papers_head_has_256_channels_and_makes_512_px() -> None:
    head, maps = large_head()
    shapes = [tuple(layer.weight.shape) for layer in head.modules() if isinstance(layer, nn.Conv2d)]
    wide, narrow = 4 * 256, 256
    assert sorted(shapes) == sorted(
        [(narrow, 1024, 1, 1), *[(narrow, narrow, 3, 3)] * 4, *[(narrow, wide, 1, 1)] * 2, (3, narrow, 1, 1)]
    )
    assert head(maps).shape == (1, 3, 512, 512)
