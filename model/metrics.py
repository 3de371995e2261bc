"""Counts pixels exactly: one int64 confusion matrix per target, on the device that holds the predictions."""

import torch
from torch import Tensor

import crossearth.data.common.torchvision_ops  # noqa: F401

# isort: split
from torchmetrics import Metric

from crossearth.data.catalog.labels import IGNORE


class ConfusionMatrix(Metric):
    """Pixels by label (rows) and prediction (columns), added up over batches and over processes.

    A call `metric(predicted, label)` adds a batch and gives its own matrix; `compute()` gives the matrix of
    all batches of all processes, (K, K) int64. See `confusion_matrix` for a call's arguments. torchmetrics'
    own MulticlassConfusionMatrix counts the same, but masks and indexes in int64: five times slower on a CPU.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        zeros_KK = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("counts", zeros_KK, dist_reduce_fx="sum")
        # of many processes one may get no batch, of which torchmetrics would warn
        self.update(zeros_KK[0, :0], zeros_KK[0, :0])

    def update(self, predicted: Tensor, label: Tensor) -> None:
        self.counts += confusion_matrix(predicted, label, self.num_classes)

    def compute(self) -> Tensor:
        return self.counts


def confusion_matrix(predicted: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Counts pixels by label (rows) and prediction (columns); pixels labelled 255 are left out.

    Args:
        predicted: class ids 0..K-1, any integer dtype, any shape.
        label: class ids 0..K-1 or 255, same shape, any integer dtype.
        num_classes: K, at most 255.

    Returns:
        (K, K) int64 on the same device, exact for any number of pixels.

    Raises:
        ValueError: shapes differ, or an id lies outside 0..K-1.
    """
    if predicted.shape != label.shape:
        raise ValueError(f"predicted {tuple(predicted.shape)} and label {tuple(label.shape)} differ in shape")
    ignored = label == IGNORE
    _refuse_foreign(predicted, num_classes, "predicted")
    _refuse_foreign(label.masked_fill(ignored, 0), num_classes, "labelled")
    # memory traffic is what this costs: the cells of up to 15 classes fit into a byte
    narrow = next(
        dtype for dtype in (torch.uint8, torch.int16, torch.int32) if num_classes**2 <= torch.iinfo(dtype).max
    )
    cell = label.to(narrow) * num_classes + predicted.to(narrow)
    cell.masked_fill_(ignored, num_classes**2)
    counts = torch.bincount(cell.flatten(), minlength=num_classes**2 + 1)
    return counts[:-1].view(num_classes, num_classes)


def _refuse_foreign(ids: Tensor, num_classes: int, kind: str) -> None:
    if ids.numel() and (int(ids.max()) >= num_classes or int(ids.min()) < 0):
        raise ValueError(
            f"{kind} ids must lie in 0..{num_classes - 1}, found {int(ids.min())}..{int(ids.max())}"
        )
