"""The progress bar of work that goes item by item."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def shown(items: Iterable[Item], what: str, total: int) -> Iterable[Item]:
    """The items; meanwhile a bar on the standard error, where that is a terminal.

    Args:
        what: that is done, left of the bar.
        total: number of items.
    """
    quiet = not sys.stderr.isatty()
    return track(items, what, total=total, console=Console(stderr=True), transient=True, disable=quiet)
