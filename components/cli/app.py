"""`crossearth <step>`: arguments in, one call of the step, what was written and what to do next out."""

from __future__ import annotations

import errno
import io
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from crossearth.components.cli import data_commands, model_commands
from crossearth.components.cli.help import describe
from crossearth.components.cli.terminal import AsCsv, AsJson, ParamsFile, err, print_view
from crossearth.components.runtime.places import data_dir
from crossearth.components.runtime.tables import TextTable, View

app = typer.Typer(
    name="crossearth",
    help="Domain-generalizable remote-sensing segmentation: train on one region, map regions never seen.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.add_typer(data_commands.app)
app.add_typer(model_commands.app)


def _version(wanted: bool) -> None:
    if wanted:
        from crossearth.components.runtime.version import version_line

        typer.echo(version_line())
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Version, revision, checkout."),
    ] = False,
) -> None:
    # of rasterio: much of the imagery is PNG and JPEG that has no place on the ground, and that is no news
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")


@app.command()
def doctor(params_file: ParamsFile = None, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """Check Python, torch, devices, memory, disk, weights and the tracking server; says what to do."""
    from dataclasses import asdict

    from crossearth.components.runtime.doctor import examine
    from crossearth.components.runtime.params import load_params
    from crossearth.components.runtime.tracking import tracking_uri

    findings = examine(data_dir(), load_params(params_file).archives, tracking_uri())
    facts = [asdict(finding) for finding in findings]
    columns = ("check", "verdict", "found", "what to do")
    table = TextTable(columns, [list(each.values()) for each in facts], title="crossearth doctor")
    print_view(View(table, facts, facts), as_json, as_csv)
    if any(finding.verdict == "missing" for finding in findings):
        raise typer.Exit(1)


# what a disk, its owner or what lies on it refuses, and what may be done
REFUSALS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some disk, then run the command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder that you may write to"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
        "a file lies where a folder should, or a folder where a file should: move it away",
    ),
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def refusals() -> Iterator[None]:
    """Around a command: what a disk or its owner refuses becomes InputError."""
    from crossearth.data.common.errors import InputError

    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise InputError(
            error.strerror or str(error),
            where=error.filename2 or error.filename or Path.cwd(),
            next_step=REFUSALS[error.errno],
        ) from error


def main() -> None:
    """Entry point: exit 0 fine, 2 bad usage or input, 130 interrupted, 143 terminated, 1 anything else."""
    from crossearth.data.common.errors import InputError, PartlyDoneError, print_uncaught, without_credentials

    for stream in (sys.stdout, sys.stderr):
        # a terminal or a log that has no letter for a name must not end what has been done
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with refusals():
            describe(app)
            app(standalone_mode=True)
    except (InputError, PartlyDoneError) as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1 if isinstance(error, PartlyDoneError) else 2)
    except SystemExit as stop:
        if stop.code in (130, 143):
            again = without_credentials(shlex.join(["crossearth", *sys.argv[1:]]))
            err.print(f"stopped; go on with: {again}", markup=False, highlight=False, soft_wrap=True)
        raise
    finally:
        sys.excepthook = print_uncaught  # typer has put its own there
