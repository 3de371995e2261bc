"""Training crops: image and label stay together, of the scales asked for, by chance that can be repeated."""

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from crossearth.data.catalog.labels import IGNORE
from crossearth.data.style.earth import keyed_generator
from crossearth.data.tiles import augment as module
from crossearth.data.tiles.augment import PAD_RGB, SCALES, Augmentation, _largest_share

CROP_PX, SIDE_PX, STRIPE_PX = 64, 128, 16
PLAIN: dict[str, Any] = {"crop_px": CROP_PX, "photometric": False}


def tile(height: int = SIDE_PX, width: int = SIDE_PX) -> tuple[Tensor, Tensor]:
    """An image whose red is its column and green its row, and labels of stripes of columns."""
    columns_HW = torch.arange(width).expand(height, width)
    rows_HW = torch.arange(height)[:, None].expand(height, width)
    image_3HW = torch.stack([columns_HW, rows_HW, torch.full_like(rows_HW, 90)]).byte()
    return image_3HW, (columns_HW // STRIPE_PX).byte()


def crop(seed: int = 0, size: tuple[int, int] = (SIDE_PX, SIDE_PX), **values: Any) -> tuple[Tensor, Tensor]:
    return Augmentation(**{**PLAIN, **values})(*tile(*size), keyed_generator(seed))


@pytest.mark.parametrize("size", [(128, 128), (100, 200), (70, 65)])
@pytest.mark.parametrize("seed", range(6))
def test_labels_move_with_their_pixels(size: tuple[int, int], seed: int) -> None:
    image_3HW, label_HW = crop(seed, size)
    assert (image_3HW.shape, image_3HW.dtype) == ((3, CROP_PX, CROP_PX), torch.uint8)
    assert (label_HW.shape, label_HW.dtype) == ((CROP_PX, CROP_PX), torch.uint8)
    inside = label_HW != IGNORE
    expected_HW = (image_3HW[0] // STRIPE_PX)[inside]
    assert (expected_HW == label_HW[inside]).float().mean() > 0.85, "all but the stripes' borders"


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0])
def test_a_larger_scale_shows_less_ground(scale: float) -> None:
    image_3HW, _ = crop(scale=(scale, scale))
    # the short side becomes scale * crop_px: the crop spans 1 / scale of it
    span = SIDE_PX / scale
    for plane in (image_3HW[0], image_3HW[1]):
        assert int(plane.max()) - int(plane.min()) == pytest.approx(span, abs=3)


def test_what_is_beyond_the_tile_is_ignored_and_of_the_mean_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLIP", 0.0)
    image_3HW, label_HW = crop(scale=(0.5, 0.5))
    beyond = torch.ones(CROP_PX, CROP_PX, dtype=torch.bool)
    beyond[: CROP_PX // 2, : CROP_PX // 2] = False
    assert torch.equal(label_HW == IGNORE, beyond)
    assert {tuple(colour.tolist()) for colour in image_3HW[:, beyond].T} == {PAD_RGB}


def test_a_flip_mirrors_both(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = [crop(seed)[0] for seed in range(8)]
    monkeypatch.setattr(module, "FLIP", 0.0)
    kept = [crop(seed) for seed in range(8)]
    monkeypatch.setattr(module, "FLIP", 1.0)
    mirrored = [crop(seed) for seed in range(8)]
    for before, after in zip(kept[3], mirrored[3], strict=True):
        assert torch.equal(before.flip(-1), after)
    for each in (kept, mirrored):
        assert any(torch.equal(image, other) for image, (other, _) in zip(usual, each, strict=True))


def test_colours_are_distorted_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = 0
    for seed in range(12):
        plain_3HW, plain_label = crop(seed)
        image_3HW, label_HW = crop(seed, photometric=True)
        assert torch.equal(label_HW, plain_label)
        changed += not torch.equal(image_3HW, plain_3HW)
    assert changed >= 8
    monkeypatch.setattr(module, "DISTORTION", dict.fromkeys(module.DISTORTION, 0.0))
    still = crop(1, photometric=True)[0]
    assert (still.int() - crop(1)[0].int()).abs().max() <= 1


def test_a_crop_is_a_function_of_its_generator() -> None:
    first, again, other = (crop(seed, photometric=True) for seed in (5, 5, 6))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(16, 16), (16, 300), (300, 300)])
def test_the_outermost_scales_make_crops(scale: float, size: tuple[int, int]) -> None:
    image_3HW, label_HW = crop(size=size, scale=(scale, scale))
    assert (image_3HW.shape, label_HW.shape) == ((3, CROP_PX, CROP_PX), (CROP_PX, CROP_PX))
    assert (label_HW != IGNORE).any()


@pytest.mark.parametrize("side_px", [500, 512, 1024])
def test_an_enlarged_tile_fills_the_crop(side_px: int) -> None:
    """Whatever rounding makes of the window's sides."""
    augment = Augmentation(crop_px=512, scale=(1.0, 2.0), photometric=False)
    for seed in range(40):
        _, label_HW = augment(*tile(side_px, side_px), keyed_generator(seed))
        assert not (label_HW == IGNORE).any(), seed


def test_the_methods_numbers_are_the_defaults() -> None:
    assert asdict(Augmentation()) == {"crop_px": 512, "scale": (0.5, 2.0), "photometric": True}
    assert (module.SCALE_STEPS, module.MAX_CLASS_SHARE) == (16, 0.75)
    assert (module.FLIP, module.WINDOW_TRIES) == (0.5, 10)


def test_sixteen_scales_from_half_to_twice_the_crop_and_every_second_crop_flipped() -> None:
    """A label that is its pixel's column says what became of it."""
    image_3HW, _ = tile()
    label_HW = torch.arange(SIDE_PX, dtype=torch.uint8).expand(SIDE_PX, SIDE_PX)
    augment, scales, flips = Augmentation(**PLAIN), set(), 0
    for seed in range(300):
        _, cropped_HW = augment(image_3HW, label_HW, keyed_generator(seed))
        inside = cropped_HW[cropped_HW != IGNORE].int()
        # a smaller tile lies whole in the crop; of a larger one the crop shows a part
        filled_px, span = len(inside) ** 0.5, int(inside.max() - inside.min()) + 1
        scales.add(round(filled_px / CROP_PX * SIDE_PX / span, 1))
        flips += int(inside[0] > inside[-1])
    assert scales == {step / 10 for step in range(5, 21)}
    assert flips / 300 == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("labels", "share"),
    [
        ([0, 0, 0, 1], 0.75),
        ([2, 1, 1, 1, IGNORE, IGNORE, IGNORE, IGNORE], 0.75),  # ignored pixels count on neither side
        ([IGNORE] * 9 + [0, 1], 0.5),
        ([3, 3, 3, 3, 1], 0.8),
        ([0, 1, 1], 2 / 3),
        ([4, 4, 4, 4], 1.0),
        ([254, 254, 0], 2 / 3),
        ([IGNORE, IGNORE], 1.0),  # nothing to learn from: as bad as one class alone
    ],
)
def test_the_largest_share_is_of_the_labelled_pixels(labels: list[int], share: float) -> None:
    assert _largest_share(torch.tensor([labels], dtype=torch.uint8)) == pytest.approx(share)


@pytest.mark.parametrize(("share", "tries"), [(0.75, 1), (0.76, 10), (1.0, 10)])
def test_ten_windows_are_tried_for_one_without_a_class_of_more_than_75_percent(
    share: float, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: list[Tensor] = []

    def told(label_HW: Tensor) -> float:
        windows.append(label_HW)
        return share

    monkeypatch.setattr(module, "_largest_share", told)
    _, cropped_HW = crop(scale=(2.0, 2.0))
    assert len(windows) == tries
    last = [cropped_HW, cropped_HW.flip(-1)]
    assert any(torch.equal(seen, windows[-1]) for seen in last), "the last one is taken in any case"
