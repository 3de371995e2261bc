"""How large the classes are, judged by the probabilities of all px, and how sure that is.

Counting px takes each for its likeliest class, sure or not. The sum of the probabilities of a class is the
expected number of its px (Bella et al., "Quantification via probability estimators", ICDM 2010). Its variance
depends on how errors hang together: neighbours tend to be wrong at once. Here the px of a block of `BLOCK_PX`
a side are taken to be right or wrong together, and blocks to be independent, as in cluster sampling (Kish,
"Survey sampling", 1965): the standard deviation of a block is the sum of those of its px, a sqrt(p (1 - p)),
and the variances of the blocks add up. The interval is the normal one of 95 %.

It says how sure the network is, not how right: probabilities that are too bold make it too narrow, and it
knows nothing of ground that the training never saw. Areas that must stand up want a sample of reference
labels (Olofsson et al., "Good practices for estimating area and assessing accuracy of land change", 2014).

Legend: K classes, H rows, G blocks across.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

BLOCK_PX = 64
NORMAL_95 = 1.96

Floats = NDArray[np.float64]


def block_sums(
    probabilities_KHW: Tensor, valid_HW: Tensor
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sums along the rows of each block: of the probabilities and of their standard deviations.

    Args:
        probabilities_KHW: float32, 0..1.
        valid_HW: bool; other px count nothing.

    Returns:
        Twice float32 (K, H, G).
    """
    seen_KHW = probabilities_KHW * valid_HW
    missing = -seen_KHW.shape[-1] % BLOCK_PX
    expected, spread = (
        F.pad(each_KHW, (0, missing)).unflatten(-1, (-1, BLOCK_PX)).sum(-1).cpu().numpy()
        for each_KHW in (seen_KHW, (seen_KHW * (1 - seen_KHW)).clamp_(min=0).sqrt_())
    )
    return expected, spread


class Estimate:
    """Expected area of each class and its interval, while the rows come."""

    def __init__(self, num_classes: int) -> None:
        self._expected_K = np.zeros(num_classes)
        self._variance_K = np.zeros(num_classes)
        self._row = 0
        self._block_KG: Floats | None = None  # standard deviations of the present row of blocks

    def add(
        self, expected_KHG: NDArray[np.float32], spread_KHG: NDArray[np.float32], sizes_H: Floats
    ) -> None:
        """Takes whole rows, those below the ones before.

        Args:
            expected_KHG, spread_KHG: as `block_sums` has them, of all columns.
            sizes_H: mean size of a px of each row, m2.
        """
        self._expected_K += np.einsum("khg,h->k", expected_KHG, sizes_H, dtype=np.float64)
        first = 0
        while first < len(sizes_H):
            last = min(len(sizes_H), first + BLOCK_PX - self._row % BLOCK_PX)
            rows = slice(first, last)
            part_KG = np.einsum("khg,h->kg", spread_KHG[:, rows], sizes_H[rows], dtype=np.float64)
            self._block_KG = part_KG if self._block_KG is None else self._block_KG + part_KG
            self._row += last - first
            first = last
            if self._row % BLOCK_PX == 0:
                self._end_blocks()

    def _end_blocks(self) -> None:
        if self._block_KG is not None:
            self._variance_K += (self._block_KG**2).sum(-1)
        self._block_KG = None

    def result(self) -> tuple[Floats, Floats]:
        """Expected areas (K,), and low and high end of their intervals (K, 2): m2, not below 0."""
        self._end_blocks()
        half_K = NORMAL_95 * np.sqrt(self._variance_K)
        ends_K2 = np.stack([self._expected_K - half_K, self._expected_K + half_K], axis=1)
        return self._expected_K, ends_K2.clip(0, self._expected_K.sum())
