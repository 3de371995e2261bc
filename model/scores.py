"""From pixel counts to scores and their uncertainty, in NumPy alone: reading results must not wait for torch.

Legend: K classes, N tiles, R bootstrap replicates, S scored sets of tiles.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Fractions = NDArray[np.float64]
PrimaryMetric = Literal["mean", "foreground"]
METRICS: dict[PrimaryMetric, str] = {"mean": "mIoU", "foreground": "IoU of the foreground"}

# replicates x tiles that one block of resampling weights may hold (32 MB of int32)
_BLOCK = 8_000_000


@dataclass(frozen=True)
class Scores:
    """Scores of one confusion matrix; every number is a fraction 0..1, NaN where it is undefined.

    Attributes:
        iou: (K,) intersection over union per class; NaN for a class without labelled pixels.
        f1: (K,) F1 per class; NaN for a class without labelled pixels.
        pixels: (K,) labelled pixels per class.
        primary_metric: the number of the benchmark's table: mean of `iou` over the classes present, or, for
            binary sets, the IoU of class 1.
        accuracy: share of the labelled pixels that are right.
        mean_f1: mean of `f1` over the classes present.
    """

    iou: Fractions
    f1: Fractions
    pixels: Counts
    primary_metric: float
    accuracy: float
    mean_f1: float


# of a whole target, beside the primary metric: name in MLflow -> (field of `Scores`, heading of its column)
OTHER_SCORES = {"accuracy": ("accuracy", "accuracy"), "f1": ("mean_f1", "F1")}


def outcome_counts(confusion_KK: Counts) -> Counts:
    """Hits, predicted and labelled pixels per class, which add up over tiles as the IoU does not.

    Args:
        confusion_KK: (..., K, K) pixels, rows = label, columns = prediction.

    Returns:
        (..., 3, K) int64.
    """
    hits = np.diagonal(confusion_KK, axis1=-2, axis2=-1)
    return np.stack([hits, confusion_KK.sum(-2), confusion_KK.sum(-1)], axis=-2)


def class_iou(counts_3K: Counts) -> Fractions:
    """IoU per class, (..., 3, K) counts -> (..., K); NaN for a class without labelled pixels.

    A class counts as absent when the target has no pixel of it, even if the network predicts some: those
    pixels lower the IoU of the classes they belong to.
    """
    hits, predicted, labelled = np.moveaxis(np.asarray(counts_3K, dtype=np.float64), -2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(labelled > 0, hits / (predicted + labelled - hits), np.nan)


def primary_iou(iou_K: Fractions, primary_metric: PrimaryMetric) -> Fractions:
    """(..., K) -> (...): mean over the classes present, or the IoU of class 1; NaN where none is present."""
    if primary_metric == "foreground":
        return iou_K[..., 1]
    present = ~np.isnan(iou_K)
    with np.errstate(invalid="ignore"):
        return np.where(present, iou_K, 0.0).sum(-1) / present.sum(-1)


def score(confusion_KK: Counts, primary_metric: PrimaryMetric = "mean") -> Scores:
    """Scores of a (K, K) confusion matrix, rows = label, columns = prediction."""
    counts_3K = outcome_counts(confusion_KK)
    hits, predicted, labelled = counts_3K.astype(np.float64)
    iou_K = class_iou(counts_3K)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1_K = np.where(labelled > 0, 2 * hits / (predicted + labelled), np.nan)
        accuracy = hits.sum() / labelled.sum()
    return Scores(
        iou=iou_K,
        f1=f1_K,
        pixels=counts_3K[2],
        primary_metric=float(primary_iou(iou_K, primary_metric)),
        accuracy=float(accuracy),
        mean_f1=float(primary_iou(f1_K, "mean")),
    )


def bootstrap(
    tile_sets: list[Counts], primary_metric: PrimaryMetric, replicates: int, rng: np.random.Generator
) -> Fractions:
    """Primary scores of resampled tiles: each replicate draws the N tiles with replacement.

    All sets see the same draws, so that differences between them are paired.

    Args:
        tile_sets: S arrays (N, 3, K) of the same N tiles, as `outcome_counts` gives them.
        primary_metric: which number is bootstrapped.
        replicates: R.
        rng: source of the draws.

    Returns:
        (S, R) fractions.
    """
    num_tiles = len(tile_sets[0])
    flat = [np.asarray(tiles, dtype=np.float64).reshape(num_tiles, -1) for tiles in tile_sets]
    blocks = []
    for start in range(0, replicates, size := max(1, _BLOCK // num_tiles)):
        rows = min(size, replicates - start)
        draws_RN = rng.multinomial(num_tiles, np.full(num_tiles, 1 / num_tiles), size=rows).astype(np.float64)
        blocks.append([draws_RN @ tiles for tiles in flat])
    num_classes = tile_sets[0].shape[-1]
    sums = [np.concatenate(parts).reshape(replicates, 3, num_classes) for parts in zip(*blocks, strict=True)]
    return np.stack([primary_iou(class_iou(counts), primary_metric) for counts in sums])


def interval(values_R: Fractions, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap replicates, undefined ones left out; (NaN, NaN) if all are."""
    defined = values_R[~np.isnan(values_R)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p_value(difference_R: Fractions) -> float:
    """Two-sided bootstrap p-value of "no difference": twice the smaller tail past zero, at least 2 / (R + 1).

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 15.
    """
    defined = difference_R[~np.isnan(difference_R)]
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(defined) + 1)))
