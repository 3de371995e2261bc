"""What the commands share: their options, and what is printed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from crossearth.components.runtime.tables import UNBOUNDED, TextTable, View

# lines as they are: names may have brackets, and what is to be pasted must not be broken
out = Console(markup=False, highlight=False, soft_wrap=True)
err = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


def recipe_names(incomplete: str) -> list[str]:
    """Recipes that a shell offers; none where the files of this folder cannot be read."""
    from crossearth.components.runtime.places import inputs
    from crossearth.data.common.errors import InputError

    try:
        return [name for name in inputs(None, None)[1].recipes() if name.startswith(incomplete)]
    except (InputError, OSError):
        return []


Recipes = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE", help="Recipes: `crossearth settings` names them.", autocompletion=recipe_names
    ),
]

Catalogs = Annotated[
    list[Path] | None,
    typer.Option(
        "--catalog",
        metavar="FILE",
        help="Further catalog file with your own domains and settings (repeatable).",
    ),
]
ParamsFile = Annotated[
    Path | None,
    typer.Option(
        "--params", metavar="FILE", help="Parameters of the steps (default: params.yaml if it is here)."
    ),
]
Recipe = Annotated[str, typer.Argument(help="`crossearth settings` names them.", autocompletion=recipe_names)]
Grid = Annotated[Path, typer.Option("--grid", metavar="FILE", help="YAML: the values that parameters take.")]
Jobs = Annotated[int, typer.Option(min=1, help="Trainings at a time.")]
ShardOption = Annotated[str, typer.Option(metavar="I/N", help="Only shard I of N, counted from 0.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON instead of tables.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV instead of tables; scores as fractions.")]


def done(written: Path | list[Path], next_step: str, look_at: Path | None = None) -> None:
    """Says what was written, what of it to look at, and the command that comes next, to be pasted."""
    for path in written if isinstance(written, list) else [written]:
        line = f"wrote {path}" if path.exists() else f"{path} comes with the last of the other shards"
        out.print(line)
    if look_at and look_at.exists():
        out.print(f"look: {look_at}")
    if next_step:
        out.print(f"next: {next_step}")


def given(catalogs: list[Path] | None, params_file: Path | None = None) -> str:
    """The options of a command that the next one needs, too, as they are typed."""
    words = [word for path in catalogs or () for word in ("--catalog", str(path))]
    words += ["--params", str(params_file)] if params_file else []
    return f" {shlex.join(words)}" if words else ""


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    numbers: Collection[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Prints rows under columns, as `TextTable` describes them."""
    print_whole(TextTable(columns, rows, title=title, numbers=numbers, spare=spare))


def print_whole(renderable: RenderableType) -> None:
    """Prints as wide as the terminal is; a pipe or a log has no width of its own: nothing is cut there."""
    (out if out.is_terminal else Console(width=UNBOUNDED)).print(renderable, soft_wrap=False)


def print_view(view: View, as_json: bool, as_csv: bool) -> bool:
    """Prints a view for a person or, if asked for, for a program.

    Returns:
        Whether it was for a person: more may then be said.

    Raises:
        InputError: both formats are wanted.
    """
    from crossearth.data.common.errors import InputError
    from crossearth.data.common.files import csv_text

    if as_json and as_csv:
        raise InputError("--json and --csv", expected="one of them")
    if as_json:
        typer.echo(json.dumps(view.data, indent=2, default=str, allow_nan=False))
    elif as_csv:
        typer.echo(csv_text(view.rows), nl=False)
    else:
        print_whole(view.text)
    return not (as_json or as_csv)


Seeds = Annotated[
    str | None,
    typer.Option(
        "--seeds",
        "--seed",
        metavar="0,1,2",
        help="Other seeds than that of params.yaml, side by side: RECIPE@seed1 and so on.",
    ),
]


def seed_numbers(text: str | None, usual: int) -> list[int]:
    """The seeds of an option, `0,1,2`; the usual one where it was not given.

    Raises:
        InputError: not a list of seeds, or one twice.
    """
    from crossearth.components.runtime.params import MAX_SEED
    from crossearth.data.common.errors import InputError

    parts = [str(usual)] if text is None else [part.strip() for part in text.split(",")]
    fine = [int(part) for part in parts if re.fullmatch("[0-9]{1,19}", part) and int(part) <= MAX_SEED]
    if len(set(fine)) != len(parts):
        raise InputError(
            f"--seeds: {text!r}", expected=f"different whole numbers from 0 to {MAX_SEED}, commas between"
        )
    return fine


def parse_numbers(option: str, text: str | None) -> list[float] | None:
    """The numbers of an option, `3,2,1`; None where it was not given."""
    from crossearth.data.common.errors import InputError

    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option}: {text!r}", expected="numbers with commas between") from error
