"""Tables on a terminal of any width, and the same facts as CSV and JSON for programs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

BAR_CELLS = 20
UNBOUNDED = 10_000  # cells: wider than any table


@dataclass(frozen=True)
class View:
    """What a command found.

    Attributes:
        text: for a person at a terminal.
        rows: a flat table, for CSV.
        data: everything, for JSON.
    """

    text: RenderableType
    rows: Sequence[Mapping[str, Any]]
    data: Any


class TextTable:
    """A table that drops whole columns on a narrow terminal, before it cuts text.

    Where the terminal is too narrow, the columns of `spare` go, the first one first. If that is not enough,
    words are folded; numbers never are.
    """

    def __init__(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        title: str = "",
        numbers: Collection[str] = (),
        spare: Sequence[str] = (),
        sections: Collection[int] = (),
    ) -> None:
        """Describes the table.

        Args:
            columns: headings, all different.
            rows: a cell per column.
            numbers: columns that are aligned to the right.
            spare: columns that may go.
            sections: rows below which a line is drawn.
        """
        self.columns, self.rows, self.title = columns, rows, title
        self.numbers, self.spare, self.sections = numbers, spare, sections

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draws as many columns as fit."""
        kept = [name for name in self.columns if name or not options.ascii_only]  # bars are made of blocks
        for name in (*self.spare, None):
            table = self._table(kept)
            width = Measurement.get(console, options.update(max_width=UNBOUNDED), table).maximum
            if width <= options.max_width or name is None:
                yield table
                return
            if name in kept:
                kept.remove(name)

    def _table(self, kept: Sequence[str]) -> Table:
        table = Table(
            title=self.title or None,
            title_justify="left",
            header_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            show_edge=False,
        )
        for name in kept:
            justify: JustifyMethod = "right" if name in self.numbers else "left"
            table.add_column(name, justify=justify, no_wrap=name in self.numbers, overflow="fold")
        places = [self.columns.index(name) for name in kept]
        for number, row in enumerate(self.rows):
            # a cell is text, never markup: names may have brackets
            table.add_row(*(Text(str(row[place])) for place in places), end_section=number in self.sections)
        return table


def bar(share: float | None) -> str:
    """A share 0..1 as a bar of blocks."""
    return "" if share is None else "█" * round(BAR_CELLS * share)
