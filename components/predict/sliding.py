"""A trained network slid over a scene: blocks of scores on the map's own grid, in bounded memory.

Legend: B windows, K classes, H W pixels of a window, strip or block.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossearth.components.predict.config import Precision
from crossearth.components.predict.outputs import Block
from crossearth.components.predict.strips import Scene, Span, View
from crossearth.components.runtime.device import choose_device
from crossearth.data.common.cpu import has_amx
from crossearth.data.common.prefetch import prefetch
from crossearth.data.raster.reading import Bytes, Mask
from crossearth.model.crossearth import CrossEarth, NetworkConfig
from crossearth.model.inference import Strip, Tta, Windows, augmented, slide, window_starts, windows_per_pass
from crossearth.model.weights.checkpoint import load, read_meta

# of the scores that wait for further windows: a wider scene is cut into panels. The windows at a panel's edge
# are computed for its neighbour, too: of large windows it may take more, that this stays within 3 %
SUMS_BYTES, MOST_SUMS_BYTES = 64 << 20, 512 << 20
PANEL_WINDOWS = 48
KEPT_BYTES = 64 << 20  # of what is kept of a strip of a panel, a byte of each class
BLOCK_BYTES = 4 << 20  # of the scores of one block


@dataclass(frozen=True)
class Loaded:
    """A model ready to map: network on its device, precision, and what the report says of it.

    Attributes:
        batch_size: windows per pass.
        tta: what the scores of a window are the mean of, see `inference.augmented`.
    """

    network: CrossEarth
    precision: torch.dtype
    classes: list[str]
    palette: list[str]
    about: dict[str, Any]
    batch_size: int = 1
    tta: Tta = "none"


def load_network(
    model: Path,
    precision: Precision = "auto",
    device: str = "auto",
    backbone: Path | None = None,
    batch_size: int | None = None,
    tta: Tta = "none",
    jobs: int = 1,
) -> Loaded:
    """Reads a model and puts it on its device, its weights in the precision that they are used in.

    Args:
        batch_size: windows per pass; None = so many as keep the device busy, see `windows_per_pass`.
        jobs: processes that may share the device.

    Raises:
        InputError: whatever `choose_device` and `checkpoint.load` refuse.
    """
    device = choose_device(device)
    meta = read_meta(model)
    dtype = choose_precision(precision, device)
    network = load(model, device, backbone, dtype)
    about = {
        "sha256": meta["sha256"],
        "provenance": meta["provenance"],
        "precision": str(dtype).removeprefix("torch."),
        "tta": tta,
    }
    batch_size = batch_size or windows_per_pass(network, jobs)
    return Loaded(network, dtype, meta["classes"], meta["palette"], about, batch_size, tta)


def choose_precision(precision: Precision, device: str) -> torch.dtype:
    """The dtype of the network's arithmetic; "auto" = bfloat16 where the hardware multiplies it fast."""
    if precision != "auto":
        return torch.float32 if precision == "float32" else torch.bfloat16
    fast = device.startswith("cuda") or has_amx()
    return torch.bfloat16 if fast else torch.float32


def window_scores(loaded: Loaded, windows_B3HW: Tensor) -> Tensor:
    """Scores (B, K, H, W) float32 of whole windows, in the model's precision."""
    network = augmented(loaded.network, loaded.tta)
    device = next(loaded.network.parameters()).device
    bf16 = loaded.precision != torch.float32
    with torch.inference_mode(), torch.autocast(device.type, loaded.precision, enabled=bf16):
        return network(windows_B3HW.to(device))


@dataclass(frozen=True)
class Plan:
    """How a map is computed: windows on the grid that the network sees, strips and panels of the map.

    Every rectangle of strips and panels can be computed alone, to the same digits: all windows that touch it
    are, those of its neighbours, too.

    Attributes:
        scene: that is mapped.
        windows: of the whole scene. Where it is longer than a window they begin before it and end behind it,
            by half their overlap: its border lies as deep within them as any other place.
        groups: first rows of the windows that are computed together.
        strips: rows of the map that are ready after each group.
        panels: columns of the map; several where it is wider than memory allows.
    """

    scene: Scene
    windows: Windows
    groups: Sequence[Sequence[int]]
    strips: Sequence[Span]
    panels: Sequence[Span]
    down: "Taps"
    across: "Taps"

    def lefts(self, panel: int) -> list[int]:
        """First columns of the windows that touch a panel."""
        begin, end = self.panels[panel]
        low, high = int(self.across.lower[begin]), int(self.across.upper[end - 1])
        return [left for left in self.windows.lefts if left <= high and left + self.windows.size[1] > low]

    def groups_of(self, strips: range) -> range:
        """The groups that strips need: those before theirs whose windows touch them, too."""
        row = int(self.down.lower[self.strips[strips.start][0]])
        first = next(index for index, tops in enumerate(self.groups) if tops[-1] + self.windows.size[0] > row)
        return range(min(first, strips.start), strips.stop)

    @property
    def num_windows(self) -> int:
        """Windows of all panels."""
        return len(self.windows.tops) * sum(len(self.lefts(panel)) for panel in range(len(self.panels)))


@dataclass(frozen=True)
class Taps:
    """Linear interpolation along a side: each px of the map lies between two that the network saw.

    Attributes:
        lower, upper: their indexes, (side,) int64; equal where the px lies on one, or outside the outermost.
        share: how much the upper counts, (side,) float32.
    """

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    share: NDArray[np.float32]

    @classmethod
    def between(cls, side: int, seen: int) -> "Taps":
        """Of a side of so many px of the map, seen as so many."""
        place = ((np.arange(side) + 0.5) * (seen / side) - 0.5).clip(0, seen - 1)
        lower = np.floor(place + 1e-9).astype(np.int64)
        share = (place - lower).clip(0).astype(np.float32)
        share[share < 1e-6] = 0
        return cls(lower, lower + (share > 0), share)

    def along(self, scores: Tensor, dim: int, span: Span, first: int) -> Tensor:
        """Scores of a span of the map's px, of scores that begin with the seen px `first`."""
        lower, upper, share = (
            torch.from_numpy(each[slice(*span)]).to(scores.device)
            for each in (self.lower, self.upper, self.share)
        )
        begin, count = int(lower[0]) - first, int(lower[-1] - lower[0]) + 1
        if count == len(lower) and not share.any():
            return scores.narrow(dim, begin, count)
        shape = [1, 1, 1]
        shape[dim] = -1
        low, high = (scores.index_select(dim, index - first) for index in (lower, upper))
        return torch.lerp(low, high, share.view(shape))


def plan(scene: Scene, config: NetworkConfig, batch_size: int) -> Plan:
    """Cuts a scene for a network."""
    crop, stride = config.crop_px, config.stride_px
    tops, lefts = (_starts(side, crop, stride) for side in scene.seen)
    windows = Windows((crop, crop), tops, lefts, bump=True)
    at_once = max(1, batch_size // len(windows.lefts))
    groups = [tops[first : first + at_once] for first in range(0, len(tops), at_once)]
    down, across = (
        Taps.between(side, seen)
        for side, seen in zip((scene.grid.height, scene.grid.width), scene.seen, strict=True)
    )
    finished = [group[0] for group in groups[1:]] + [scene.seen[0]]
    ends = [0, *np.searchsorted(down.upper, finished).tolist()]
    height = max(bottom - top for top, bottom in pairwise(ends))
    column_bytes = 4 * config.num_classes * (crop + (at_once - 1) * stride)
    seen = max(SUMS_BYTES // column_bytes, min(PANEL_WINDOWS * stride, MOST_SUMS_BYTES // column_bytes))
    widest = max(1, int(min(seen / scene.scale[1], KEPT_BYTES // (height * config.num_classes))))
    count = -(-scene.grid.width // widest)
    sides = [scene.grid.width * index // count for index in range(count + 1)]
    return Plan(scene, windows, groups, list(pairwise(ends)), list(pairwise(sides)), down, across)


def _starts(side: int, crop: int, stride: int) -> list[int]:
    """First px of the windows along a side of the seen grid."""
    padded = crop if side <= crop else side + 2 * ((crop - stride) // 2)
    return [start - (padded - side) // 2 for start in window_starts(padded, crop, stride)]


def blocks(
    loaded: Loaded, view: View, plan: Plan, panel: int, strips: range, advance: Callable[[int], None]
) -> Iterator[tuple[int, Block]]:
    """Scores of some strips of a panel, top to bottom; a thread reads ahead.

    Windows without a valid pixel are not computed.

    Args:
        advance: called with a number of windows, when they are done or left out.

    Yields:
        (strip, block of some of its rows); the block's scores are overwritten by the next.
    """
    lefts, columns = plan.lefts(panel), plan.panels[panel]
    groups = plan.groups_of(strips)

    def score(windows_B3HW: Tensor) -> Tensor:
        scores = window_scores(loaded, windows_B3HW)
        advance(len(scores))
        return scores

    valid: dict[int, Mask] = {}

    def read(item: tuple[int, Span]) -> tuple[Bytes, Mask, Mask | None]:
        index, rows = item
        look = view.look(rows, (lefts[0], lefts[-1] + plan.windows.size[1]))
        return *look, view.valid(plan.strips[index], columns) if index in strips else None

    with closing(prefetch(read, _fresh_rows(plan, groups), 1)) as pieces:
        seen = _strips(view, plan, lefts, groups, pieces, valid, advance)
        rows = slide(score, seen, plan.windows, loaded.batch_size)
        config, device = loaded.network.config, next(loaded.network.parameters()).device
        held = torch.zeros(config.num_classes, 0, 0, device=device)
        for index, (top, scores_1KHW) in zip(groups, rows, strict=True):
            ready = plan.groups[index + 1][0] if index + 1 < len(plan.groups) else view.height
            scores = (
                torch.zeros(config.num_classes, 1, 1, device=device).expand(
                    -1, ready - top, lefts[-1] - lefts[0] + plan.windows.size[1]
                )
                if scores_1KHW is None
                else scores_1KHW[0]
            )
            if held.shape[1]:
                scores, top = torch.cat([held, scores], dim=1), top - 1
            if index in strips:
                yield from (
                    (index, block)
                    for block in _on_map(plan, index, columns, scores, (top, lefts[0]), valid.pop(index))
                )
            if plan.down.share.any():
                held = scores[:, -1:].clone()  # the next strip's first rows lie between it and theirs


def _fresh_rows(plan: Plan, groups: range) -> Iterator[tuple[int, Span]]:
    """Of each group the rows below those of the group before."""
    height = plan.windows.size[0]
    read = plan.groups[groups.start][0]
    for index in groups:
        bottom = plan.groups[index][-1] + height
        yield index, (read, bottom)
        read = bottom


def _strips(
    view: View,
    plan: Plan,
    lefts: Sequence[int],
    groups: range,
    pieces: Iterator[tuple[Bytes, Mask, Mask | None]],
    valid: dict[int, Mask],
    advance: Callable[[int], None],
) -> Iterator[Strip]:
    """The strips that the network is slid over; puts the masks of the map's rows into `valid`."""
    image = np.empty((3, 0, lefts[-1] - lefts[0] + plan.windows.size[1]), np.uint8)
    seen = np.empty(image.shape[1:], bool)
    for index, (fresh, fresh_seen, of_map) in zip(groups, pieces, strict=True):
        top = plan.groups[index][0]
        bottom = plan.groups[index][-1] + plan.windows.size[0]
        kept = bottom - top - fresh.shape[1]
        image = np.concatenate([image[:, image.shape[1] - kept :], fresh], axis=1)
        seen = np.concatenate([seen[len(seen) - kept :], fresh_seen])
        if of_map is not None:
            valid[index] = of_map
        corners = [
            (y, x)
            for y in plan.groups[index]
            for x in lefts
            if _inside(seen, top, lefts[0], (y, x), plan.windows.size, (view.height, view.width)).any()
        ]
        advance(len(plan.groups[index]) * len(lefts) - len(corners))
        last = index + 1 == len(plan.groups)
        finished = view.height if last else plan.groups[index + 1][0]
        yield Strip(torch.from_numpy(image)[None], top, lefts[0], corners, finished)


def _inside(
    seen: Mask, top: int, left: int, corner: tuple[int, int], size: tuple[int, int], sides: tuple[int, int]
) -> Mask:
    """The part of a window that lies within the scene's grid, not beyond its borders."""
    rows, columns = (
        slice(max(start, 0) - first, min(start + length, side) - first)
        for start, length, side, first in zip(corner, size, sides, (top, left), strict=True)
    )
    return seen[rows, columns]


def _on_map(
    plan: Plan, strip: int, columns: Span, scores: Tensor, corner: tuple[int, int], valid: Mask
) -> Iterator[Block]:
    """Blocks of a strip on the map's grid, of the scores of the grid that the network saw."""
    top, bottom = plan.strips[strip]
    width = columns[1] - columns[0]
    at_once = max(1, BLOCK_BYTES // (4 * len(scores) * width))
    for first in range(top, bottom, at_once):
        rows = (first, min(first + at_once, bottom))
        between = plan.down.along(scores, 1, rows, corner[0])
        block = plan.across.along(between, 2, columns, corner[1])
        yield Block(first, columns[0], block, valid[first - top : rows[1] - top])
