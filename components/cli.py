"""`crossearth <step>`: arguments in, one call of the step, what was written and what to do next out.

Only the standard library, typer and rich are imported here; each command imports its step when it runs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from crossearth.components.params import Params
    from crossearth.data.catalog import Catalog

app = typer.Typer(
    name="crossearth",
    help="Domain-generalizable remote-sensing segmentation: train on one region, map regions never seen.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
styles_app = typer.Typer(no_args_is_help=True, help="Earth statistics of style: fit them, look at them.")
app.add_typer(styles_app, name="styles")

out = Console()
err = Console(stderr=True)

ARTIFACTS = Path("artifacts")

Catalogs = Annotated[
    list[Path] | None,
    typer.Option("--catalog", help="Further catalog file with your own domains and settings (repeatable)."),
]
ParamsFile = Annotated[
    Path | None, typer.Option("--params", help="Numbers of the steps [default: params.yaml if it is here].")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def data_dir() -> Path:
    """$CROSSEARTH_DATA, by default ./datasets."""
    return Path(os.environ.get("CROSSEARTH_DATA", "datasets"))


def _inputs(params_file: Path | None, catalogs: list[Path] | None) -> tuple[Params, Catalog]:
    from crossearth.components.params import load_params
    from crossearth.data.catalog import load_catalog

    params = load_params(params_file)
    return params, load_catalog([*params.catalogs, *(catalogs or [])], data_dir())


def _done(written: Path | list[Path], next_step: str) -> None:
    for path in written if isinstance(written, list) else [written]:
        out.print(f"wrote {path}", highlight=False, soft_wrap=True)
    if next_step:
        out.print(f"next: {next_step}", highlight=False, soft_wrap=True)


def _table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    # a pipe or a log has no width of its own: never cut a table there
    (out if out.is_terminal else Console(width=160)).print(table)


def _version(wanted: bool) -> None:
    if wanted:
        from crossearth.components.version import version_line

        typer.echo(version_line())
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Version, git revision and checkout.")
    ] = False,
) -> None:
    pass


@app.command()
def settings(catalog: Catalogs = None, as_json: AsJson = False) -> None:
    """The benchmark's settings: source, target, gap, class set, published score."""
    from dataclasses import asdict

    from crossearth.data.catalog import load_catalog

    loaded = load_catalog(catalog or [], data_dir())
    if as_json:
        typer.echo(json.dumps([asdict(setting) for setting in loaded.settings.values()], indent=2))
        return
    recipe_of = {setting.abbr: recipe.name for recipe in loaded.recipes().values() for setting in recipe.settings}
    rows = []
    for setting in loaded.settings.values():
        scores = {score.method: score.miou for score in loaded.published(setting.abbr)}
        rows.append(
            [
                setting.abbr,
                setting.source,
                setting.target,
                setting.gap,
                setting.class_set,
                recipe_of[setting.abbr],
                "" if scores.get("CrossEarth") is None else scores["CrossEarth"],
                setting.evidence,
            ]
        )
    _table(
        f"{len(rows)} settings, {len(loaded.recipes())} training recipes",
        ["setting", "source", "target", "gap", "class set", "recipe", "published mIoU", "evidence"],
        rows,
    )


@app.command()
def doctor(params_file: ParamsFile = None, as_json: AsJson = False) -> None:
    """Check Python, torch, devices, memory, disk, weights and the tracking server; says what to do."""
    from dataclasses import asdict

    from crossearth.components.doctor import examine
    from crossearth.components.params import load_params
    from crossearth.components.tracking import tracking_uri

    findings = examine(data_dir(), load_params(params_file).archives, tracking_uri())
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        rows = [[item.check, item.verdict, item.found, item.advice] for item in findings]
        _table("crossearth doctor", ["check", "verdict", "found", "what to do"], rows)
    if any(finding.verdict == "missing" for finding in findings):
        raise typer.Exit(1)


@app.command()
def domains(catalog: Catalogs = None, as_json: AsJson = False) -> None:
    """The domains: dataset, splits, bands, ground sample distance, classes, tiles of the paper, licence."""
    from dataclasses import asdict

    from crossearth.data.catalog import load_catalog

    loaded = load_catalog(catalog or [], data_dir())
    if as_json:
        typer.echo(json.dumps([asdict(domain) for domain in loaded.domains.values()], indent=2, default=str))
        return
    rows = [
        [
            domain.name,
            loaded.datasets[domain.dataset].title,
            ", ".join(domain.splits),
            ", ".join(domain.bands),
            domain.gsd_m or "",
            domain.class_set or "none (style source)",
            f"{domain.tile.px} {domain.tile.rule}",
            loaded.datasets[domain.dataset].licence,
        ]
        for domain in loaded.domains.values()
    ]
    _table(
        f"{len(rows)} domains",
        ["domain", "dataset", "splits", "bands", "metres per px", "classes", "tile px", "licence"],
        rows,
    )


@app.command()
def plan(params_file: ParamsFile = None, catalog: Catalogs = None) -> None:
    """Resolve catalog and params into one file per dataset and recipe (DVC hangs its stages on them)."""
    from crossearth.components.plan import plan as run

    params, loaded = _inputs(params_file, catalog)
    _done(run(loaded, params, ARTIFACTS / "plan"), "")


@app.command()
def synthesize(
    datasets: Annotated[list[str] | None, typer.Argument(help="Datasets [default: all].")] = None,
    params_file: ParamsFile = None,
) -> None:
    """Draw miniature archives of the datasets, packed as their publishers pack them."""
    from crossearth.components.synthesize import SynthesizeConfig
    from crossearth.components.synthesize import synthesize as run

    params, loaded = _inputs(params_file, None)
    config = params.config(SynthesizeConfig, "synthesize")
    written = run([loaded.dataset(name).name for name in datasets or loaded.datasets], params.archives, config, params.seed)
    _done(written, "crossearth ingest DATASET")


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="Domains or datasets.")],
    catalog: Catalogs = None,
) -> None:
    """Download what may be downloaded openly; says where to get the rest."""
    from crossearth.components.fetch import fetch as run

    _, loaded = _inputs(None, catalog)
    _done(run(names, loaded, data_dir() / "archives"), "crossearth ingest DATASET")


@app.command()
def ingest(
    names: Annotated[list[str], typer.Argument(help="Domains or datasets.")],
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
) -> None:
    """Cut archives or your own folders into checked tiles with a manifest."""
    from crossearth.components.ingest import IngestConfig
    from crossearth.components.ingest import ingest as run

    params, loaded = _inputs(params_file, catalog)
    written = run(names, loaded, params.archives, ARTIFACTS / "domains", params.config(IngestConfig, "ingest"))
    _done(written, "crossearth validate, or crossearth preview DOMAIN to look at the labels")


def main() -> None:
    """Entry point: exit 0 fine, 2 bad usage or input, 130 interrupted, 143 terminated, 1 anything else."""
    from crossearth.data.errors import InputError

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app(standalone_mode=True)
    except InputError as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
