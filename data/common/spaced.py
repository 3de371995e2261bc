"""A few of many."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of them, evenly spaced, from the first to the last."""
    steps = np.linspace(0, len(items) - 1, min(most, len(items)))
    return [items[round(step)] for step in steps]
