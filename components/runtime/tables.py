"""Tables on a terminal of any width, and the same facts as CSV and JSON for programs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
from rich.measure import Measurement, measure_renderables
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


@dataclass(frozen=True)
class TextTable:
    """A table that drops whole columns on a narrow terminal, before it cuts text.

    Where the terminal is too narrow, the columns of `spare` go, the first one first. Where the rest would
    not fit on a line either, cells are folded between words, and inside of them if nothing else is left;
    numbers never are.

    Attributes:
        columns: headings, all different.
        rows: a cell per column.
        numbers: columns that are aligned to the right.
        spare: columns that may go.
        sections: rows below which a line is drawn.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    _: KW_ONLY
    title: str = ""
    numbers: Collection[str] = ()
    spare: Sequence[str] = ()
    sections: Collection[int] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draws as many columns as fit: each cell on a line, else no word broken, else what is left."""
        kept = [name for name in self.columns if name or not options.ascii_only]  # bars are made of blocks
        choices = [kept]
        for spare in self.spare:
            choices.append([name for name in choices[-1] if name != spare])
        tables = [self._table(each) for each in choices]
        unbounded = options.update(max_width=UNBOUNDED)
        widths = [Measurement.get(console, unbounded, table) for table in tables]
        for table, width in zip(tables, widths, strict=True):
            if width.maximum <= options.max_width:
                yield table
                return
        for table, width in zip(tables, widths, strict=True):
            if width.minimum <= options.max_width:
                _widen(table, options.max_width - width.minimum, console, unbounded)
                yield table
                return
        yield self._table(choices[-1], break_words=True)

    def _table(self, kept: Sequence[str], break_words: bool = False) -> Table:
        table = Table(
            title=self.title or None,
            title_justify="left",
            header_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            show_edge=False,
        )
        for name in kept:
            cells = [name, *(str(row[self.columns.index(name)]) for row in self.rows)]
            is_number = name in self.numbers
            whole = is_number or not (break_words or any(" " in cell for cell in cells[1:]))
            justify: JustifyMethod = "right" if is_number else "left"
            least = max(map(cell_len, cells)) if whole else None
            table.add_column(name, justify=justify, no_wrap=whole, min_width=least, overflow="fold")
        places = [self.columns.index(name) for name in kept]
        for position, row in enumerate(self.rows):
            # a cell is text, never markup: names may have brackets
            table.add_row(*(Text(str(row[place])) for place in places), end_section=position in self.sections)
        return table


def _widen(table: Table, room: int, console: Console, options: ConsoleOptions) -> None:
    """Gives each folded column its longest word and, of `room` cells, a share by what it lacks to a line."""
    folded = [column for column in table.columns if not column.no_wrap]
    cells = [[Text(str(column.header)), *column.cells] for column in folded]
    needs = [measure_renderables(console, options, each) for each in cells]
    lacking = sum(need.span for need in needs)
    for column, need in zip(folded, needs, strict=True):
        column.width = need.minimum + room * need.span // lacking


def bar(share: float | None) -> str:
    """A share 0..1 as a bar of blocks."""
    return "" if share is None else "█" * round(BAR_CELLS * share)
