"""`crossearth <step>`: arguments in, one call of the step, what was written and what to do next out."""

from __future__ import annotations

import io
import shlex
import signal
import sys
from typing import Annotated

import typer

from crossearth.components.cli import data_commands, model_commands
from crossearth.components.cli.help import describe
from crossearth.components.cli.terminal import AsCsv, AsJson, Catalogs, ParamsFile, done, err, print_view
from crossearth.components.runtime.places import data_dir, inputs
from crossearth.components.runtime.shell import quieten, refusals
from crossearth.components.runtime.tables import TextTable, View
from crossearth.components.steps import STEPS, Step, load

app = typer.Typer(
    name="crossearth",
    help="Domain-generalizable remote-sensing segmentation: train on one region, map regions never seen.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.add_typer(data_commands.app)
app.add_typer(model_commands.app)
GROUPS = {"": app, "styles": data_commands.styles_app}


def _add_command(step: Step) -> None:
    """The command of a step without options of its own, from its row."""
    group, _, name = (step.command or step.name).rpartition(" ")

    @GROUPS[group].command(name, help=step.about)
    def command(params_file: ParamsFile = None, catalog: Catalogs = None) -> None:
        done(load(step.function)(*inputs(params_file, catalog)), step.next_step)


for row in STEPS.values():
    if row.about:
        _add_command(row)


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
    quieten()


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
        err.print(f"error: {error}", style="red")
        sys.exit(1 if isinstance(error, PartlyDoneError) else 2)
    except ModuleNotFoundError as error:
        from crossearth.components.cli.extras import extra_of

        extra = extra_of(error.name or "")
        if extra is None:
            raise
        missing = InputError(
            f"this command needs {error.name}, which is not installed",
            next_step=f"pip install 'crossearth[{extra}]'",
        )
        err.print(f"error: {missing}", style="red")
        sys.exit(2)
    except SystemExit as stop:
        if stop.code in (130, 143):
            again = without_credentials(shlex.join(["crossearth", *sys.argv[1:]]))
            told = "a second run maps finished scenes again; go on" if "predict" in sys.argv[1:2] else "go on"
            err.print(f"stopped; {told} with: {again}")
        raise
    finally:
        sys.excepthook = print_uncaught  # typer has put its own there
