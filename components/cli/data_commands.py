"""`crossearth ingest` and the other commands that make data: catalog, domains, styles, store.

Only the standard library, typer and rich are imported here; each command imports its step when it runs.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from crossearth.components.cli.catalog_views import domains_view, settings_view
from crossearth.components.cli.terminal import (
    AsCsv,
    AsJson,
    Catalogs,
    ParamsFile,
    ShardOption,
    done,
    given,
    out,
    parse_numbers,
    print_table,
    print_view,
)
from crossearth.components.runtime.places import DOMAINS, EARTH_STYLES, PREVIEWS, data_dir, inputs

app = typer.Typer()
DomainsOrDatasets = Annotated[
    list[str],
    typer.Argument(help="Domains, or datasets: all their domains, also where one has the dataset's name."),
]
styles_app = typer.Typer(no_args_is_help=True, help="Earth statistics of style: fit them, look at them.")
app.add_typer(styles_app, name="styles")


@app.command()
def settings(catalog: Catalogs = None, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """The benchmark's settings and yours: source, target, gap, recipe, published scores."""
    print_view(settings_view(inputs(None, catalog)[1]), as_json, as_csv)


@app.command()
def domains(catalog: Catalogs = None, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """The domains: dataset, splits, bands, ground sample distance, classes, tiles, licence."""
    print_view(domains_view(inputs(None, catalog)[1]), as_json, as_csv)


@app.command()
def plan(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Recipes: print their parameters and where each comes from; write nothing."),
    ] = None,
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
) -> None:
    """Resolve catalog and params into one file per dataset and recipe (DVC hangs its stages on them).

    The number of threads (OMP_NUM_THREADS) is no part of them: it changes the last digits of the weights.
    """
    from crossearth.components.plan.step import parameters, run

    params, loaded = inputs(params_file, catalog)
    for recipe in [loaded.recipe(name).name for name in names or ()]:
        rows = [[name, json.dumps(value), origin] for name, value, origin in parameters(params, recipe)]
        print_table(f"{recipe}, preset {params.preset}", ["parameter", "value", "from"], rows)
    if not names:
        done(run(params, loaded), "")


@app.command()
def synthesize(
    datasets: Annotated[list[str] | None, typer.Argument(help="Datasets (default: all).")] = None,
    params_file: ParamsFile = None,
) -> None:
    """Draw miniature archives of the datasets, packed as their publishers pack them."""
    from crossearth.components.synthesize.step import run

    params, _ = inputs(params_file, None)
    done(run(params, datasets or ()), "crossearth ingest DATASET")


@app.command()
def init(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of images and labels, searched with all in it.")
    ] = None,
    benchmark: Annotated[
        Path | None, typer.Option(help="Write the benchmark's params.yaml and dvc.yaml into this folder.")
    ] = None,
) -> None:
    """Look at your own images and labels; write a catalog and a params.yaml that fit them."""
    from crossearth.components.init.benchmark import write_benchmark
    from crossearth.data.common.errors import InputError

    if (folder is None) == (benchmark is None):
        raise InputError("init", expected="a folder of images, or --benchmark FOLDER")
    if benchmark is not None:
        there = "" if benchmark.resolve() == Path.cwd() else f"cd {shlex.quote(str(benchmark))} && "
        done(write_benchmark(benchmark), f"{there}dvc init --no-scm && dvc repro")
    if folder is not None:
        from crossearth.components.init.step import init as run

        written = run(folder, data_dir(), Path())
        for line in written.lines:
            out.print(line)
        done(written.files, f"crossearth ingest {written.name} --check 8{written.options}")


@app.command()
def fetch(names: DomainsOrDatasets, catalog: Catalogs = None) -> None:
    """Download what may be downloaded openly; says where to get the rest."""
    from crossearth.components.ingest.fetch import by_hand, fetch, to_download

    _, loaded = inputs(None, catalog)
    archives = data_dir() / "archives"
    rows: list[list[object]] = []
    for dataset, archive in by_hand(names, loaded):
        size = archive.download_gb or archive.unpacked_gb or "not published"
        rows.append([archive.name, size, dataset.homepage, dataset.licence, archives / dataset.name])
    if rows:
        print_table("to be fetched by hand", ["file", "GB", "page", "licence", "put it into"], rows)
    for line in to_download(names, loaded, archives):
        out.print(line)
    written = fetch(names, loaded, archives)
    done(written, f"crossearth ingest {shlex.join(names)}{given(catalog)}")
    if rows or written:
        out.print(f"      with `archives: {archives}` in params.yaml")


@app.command()
def ingest(
    names: DomainsOrDatasets,
    check: Annotated[
        int | None,
        typer.Option(min=1, help="Ingest nothing: draw this many images, each with its labels on top."),
    ] = None,
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
) -> None:
    """Cut archives or your own folders into checked tiles with a manifest."""
    from crossearth.components.ingest.step import run

    params, loaded = inputs(params_file, catalog)
    if check is None:
        done(run(params, loaded, names), f"crossearth validate{given(catalog, params_file)}")
        return
    from crossearth.components.ingest.check import run as check_labels

    again = f"crossearth ingest {shlex.join(names)}{given(catalog, params_file)}"
    done(check_labels(params, loaded, names, check), again)


@app.command()
def validate(
    names: Annotated[
        list[str] | None, typer.Argument(help="Domains to add to those validated (default: all ingested).")
    ] = None,
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
) -> None:
    """Hold every manifest against the catalog; stops the pipeline where labels or splits are wrong."""
    from crossearth.components.validate.step import SUMMARY, run
    from crossearth.data.common.files import read_json

    params, loaded = inputs(params_file, catalog)
    written = run(params, loaded, names or ())
    counts = read_json(written / SUMMARY)["counts"]
    out.print(
        f"{counts['domains']} domains, {counts['tiles']:,} tiles: all {counts['checks'] - counts['failed']} "
        "expectations hold" + (f", {counts['failed']} of earlier domains do not" if counts["failed"] else "")
    )
    own = [recipe.name for recipe in loaded.recipes().values() if loaded.domain(recipe.source).own]
    train = f"crossearth train {shlex.join(own) if own else 'RECIPE'}{given(catalog, params_file)}"
    done(written, train, look_at=written / "docs" / "index.html")


@app.command()
def preview(
    domain: Annotated[str, typer.Argument(help="An ingested domain.")], catalog: Catalogs = None
) -> None:
    """Draw a sheet of tiles with their labels on top, to see that they align."""
    from crossearth.components.ingest.preview import preview

    _, loaded = inputs(None, catalog)
    done(preview(domain, loaded, DOMAINS, PREVIEWS), "")


@app.command()
def push(
    names: Annotated[list[str], typer.Argument(help="Ingested domains.")],
    store: Annotated[str, typer.Option(help="s3://bucket/prefix.")],
    catalog: Catalogs = None,
) -> None:
    """Mirror ingested domains to an S3 store, keyed by manifest digest."""
    from crossearth.data.tiles.store import StoreConfig, push

    _, loaded = inputs(None, catalog)
    for name in names:
        out.print(push(loaded.domain_dir(DOMAINS, name), StoreConfig(store)))


@app.command()
def pull(
    names: Annotated[list[str], typer.Argument(help="Domains.")],
    store: Annotated[str, typer.Option(help="s3://bucket/prefix.")],
    version: Annotated[str, typer.Option(help="Version that `push` printed.")] = "latest",
    catalog: Catalogs = None,
) -> None:
    """Get domains from an S3 store; only the files that differ here."""
    from crossearth.data.tiles.store import StoreConfig, pull

    _, loaded = inputs(None, catalog)
    for name in names:
        out.print(pull(name, StoreConfig(store), loaded.domain_dir(DOMAINS, name).parent, version))


@styles_app.command("fit")
def styles_fit(
    images: Annotated[
        Path | None, typer.Argument(help="Folder of images or archives (default: that of `corpus`).")
    ] = None,
    value_range: Annotated[
        str | None,
        typer.Option(help="Values that become 0 and 255 in images of more than 8 bits, e.g. 0,3000."),
    ] = None,
    params_file: ParamsFile = None,
    shard: ShardOption = "0/1",
) -> None:
    """Fit the Earth's styles: mean and covariance of style embeddings over a corpus of images."""
    from crossearth.components.styles.step import run

    params, _ = inputs(params_file, None)
    written = run(params, images, parse_numbers("--value-range", value_range), shard)
    done(written, "crossearth styles show IMAGE", look_at=written / "sheet.png")


@styles_app.command("show")
def styles_show(
    image: Annotated[Path, typer.Argument(help="Any image file.")],
    sheet: Annotated[Path, typer.Option("--out", help="The sheet's PNG file.")] = Path("styles.png"),
    params_file: ParamsFile = None,
) -> None:
    """Draw an image, restyled versions of it, the masks and what is injected."""
    from crossearth.components.styles.sheet import show_image
    from crossearth.components.stylize.step import StylizeConfig

    params, _ = inputs(params_file, None)
    config = params.config(StylizeConfig, "stylize").style
    done(show_image(image, EARTH_STYLES, sheet, config), "")


@app.command()
def stylize(
    names: Annotated[list[str], typer.Argument(help="Ingested domains.")],
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
    shard: ShardOption = "0/1",
) -> None:
    """Write restyled counterparts of a domain's training tiles as a dataset of its own."""
    from crossearth.components.stylize.step import run

    params, loaded = inputs(params_file, catalog)
    for name in names:
        written = run(params, loaded, name, shard)
        done(written, "", look_at=written / "sheet.png")
