"""Confusion matrices of pairs of label maps: as the authors' metric counts, and ours.

Theirs makes float histograms of both maps and of where they agree; that gives no matrix, only what an IoU
needs.
"""

import torch
from harness import Action, Case, Form
from torch import Tensor

from crossearth.data.catalog.labels import IGNORE
from crossearth.model.metrics import confusion_matrix

PAIR_PX, PAIRS, CLASSES = 1024, 4, 6


def maps(kind: str) -> Tensor:
    """(2, px, px) uint8: a prediction and a label with an ignored edge."""
    drawn = torch.randint(CLASSES, (2, PAIR_PX, PAIR_PX)).to(torch.uint8)
    if kind == "blocks":
        drawn = drawn[:, ::32, ::32].repeat_interleave(32, 1).repeat_interleave(32, 2).contiguous()
    drawn[1, :100] = IGNORE
    return drawn


def histograms(kind: str) -> Action:
    predicted, label = maps(kind)

    def count() -> list[Tensor]:
        counts = []
        for _ in range(PAIRS):
            valid = label != IGNORE
            chosen, truth = predicted[valid].float(), label[valid].float()
            counts = [
                torch.histc(values, bins=CLASSES, min=0, max=CLASSES - 1)
                for values in (chosen[chosen == truth], chosen, truth)
            ]
        return counts

    return count


def ours(kind: str) -> Action:
    predicted, label = maps(kind)
    return lambda: [confusion_matrix(predicted, label, CLASSES) for _ in range(PAIRS)]


def case(kind: str) -> Case:
    forms = {
        "histograms": Form(lambda: histograms(kind), PAIRS),
        "confusion matrix": Form(lambda: ours(kind), PAIRS),
    }
    return Case(forms, "pair", rounds=15)


CASES = {f"counting {PAIR_PX} px, {kind}": case(kind) for kind in ("random", "blocks")}
