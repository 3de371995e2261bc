"""Sliding windows."""

from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from crossearth.model.crossearth import CrossEarth, crossearth_tiny, large_config
from crossearth.model.inference import (
    Windows,
    augmented,
    in_batches,
    predict_labels,
    slide_logits,
    window_starts,
    windows_per_pass,
)


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


def brightness(windows_B3HW: Tensor) -> Tensor:
    """A network whose scores are a linear function of each pixel alone."""
    return torch.cat([windows_B3HW[:, :1], 2 * windows_B3HW[:, 1:2]], dim=1).float()


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
    assert seen == [3, 3, 3], "passes of 4 at most, and as equal as they can be"


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
def test_one_window_is_the_network_itself() -> None:
    torch.manual_seed(0)
    model = crossearth_tiny(3, 64).eval()
    image_B3HW = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(slide_logits(model, image_B3HW, 64, 43, 2), model(image_B3HW))


def test_windows_are_dealt_to_nearly_equal_passes() -> None:
    corners = [(0, index) for index in range(17)]
    passes = list(in_batches(corners, 8))
    assert [len(each) for each in passes] == [5, 6, 6] and [*chain(*passes)] == corners
    assert list(in_batches([], 8)) == []


def test_a_bump_weighs_the_middle_most_and_leaves_no_pixel_without_weight() -> None:
    windows = Windows((64, 64), [-10, 33, 76], [0], bump=True)
    profile = windows.profile(0)
    assert (
        torch.allclose(profile, profile.flip(0)) and int(profile.argmax()) in (31, 32) and profile.min() > 0
    )
    total = windows.total(0, 0, 130)
    assert total.min() > 0.2
    assert torch.equal(
        Windows((64, 64), [0, 43], [0]).total(0, 40, 70), torch.tensor([1.0] * 3 + [2] * 21 + [1] * 6)
    )


def test_tta_is_the_mean_over_the_square_s_symmetries() -> None:
    seen: list[Tensor] = []

    def network(windows_B3HW: Tensor) -> Tensor:
        seen.append(windows_B3HW[0, 0])
        columns = torch.arange(windows_B3HW.shape[3]).expand(windows_B3HW.shape[2], -1)
        return torch.stack([windows_B3HW[:, 0], columns.expand(len(windows_B3HW), -1, -1).float()], 1)

    image = torch.rand(2, 3, 8, 8)
    scores = augmented(network, "d4")(image)
    torch.testing.assert_close(scores[:, 0], image[:, 0])  # what moves with the image is turned back
    torch.testing.assert_close(scores[:, 1], torch.full((2, 8, 8), 3.5))  # what does not is averaged
    assert len(seen) == 8 and len({tuple(each.flatten().tolist()) for each in seen}) == 8
    assert augmented(network, "none") is network


def test_a_pass_holds_more_windows_the_smaller_the_network_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [windows_per_pass(crossearth_tiny(3, px)) for px in (64, 128, 256, 512)] == [64, 16, 4, 1]
    with torch.device("meta"):
        large = CrossEarth(large_config(3))
    assert windows_per_pass(large) == 1


class OnGpu:
    """A network of 1 GiB a window on a GPU that has some memory free."""

    def __init__(self, free_gib: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config = large_config(3)
        self.peak = 0
        for name, value in {
            "reset_peak_memory_stats": lambda _: None,
            "memory_allocated": lambda _: 2**30,
            "max_memory_allocated": lambda _: 2**30 + self.peak,
            "empty_cache": lambda: None,
            "mem_get_info": lambda _: (int(free_gib * 2**30), 140 * 2**30),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch, "zeros", lambda *shape, device: torch.empty(shape, device="meta"))

    def parameters(self) -> object:
        return iter([SimpleNamespace(device=torch.device("cuda:0"), dtype=torch.float32)])

    def __call__(self, windows_B3HW: Tensor) -> None:
        self.peak = len(windows_B3HW) * 2**30


@pytest.mark.parametrize(
    ("free_gib", "jobs", "windows"), [(140, 1, 30), (140, 4, 28), (10, 1, 8), (0.5, 1, 1)]
)
def test_a_gpu_gets_what_its_free_memory_holds(
    free_gib: float, jobs: int, windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert windows_per_pass(OnGpu(free_gib, monkeypatch), jobs) == windows  # type: ignore[arg-type]
