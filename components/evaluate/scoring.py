"""One pass of a model over a target: read ahead, sliding windows over batches of tiles, exact counts.

Of several processes each takes every n-th batch. Batches are cut before they are shared out: each holds the
same tiles at any number of processes, and the sums are those of one process to the last pixel.

Legend: B tiles of a batch, K classes, N tiles.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from rich.progress import MofNCompleteColumn, TimeRemainingColumn
from torch import Tensor

from crossearth.components.runtime.processes import Processes
from crossearth.data.catalog.labels import IGNORE, remap_table
from crossearth.data.common.errors import InputError
from crossearth.data.common.prefetch import prefetch
from crossearth.data.common.progress import bar
from crossearth.data.tiles.manifest import Manifest, read_image, read_label
from crossearth.model.crossearth import CrossEarth
from crossearth.model.inference import Tta, predict_labels, window_starts
from crossearth.model.scores import Counts, PrimaryMetric, class_iou, outcome_counts, primary_iou

if TYPE_CHECKING:
    from crossearth.model.metrics import ConfusionMatrix

Pixels = NDArray[np.uint8]

NAMED_TILES = 20  # how many wrong tiles an error spells out
PICTURE_LABELLED = 0.25  # a tile with fewer labelled pixels than this share makes no telling picture


@dataclass(frozen=True)
class Tile:
    """A tile as read.

    image: (3, H, W) raw values. label: (H, W) ids of the recipe's class set, 255 = ignore. problem: "" or
    what is wrong with its file.
    """

    index: int
    image: Pixels
    label: Pixels
    problem: str


@dataclass(frozen=True)
class ScoredTile:
    """A tile's row in the manifest, its counts (3, K) and its primary IoU, NaN where that is undefined."""

    index: int
    counts: Counts
    iou: float


@dataclass(frozen=True)
class Picture:
    """A tile that is worth a look: image (3, H, W), label and prediction (H, W)."""

    tile: ScoredTile
    image: Pixels
    label: Pixels
    prediction: Pixels


@dataclass
class TargetScores:
    """What a pass collects.

    Attributes:
        confusion: (K, K) int64, rows = label, columns = prediction.
        tiles: in the manifest's order.
        worst, best: most telling first; no tile is in both.
        seconds: wall time of the pass; network_seconds: the part spent in the network (first process).
    """

    confusion: Counts = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    tiles: list[ScoredTile] = field(default_factory=list)
    worst: list[Picture] = field(default_factory=list)
    best: list[Picture] = field(default_factory=list)
    seconds: float = 0.0
    network_seconds: float = 0.0


def score_target(
    model: CrossEarth,
    manifest: Manifest,
    remap: Sequence[int],
    primary_metric: PrimaryMetric,
    processes: Processes,
    *,
    batch_size: int,
    readers: int,
    num_pictures: int,
    tta: Tta = "none",
    on_prediction: Callable[[int, Pixels], None] | None = None,
) -> TargetScores:
    """Scores every tile of `manifest` once.

    Args:
        model: in evaluation mode, on its device.
        manifest: the target's split.
        remap: new class id per id of the manifest's class set.
        primary_metric: which IoU ranks the tiles.
        processes: among which the tiles are shared out; every one gets the whole result.
        batch_size: sliding windows per forward pass.
        readers: threads that read and hash tiles while the network works.
        num_pictures: best and worst tiles to keep, each.
        tta: see `inference.augmented`.
        on_prediction: called with the row and the predicted ids (H, W) of every tile, in this process.

    Raises:
        InputError: tiles that are gone or not the ones that were ingested (listed); no labelled pixel at all.
    """
    from crossearth.model.metrics import ConfusionMatrix  # torchmetrics takes a second to import

    confusion = ConfusionMatrix(model.config.num_classes).to(processes.device)
    found = TargetScores()
    problems: list[str] = []
    table = remap_table(remap)
    batches = _batches(manifest, batch_size, model)[processes.rank :: processes.size]
    started = time.perf_counter()
    read = prefetch(lambda rows: [_read(manifest, row, table) for row in rows], batches, readers)
    for tiles in _watch(manifest, processes, read):
        problems += [tile.problem for tile in tiles if tile.problem]
        if problems:  # no score will come of this: only read on, to name all that is wrong
            continue
        entered = time.perf_counter()
        predicted_BHW = _predict(model, tiles, batch_size, tta)
        found.network_seconds += time.perf_counter() - entered
        for tile, predicted_HW in zip(tiles, predicted_BHW, strict=True):
            picture = _score(confusion, tile, predicted_HW, primary_metric)
            found.tiles.append(picture.tile)
            if on_prediction:
                on_prediction(tile.index, picture.prediction)
            _keep_picture(found, picture, num_pictures)
    found.seconds = time.perf_counter() - started
    found.confusion = confusion.compute().cpu().numpy()
    _merge(found, problems, processes, num_pictures)
    if problems:
        raise _changed(manifest, problems)
    if not found.confusion.any():
        raise InputError(
            f"no pixel of {manifest.domain} is labelled with a class of this recipe: nothing to score",
            where=manifest.root,
            next_step="check the domain's label map in the catalog",
        )
    return found


def _predict(model: CrossEarth, tiles: Sequence[Tile], batch_size: int, tta: Tta) -> Tensor:
    """Ids (B, H, W) on the model's device."""
    device = next(model.parameters()).device
    image_B3HW = torch.from_numpy(np.stack([tile.image for tile in tiles])).to(device)
    predicted_BHW = predict_labels(model, image_B3HW, batch_size, tta)
    if device.type == "cuda":  # or its time would be counted elsewhere
        torch.cuda.synchronize(device)
    return predicted_BHW


def _score(
    confusion: "ConfusionMatrix", tile: Tile, predicted_HW: Tensor, primary_metric: PrimaryMetric
) -> Picture:
    """Adds a tile to the counts; gives its own."""
    label_HW = torch.from_numpy(tile.label).to(predicted_HW.device)
    counts = outcome_counts(confusion(predicted_HW, label_HW).cpu().numpy())
    scored = ScoredTile(tile.index, counts, float(primary_iou(class_iou(counts), primary_metric)))
    return Picture(scored, tile.image, tile.label, predicted_HW.cpu().numpy())


def _changed(manifest: Manifest, problems: Sequence[str]) -> InputError:
    listed = "".join(f"\n    {problem}" for problem in problems[:NAMED_TILES])
    more = f"\n    and {len(problems) - NAMED_TILES} more" if len(problems) > NAMED_TILES else ""
    return InputError(
        f"{len(problems)} tiles are not as they were ingested:{listed}{more}",
        where=manifest.root,
        next_step=f"crossearth ingest {manifest.domain}, or put the files back",
    )


def _batches(manifest: Manifest, batch_size: int, model: CrossEarth) -> list[list[int]]:
    """Rows of tiles of one size, as many as fill a forward pass with sliding windows."""
    of_size: dict[tuple[int, int], list[int]] = {}
    for index, row in enumerate(manifest.rows):
        of_size.setdefault((row["height"], row["width"]), []).append(index)
    batches: list[list[int]] = []
    for size, rows in of_size.items():
        down, across = (window_starts(side, model.config.crop_px, model.config.stride_px) for side in size)
        tiles = max(1, batch_size // (len(down) * len(across)))
        batches += [rows[first : first + tiles] for first in range(0, len(rows), tiles)]
    return batches


def _read(manifest: Manifest, index: int, remap: Pixels) -> Tile:
    try:
        image_3HW, label_HW = read_image(manifest, index), read_label(manifest, index)
    except InputError as error:
        nothing = np.zeros((0,), dtype=np.uint8)
        problem = f"{manifest.rows[index]['tile_id']}: {str(error).splitlines()[0]}"
        return Tile(index, nothing, nothing, problem)
    return Tile(index, image_3HW, remap[label_HW], "")


def _watch(manifest: Manifest, processes: Processes, batches: Iterator[list[Tile]]) -> Iterator[list[Tile]]:
    """Passes batches through under a progress bar on a terminal."""
    columns = (MofNCompleteColumn(), "tiles", TimeRemainingColumn())
    with bar(*columns, wanted=processes.is_main_process, transient=True) as progress:
        task = progress.add_task(manifest.domain, total=len(manifest))
        for tiles in batches:
            yield tiles
            # the other processes move on at the same pace
            progress.advance(task, len(tiles) * processes.size)


def _keep_picture(found: TargetScores, picture: Picture, num_pictures: int) -> None:
    labelled = np.count_nonzero(picture.label != IGNORE) / picture.label.size
    if np.isnan(picture.tile.iou) or labelled < PICTURE_LABELLED:
        return
    found.worst = _extreme([*found.worst, picture], num_pictures, 1)
    found.best = _extreme([*found.best, picture], num_pictures, -1)


def _extreme(pictures: list[Picture], number: int, sign: int) -> list[Picture]:
    return sorted(pictures, key=lambda picture: (sign * picture.tile.iou, picture.tile.index))[:number]


def _merge(found: TargetScores, problems: list[str], processes: Processes, num_pictures: int) -> None:
    """Puts the shares of all processes together, in every process, and makes best and worst disjoint."""
    found_everywhere: list[Any] = [(found.tiles, found.worst, found.best, list(problems))] * processes.size
    if processes.size > 1:
        dist.all_gather_object(found_everywhere, found_everywhere[0])
    found.tiles, found.worst, found.best, problems[:] = (
        [item for share in found_everywhere for item in share[part]] for part in range(4)
    )
    found.tiles.sort(key=lambda tile: tile.index)
    candidates = {picture.tile.index: picture for picture in (*found.worst, *found.best)}
    # with few tiles the two lists meet: each gets at most half
    each = min(num_pictures, (len(candidates) + 1) // 2)
    found.worst = _extreme(list(candidates.values()), each, 1)
    shown = {picture.tile.index for picture in found.worst}
    found.best = _extreme([picture for i, picture in candidates.items() if i not in shown], each, -1)
