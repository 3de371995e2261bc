"""What the commands share: their options, and what is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table

out = Console()
err = Console(stderr=True)

Catalogs = Annotated[
    list[Path] | None,
    typer.Option("--catalog", help="Further catalog file with your own domains and settings (repeatable)."),
]
ParamsFile = Annotated[
    Path | None, typer.Option("--params", help="Numbers of the steps (default: params.yaml if it is here).")
]
ShardOption = Annotated[str, typer.Option(help="Only shard I of N, as I/N, counted from 0.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def done(written: Path | list[Path], next_step: str) -> None:
    """Says what was written and what to do next."""
    for path in written if isinstance(written, list) else [written]:
        line = f"wrote {path}" if path.exists() else f"{path} comes with the last of the other shards"
        out.print(line, highlight=False, soft_wrap=True)
    if next_step:
        out.print(f"next: {next_step}", highlight=False, soft_wrap=True)


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Prints rows under columns, long cells folded."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    print_whole(table)


def print_whole(renderable: RenderableType) -> None:
    """Prints as wide as the terminal is; a pipe or a log has no width of its own: nothing is cut there."""
    (out if out.is_terminal else Console(width=160)).print(renderable)


def parse_numbers(option: str, text: str | None) -> list[float] | None:
    """The numbers of an option, `3,2,1`; None where it was not given."""
    from crossearth.data.common.errors import InputError

    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option}: {text!r}", expected="numbers with commas between") from error
