"""Sliding windows: images of any size through a network that takes crops. The only place where windows meet.

Shape legend: B images, H W pixels of an image or of a strip of it, h w of a window, K classes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossearth.data.catalog.domains import window_starts
from crossearth.model.crossearth import CrossEarth

Size = tuple[int, int]
Corner = tuple[int, int]
Score = Callable[[Tensor], Tensor]  # windows (b, 3, h, w) -> scores (b, K, h, w)
Tta = Literal["none", "d4"]

BUMP_FLOOR = 1e-3  # least weight along a side: a pixel that only the edges of windows reach has one, too
PASS_ON_CPU = 400_000  # patches x channels of a pass: more takes as long per window
PASS_ON_GPU = 32_000_000
MOST_WINDOWS = 64  # a pass
FREE_SHARE = 0.8  # of a GPU's free memory, for one pass


@dataclass(frozen=True)
class Windows:
    """Windows of one size over an image, and how much their pixels count.

    Attributes:
        size: rows and columns of a window.
        tops, lefts: their first rows and columns, rising; every top goes with every left.
        bump: whether a pixel counts the less the nearer it is to the window's edge (Hann's window along each
            side); else all count alike, which is the authors' protocol.
    """

    size: Size
    tops: Sequence[int]
    lefts: Sequence[int]
    bump: bool = False

    def profile(self, side: int) -> Tensor:
        """Weights along side 0 (its rows) or 1 (its columns) of a window; a pixel's is their product."""
        length = self.size[side]
        if not self.bump:
            return torch.ones(length)
        # of a window that is two pixels longer, whose ends are 0
        return torch.hann_window(length + 2, periodic=False)[1:-1].clamp(min=BUMP_FLOOR)

    def total(self, side: int, start: int, stop: int) -> Tensor:
        """Sum of the weights of all windows along a span of a side."""
        length, profile = self.size[side], self.profile(side)
        total = torch.zeros(stop - start)
        for first in self.lefts if side else self.tops:
            low, high = max(first, start), min(first + length, stop)
            if low < high:
                total[low - start : high - start] += profile[low - first : high - first]
        return total


@dataclass(frozen=True)
class Strip:
    """Rows of images, and the windows in them.

    Attributes:
        image: (B, 3, H, W) raw RGB, 0..255.
        top, left: row and column of the windows' frame that its first row and column are.
        corners: row and column in that frame of each window to compute.
        finished: the first row that a window of a later strip may touch.
    """

    image: Tensor
    top: int
    left: int
    corners: Sequence[Corner]
    finished: int


def slide(
    score: Score, strips: Iterable[Strip], windows: Windows, batch_size: int
) -> Iterator[tuple[int, Tensor | None]]:
    """Slides a network over strips of images; yields rows as soon as no window will touch them again.

    The scores of a pixel are the weighted mean over all windows that hold it. One that is not computed adds
    nothing: where some are left out the scores are too small, all classes alike.

    Args:
        score: gets at most `batch_size` windows, but at least one position of all images.
        strips: from top to bottom; each begins at or above the `finished` row of the one before.
        windows: all windows of the images, also of strips that are not given.

    Yields:
        (first row, scores (B, K, H, W) float32 where `score` leaves them, overwritten by the next rows); None
        as long as no window was computed.
    """
    rows, columns = windows.size
    sums_BKHW: Tensor | None = None
    weight_hw = windows.profile(0)[:, None] * windows.profile(1)
    begun: int | None = None  # the buffer's first row
    done = 0  # of its rows
    for strip in strips:
        begun = strip.top if begun is None else begun + done
        images, _, height, width = strip.image.shape
        room = strip.top + height - begun
        if sums_BKHW is not None:
            sums_BKHW = _moved_up(sums_BKHW, done, room)
        for chosen in in_batches(strip.corners, max(1, batch_size // images)):
            places = [(y - strip.top, x - strip.left) for y, x in chosen]
            crops = [strip.image[..., y : y + rows, x : x + columns] for y, x in places]
            scores = score(torch.cat(crops)).float()
            if sums_BKHW is None:
                sums_BKHW = scores.new_zeros(images, scores.shape[1], room, width)
            weight_hw = weight_hw.to(scores.device)
            down = strip.top - begun
            for (y, x), part_BKhw in zip(places, scores.split(images), strict=True):
                sums_BKHW[..., y + down : y + down + rows, x : x + columns].addcmul_(part_BKhw, weight_hw)
        done = strip.finished - begun
        if sums_BKHW is None:
            yield begun, None
        else:
            total_H = windows.total(0, begun, strip.finished).to(sums_BKHW.device)
            total_W = windows.total(1, strip.left, strip.left + width).to(sums_BKHW.device)
            yield begun, sums_BKHW[:, :, :done].div_(total_H[:, None] * total_W)


def _moved_up(sums_BKHW: Tensor, done: int, room: int) -> Tensor:
    """The rows below the first `done`, then zeros, at least `room` rows in all: in place where they fit."""
    rest_BKHW = sums_BKHW[:, :, done:]
    kept = rest_BKHW.shape[2]
    if kept > done:
        rest_BKHW = rest_BKHW.clone()  # they would be written over before they are read
    if room > sums_BKHW.shape[2]:
        return F.pad(rest_BKHW, (0, 0, 0, room - kept))
    sums_BKHW[:, :, :kept] = rest_BKHW
    sums_BKHW[:, :, kept:] = 0
    return sums_BKHW


def in_batches(corners: Sequence[Corner], most: int) -> Iterator[Sequence[Corner]]:
    """The corners in as few batches of at most `most` as there must be, nearly equal in size."""
    count = -(-len(corners) // most)
    bounds = [len(corners) * index // max(count, 1) for index in range(count + 1)]
    return (corners[low:high] for low, high in pairwise(bounds))


def slide_logits(
    network: Score, image_B3HW: Tensor, crop_px: int | Size, stride_px: int | Size, batch_size: int = 1
) -> Tensor:
    """Mean of the overlapping windows' logits, (B, K, H, W) float32: the authors' protocol.

    Args:
        network: a model, or its `segment` for normalised input.
        image_B3HW: any size; a side below the crop is taken whole and must then suit the network.
        crop_px, stride_px: of the windows; one number, or (rows, columns).
        batch_size: windows per call of the network, at least one position of all images.

    Raises:
        InputError: a side below the crop that is no multiple of the patch.
    """
    height, width = image_B3HW.shape[2:]
    crop, stride = ((value, value) if isinstance(value, int) else value for value in (crop_px, stride_px))
    windows = Windows(
        (min(crop[0], height), min(crop[1], width)),
        window_starts(height, crop[0], stride[0]),
        window_starts(width, crop[1], stride[1]),
    )
    corners = [(top, left) for top in windows.tops for left in windows.lefts]
    [(_, logits_BKHW)] = slide(network, [Strip(image_B3HW, 0, 0, corners, height)], windows, batch_size)
    return torch.as_tensor(logits_BKHW)


def augmented(network: Score, tta: Tta) -> Score:
    """With "d4" the mean of a network's scores over the 8 flips and quarter turns of a window."""
    if tta == "none":
        return network

    def mean_score(windows_B3hw: Tensor) -> Tensor:
        scores: list[Tensor] = []
        for turns in range(4):
            turned = torch.rot90(windows_B3hw, turns, (2, 3))
            for mirrored, seen in ((False, turned), (True, turned.flip(3))):
                found = network(seen).float()
                found = torch.rot90(found.flip(3) if mirrored else found, -turns, (2, 3))
                scores = [scores[0] + found] if scores else [found]
        return scores[0] / 8

    return mean_score


def store_weights(model: CrossEarth, dtype: torch.dtype) -> None:
    """Keeps the weights of linear maps and convolutions in `dtype`, nearly all of a network's memory.

    Under autocast to `dtype` the scores stay the same, bit for bit: it would round them in every pass.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


def windows_per_pass(model: CrossEarth, jobs: int = 1) -> int:
    """How many windows a pass should hold on the model's device: a small network alone leaves it idle.

    On a CPU the network's and the window's size decide. On a GPU it is so many as fill it, or fewer where
    free memory is short: one pass of two windows is run to see what a window takes.

    Args:
        jobs: processes that may share the device.
    """
    config, device = model.config, next(model.parameters()).device
    on_gpu = device.type == "cuda"
    work = (config.crop_px // config.patch_px) ** 2 * config.embed
    wanted = min(MOST_WINDOWS, max(1, (PASS_ON_GPU if on_gpu else PASS_ON_CPU) // work))
    if not on_gpu or wanted == 1:
        return wanted
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    bf16 = any(weight.dtype == torch.bfloat16 for weight in model.parameters())
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        model(torch.zeros(2, 3, config.crop_px, config.crop_px, device=device))
    per_window = (torch.cuda.max_memory_allocated(device) - before) / 2
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return int(max(1, min(wanted, FREE_SHARE * free / jobs // per_window)))


def fill_window(image_B3HW: Tensor, crop_px: int, patch_px: int) -> Tensor:
    """Sides below the window filled up to whole patches, at least two, with their last pixels."""
    missing = [
        0 if side >= crop_px else max(2, -(-side // patch_px)) * patch_px - side
        for side in image_B3HW.shape[2:]
    ]
    if not any(missing):
        return image_B3HW
    return F.pad(image_B3HW.float(), (0, missing[1], 0, missing[0]), mode="replicate")


@torch.inference_mode()
def predict_labels(model: CrossEarth, image_B3HW: Tensor, batch_size: int = 1, tta: Tta = "none") -> Tensor:
    """Class ids (B, H, W) uint8 of raw RGB images 0..255 of any size, by the authors' protocol."""
    height, width = image_B3HW.shape[2:]
    config = model.config
    filled = fill_window(image_B3HW, config.crop_px, config.patch_px)
    score = augmented(model, tta)
    logits_BKHW = slide_logits(score, filled, config.crop_px, config.stride_px, batch_size)
    return best_class(logits_BKHW, 1)[:, :height, :width]


def best_class(scores: Tensor, dim: int) -> Tensor:
    """Uint8 ids of the highest score along the class dimension; the first one of equals."""
    # several times as fast as argmax, which torch runs along a strided dimension one by one
    return scores.max(dim).indices.to(torch.uint8)
