"""Sliding windows."""

import numpy as np
import pytest
import torch
from torch import Tensor

from crossearth.data.common.errors import InputError
from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.inference import predict_labels, slide_logits, window_starts


@pytest.mark.parametrize(
    ("side", "crop", "stride", "starts"),
    [
        (64, 64, 43, [0]),
        (40, 64, 43, [0]),
        (65, 64, 43, [0, 1]),
        (107, 64, 43, [0, 43]),
        (108, 64, 43, [0, 43, 44]),
        (128, 64, 64, [0, 64]),
        (6000, 512, 512, [*range(0, 5488, 512), 5488]),
    ],
)
def test_windows(side: int, crop: int, stride: int, starts: list[int]) -> None:
    assert window_starts(side, crop, stride) == sorted(set(starts))


@pytest.mark.parametrize("side", range(16, 200, 7))
def test_windows_cover_every_pixel_and_stay_inside(side: int) -> None:
    starts = window_starts(side, 64, 43)
    covered = {pixel for start in starts for pixel in range(start, min(start + 64, side))}
    assert covered == set(range(side))
    assert starts == sorted(set(starts))
    assert starts[-1] == max(side - 64, 0)


def brightness(windows_B3HW: Tensor) -> Tensor:
    """A network whose scores are a linear function of each pixel alone."""
    return torch.cat([windows_B3HW[:, :1], 2 * windows_B3HW[:, 1:2]], dim=1).float()


@pytest.mark.parametrize("size", [(64, 64), (65, 130), (30, 150), (201, 33)])
def test_the_mean_of_windows_of_a_constant_field_is_constant(size: tuple[int, int]) -> None:
    logits_BKHW = slide_logits(brightness, torch.full((2, 3, *size), 3.0), 64, 43, 3)
    assert torch.equal(logits_BKHW[:, 0], torch.full((2, *size), 3.0))
    assert torch.equal(logits_BKHW[:, 1], torch.full((2, *size), 6.0))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_a_pointwise_network_sees_no_windows(batch_size: int) -> None:
    image_B3HW = torch.rand(2, 3, 150, 97)
    logits_BKHW = slide_logits(brightness, image_B3HW, (64, 32), (43, 30), batch_size)
    torch.testing.assert_close(logits_BKHW, brightness(image_B3HW))


def test_windows_never_exceed_the_batch() -> None:
    seen: list[int] = []

    def network(windows_B3HW: Tensor) -> Tensor:
        seen.append(len(windows_B3HW))
        return brightness(windows_B3HW)

    slide_logits(network, torch.rand(1, 3, 150, 150), 64, 43, 4)
    assert sum(seen) == 9 and max(seen) == 4


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 71), (123, 40), (64, 199), (50, 300), (3, 5)])
def test_an_image_of_any_size_is_labelled(height: int, width: int) -> None:
    torch.manual_seed(0)
    model = crossearth_tiny(3, 64).eval()
    image_13HW = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    labels_1HW = predict_labels(model, image_13HW)
    assert labels_1HW.dtype == torch.uint8
    rows, columns = (side if side >= 64 else max(16, -(-side // 8) * 8) for side in (height, width))
    filled_13HW = np.pad(image_13HW, ((0, 0), (0, 0), (0, rows - height), (0, columns - width)), "edge")
    logits_13HW = slide_logits(model, torch.from_numpy(filled_13HW), 64, 43)
    assert torch.equal(labels_1HW, logits_13HW.argmax(1)[:, :height, :width])


@torch.no_grad()
def test_windows_refuse_a_side_that_is_no_multiple_of_the_patch() -> None:
    model = crossearth_tiny(3, 64)
    with pytest.raises(InputError, match="48 x 64"):
        slide_logits(model, torch.zeros(1, 3, 50, 300), 64, 43)


@torch.no_grad()
def test_one_window_is_the_network_itself() -> None:
    torch.manual_seed(0)
    model = crossearth_tiny(3, 64).eval()
    image_B3HW = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(slide_logits(model, image_B3HW, 64, 43, 2), model(image_B3HW))
