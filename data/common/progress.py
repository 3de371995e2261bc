"""The progress of work that goes item by item: a bar on a terminal, now and then a line in a pod's log."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, track

Item = TypeVar("Item")
EVERY_S = 30.0


class LogLine:
    """A line on the standard error at most every 30 s, and one at the end: in a pod, which shows no bar."""

    def __init__(self, what: str, total: int, done: int = 0, wanted: bool = True) -> None:
        """Begins to count the time that is left for `what`.

        Args:
            total: number of items.
            done: number of them that an earlier try did.
            wanted: whether lines are printed at all.
        """
        self.what, self.total, self.first = what, total, done
        self.wanted = wanted and "KUBERNETES_SERVICE_HOST" in os.environ and not sys.stderr.isatty()
        self.began = self.told = time.monotonic()

    def update(self, done: int, words: str = "") -> None:
        """Prints the line, if it is time for it; `done` items are at least one more than at the beginning."""
        now = time.monotonic()
        if not self.wanted or (now - self.told < EVERY_S and done < self.total):
            return
        self.told = now
        left = timedelta(seconds=round((now - self.began) / (done - self.first) * (self.total - done)))
        parts = [f"{self.what} {done}/{self.total}", words, f"{left} left" if done < self.total else "done"]
        print(", ".join(part for part in parts if part), file=sys.stderr, flush=True)


def bar(*columns: ProgressColumn | str, wanted: bool = True, transient: bool = False) -> Progress:
    """A bar on the standard error, where that is a terminal.

    Args:
        columns: what stands right of the bar.
        wanted: whether this process shows it at all.
        transient: whether it goes when the work is done.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        console=Console(stderr=True),
        transient=transient,
        disable=not (wanted and sys.stderr.isatty()),
    )


def progress_bar(items: Iterable[Item], what: str, total: int) -> Iterable[Item]:
    """The items, `total` of them; meanwhile a bar on a terminal's standard error, or lines in a pod's log."""
    line = LogLine(what, total)
    if line.wanted:
        return _told(items, line)
    quiet = not sys.stderr.isatty()
    return track(items, what, total=total, console=Console(stderr=True), transient=True, disable=quiet)


def _told(items: Iterable[Item], line: LogLine) -> Iterator[Item]:
    for number, item in enumerate(items, start=1):
        yield item
        line.update(number)
