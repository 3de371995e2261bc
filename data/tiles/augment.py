"""The ordinary augmentation of a training crop: scale, window, flip, photometric distortion."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

import crossearth.data.common.torchvision_ops  # noqa: F401

# isort: split
from torchvision.transforms.v2 import functional as T

from crossearth.data.catalog.labels import IGNORE
from crossearth.data.common.config import checked
from crossearth.data.common.errors import InputError

WINDOW_TRIES = 10  # windows drawn in search of one under the class cap; the last one is taken in any case
SCALES = (0.1, 32.0)  # a crop shrunk to a few pixels, and a crop of a few pixels, blown up
# the method's: equally spaced scales, both ends included; the largest share that one class may have among
# a window's labelled pixels; the probability of a horizontal flip
SCALE_STEPS, MAX_CLASS_SHARE, FLIP = 16, 0.75, 0.5
# our choice, the method gives none: factors are drawn from 1 - value .. 1 + value; the hue is turned by
# -value .. value of the colour circle
DISTORTION = {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.1}
PAD_RGB = (124, 116, 104)  # the network's mean colour: near 0 after normalisation


@checked
class Augmentation:
    """What a training sets of the augmentation; the defaults are the method's.

    Attributes:
        crop_px: side of the square crop that comes out, pixels.
        scale: least and largest short side of the resized tile, as a multiple of `crop_px`.
        photometric: whether brightness, contrast, saturation and hue are distorted, each with
            probability 1/2.
    """

    crop_px: Annotated[int, Field(ge=16)] = 512
    scale: tuple[float, float] = (0.5, 2.0)
    photometric: bool = True

    def __post_init__(self) -> None:
        if not SCALES[0] <= self.scale[0] <= self.scale[1] <= SCALES[1]:
            raise InputError(
                f"scale: {self.scale} is no range", expected=f"{SCALES[0]} <= least <= largest <= {SCALES[1]}"
            )

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
        if _uniform(generator) < FLIP:
            image_3hw, label_hw = T.horizontal_flip(image_3hw), T.horizontal_flip(label_hw[None])[0]
        if self.photometric:
            image_3hw = self._distort(image_3hw, generator)
        return image_3hw.contiguous(), label_hw.contiguous()

    def _window(
        self, image_3HW: Tensor, label_HW: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Cuts the window out of the tile and resizes it: as if the whole tile were resized, at less cost."""
        step = int(torch.randint(SCALE_STEPS, (), generator=generator))
        least, largest = self.scale
        target_px = round(self.crop_px * (least + (largest - least) * step / (SCALE_STEPS - 1)))
        height, width = label_HW.shape
        factor = target_px / min(height, width)
        rows, columns = (min(side, max(1, round(self.crop_px / factor))) for side in (height, width))
        for _ in range(WINDOW_TRIES):
            top = int(torch.randint(height - rows + 1, (), generator=generator))
            left = int(torch.randint(width - columns + 1, (), generator=generator))
            label_hw = label_HW[top : top + rows, left : left + columns]
            if _largest_share(label_hw) <= MAX_CLASS_SHARE:
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
        padding = [0, 0, self.crop_px - size[1], self.crop_px - size[0]]
        return T.pad(image_3hw, padding, fill=list(PAD_RGB)), T.pad(label_1hw, padding, fill=[IGNORE])[0]

    def _distort(self, image_3HW: Tensor, generator: torch.Generator) -> Tensor:
        # contrast comes before or after the colour changes, since they do not commute
        contrast_first = _uniform(generator) < 0.5
        steps = ("contrast", "saturation", "hue") if contrast_first else ("saturation", "hue", "contrast")
        for name in ("brightness", *steps):
            apply, amount = _uniform(generator) < 0.5, 2 * _uniform(generator) - 1
            if not apply:
                continue
            if name == "hue":
                image_3HW = T.adjust_hue(image_3HW, amount * DISTORTION[name])
            else:
                image_3HW = getattr(T, f"adjust_{name}")(image_3HW, 1 + amount * DISTORTION[name])
        return image_3HW


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _largest_share(label_HW: Tensor) -> float:
    """Share of the most frequent class among labelled pixels; 1 where nothing is labelled."""
    counts = torch.bincount(label_HW.flatten(), minlength=IGNORE + 1)[:IGNORE]
    total = int(counts.sum())
    return int(counts.max()) / total if total else 1.0
