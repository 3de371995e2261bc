"""The ordinary augmentation of a training crop: scale, window, flip, photometric distortion."""

from dataclasses import dataclass

import torch
from torch import Tensor

import crossearth.data.common.torchvision_ops  # noqa: F401

# isort: split
from torchvision.transforms.v2 import functional as T

from crossearth.data.catalog.labels import IGNORE
from crossearth.data.common.errors import InputError

WINDOW_TRIES = 10  # windows drawn in search of one under the class cap; the last one is taken in any case
SCALES = (0.1, 32.0)  # a crop shrunk to a few pixels, and a crop of a few pixels, blown up
MAX_SCALE_STEPS = 1000
PAD_RGB = (124, 116, 104)  # the network's mean colour: near 0 after normalisation


@dataclass(frozen=True)
class Augmentation:
    """Numbers of the augmentation; the defaults are the method's.

    Attributes:
        crop_px: side of the square crop that comes out, pixels.
        scale: least and largest short side of the resized tile, as a multiple of `crop_px`.
        scale_steps: number of equally spaced scales between them, both ends included.
        max_class_share: largest share that one class may have among a window's labelled pixels, 0..1.
        flip: probability of a horizontal flip, 0..1.
        photometric: whether brightness, contrast, saturation and hue are distorted, each with
            probability 1/2.
        brightness, contrast, saturation: factors are drawn from 1 - value .. 1 + value.
        hue: rotation is drawn from -value .. value, in turns of the colour circle.
    """

    crop_px: int = 512
    scale: tuple[float, float] = (0.5, 2.0)
    scale_steps: int = 16
    max_class_share: float = 0.75
    flip: float = 0.5
    photometric: bool = True
    brightness: float = 0.125
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.1

    def __post_init__(self) -> None:
        if self.crop_px < 16:
            raise InputError(f"crop_px: {self.crop_px} is too small", expected="at least 16 pixels")
        if not SCALES[0] <= self.scale[0] <= self.scale[1] <= SCALES[1]:
            raise InputError(
                f"scale: {self.scale} is no range", expected=f"{SCALES[0]} <= least <= largest <= {SCALES[1]}"
            )
        if not 1 <= self.scale_steps <= MAX_SCALE_STEPS:
            raise InputError(f"scale_steps: {self.scale_steps}", expected=f"1 to {MAX_SCALE_STEPS}")
        for name in ("max_class_share", "flip", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"{name}: {getattr(self, name)} is outside its range", expected="a number in [0, 1]"
                )
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"hue: {self.hue} is outside its range", expected="a number in [0, 0.5]")

    def __call__(
        self, image_3HW: Tensor, label_HW: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draws one crop.

        Args:
            image_3HW: uint8, 0..255, any size.
            label_HW: uint8 class ids, 255 = ignored.
            generator: CPU generator; the crop is a function of it and of the tile alone.

        Returns:
            uint8 (3, crop_px, crop_px) and uint8 (crop_px, crop_px).
        """
        image_3hw, label_hw = self._window(image_3HW, label_HW, generator)
        if _uniform(generator) < self.flip:
            image_3hw, label_hw = T.horizontal_flip(image_3hw), T.horizontal_flip(label_hw[None])[0]
        if self.photometric:
            image_3hw = self._distort(image_3hw, generator)
        return image_3hw.contiguous(), label_hw.contiguous()

    def _window(
        self, image_3HW: Tensor, label_HW: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Cuts the window out of the tile and resizes it: as if the whole tile were resized, at less cost."""
        step = int(torch.randint(self.scale_steps, (), generator=generator))
        least, largest = self.scale
        target_px = round(self.crop_px * (least + (largest - least) * step / max(self.scale_steps - 1, 1)))
        height, width = label_HW.shape
        factor = target_px / min(height, width)
        rows, columns = (min(side, max(1, round(self.crop_px / factor))) for side in (height, width))
        for _ in range(WINDOW_TRIES):
            top = int(torch.randint(height - rows + 1, (), generator=generator))
            left = int(torch.randint(width - columns + 1, (), generator=generator))
            label_hw = label_HW[top : top + rows, left : left + columns]
            if _largest_share(label_hw) <= self.max_class_share:
                break
        # a window that does not reach across the tile fills the crop, whatever rounding makes of its sides
        size = [
            self.crop_px if cut < side else min(self.crop_px, round(side * factor))
            for cut, side in ((rows, height), (columns, width))
        ]
        image_3hw = T.resize(
            image_3HW[:, top : top + rows, left : left + columns],
            size,
            T.InterpolationMode.BILINEAR,
            antialias=True,
        )
        label_1hw = T.resize(label_hw[None], size, T.InterpolationMode.NEAREST_EXACT)
        return self._pad(image_3hw), _pad_to(label_1hw, self.crop_px, IGNORE)[0]

    def _pad(self, image_3HW: Tensor) -> Tensor:
        if image_3HW.shape[1:] == (self.crop_px, self.crop_px):
            return image_3HW
        planes = [
            _pad_to(plane[None], self.crop_px, value) for plane, value in zip(image_3HW, PAD_RGB, strict=True)
        ]
        return torch.cat(planes)

    def _distort(self, image_3HW: Tensor, generator: torch.Generator) -> Tensor:
        # contrast comes before or after the colour changes, since they do not commute
        contrast_first = _uniform(generator) < 0.5
        steps = ("contrast", "saturation", "hue") if contrast_first else ("saturation", "hue", "contrast")
        for name in ("brightness", *steps):
            apply, amount = _uniform(generator) < 0.5, 2 * _uniform(generator) - 1
            if not apply:
                continue
            if name == "hue":
                image_3HW = T.adjust_hue(image_3HW, amount * self.hue)
            else:
                image_3HW = getattr(T, f"adjust_{name}")(image_3HW, 1 + amount * getattr(self, name))
        return image_3HW


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _largest_share(label_HW: Tensor) -> float:
    """Share of the most frequent class among labelled pixels; 1 where nothing is labelled."""
    counts = torch.bincount(label_HW.flatten(), minlength=IGNORE + 1)[:IGNORE]
    total = int(counts.sum())
    return int(counts.max()) / total if total else 1.0


def _pad_to(image_1HW: Tensor, side_px: int, value: int) -> Tensor:
    height, width = image_1HW.shape[-2:]
    return T.pad(image_1HW, [0, 0, side_px - width, side_px - height], fill=[value])
