"""`crossearth <step>`: arguments in, one call of the step, what was written and what to do next out.

Only the standard library, typer and rich are imported here; each command imports its step when it runs.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.table import Table

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from crossearth.components.params import Params
    from crossearth.data.domains import Catalog

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
    Path | None, typer.Option("--params", help="Numbers of the steps (default: params.yaml if it is here).")
]
ShardOption = Annotated[str, typer.Option(help="Only shard I of N, as I/N, counted from 0.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def data_dir() -> Path:
    """$CROSSEARTH_DATA, by default ./datasets."""
    return Path(os.environ.get("CROSSEARTH_DATA", "datasets"))


def style_weights_dir() -> Path | None:
    """$CROSSEARTH_STYLE_WEIGHTS: folder of the released style networks, for the engine `ghiasi`."""
    folder = os.environ.get("CROSSEARTH_STYLE_WEIGHTS")
    return Path(folder) if folder else None


def _inputs(params_file: Path | None, catalogs: list[Path] | None) -> tuple[Params, Catalog]:
    from crossearth.components.params import load_params
    from crossearth.data.catalog import load_catalog

    params = load_params(params_file)
    return params, load_catalog([*params.catalogs, *(catalogs or [])], data_dir())


def _done(written: Path | list[Path], next_step: str) -> None:
    for path in written if isinstance(written, list) else [written]:
        line = f"wrote {path}" if path.exists() else f"{path} comes with the last of the other shards"
        out.print(line, highlight=False, soft_wrap=True)
    if next_step:
        out.print(f"next: {next_step}", highlight=False, soft_wrap=True)


def _table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    _print(table)


def _print(renderable: RenderableType) -> None:
    # a pipe or a log has no width of its own: never cut a table there
    (out if out.is_terminal else Console(width=160)).print(renderable)


def _version(wanted: bool) -> None:
    if wanted:
        from crossearth.components.version import version_line

        typer.echo(version_line())
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Version, revision, checkout."),
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
    recipe_of = {
        setting.abbr: recipe.name for recipe in loaded.recipes().values() for setting in recipe.settings
    }
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
    datasets: Annotated[list[str] | None, typer.Argument(help="Datasets (default: all).")] = None,
    params_file: ParamsFile = None,
) -> None:
    """Draw miniature archives of the datasets, packed as their publishers pack them."""
    from crossearth.components.synthesize import PACKERS, SynthesizeConfig
    from crossearth.components.synthesize import synthesize as run

    params, _ = _inputs(params_file, None)
    config = params.config(SynthesizeConfig, "synthesize")
    # a user's own datasets stand in the catalog too, and nobody can draw them
    _done(run(datasets or list(PACKERS), params.archives, config, params.seed), "crossearth ingest DATASET")


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="Domains or datasets.")],
    catalog: Catalogs = None,
) -> None:
    """Download what may be downloaded openly; says where to get the rest."""
    from crossearth.components.fetch import by_hand
    from crossearth.components.fetch import fetch as run

    _, loaded = _inputs(None, catalog)
    archives = data_dir() / "archives"
    rows = [
        [archive.file, archive.size_gb or "not published", archive.homepage, archive.licence, archive.folder]
        for archive in by_hand(names, loaded, archives)
    ]
    if rows:
        _table("to be fetched by hand", ["file", "GB", "page", "licence", "put it into"], rows)
    _done(run(names, loaded, archives), "crossearth ingest DATASET, with `archives` in params.yaml")


@app.command()
def ingest(
    names: Annotated[list[str], typer.Argument(help="Domains or datasets.")],
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
) -> None:
    """Cut archives or your own folders into checked tiles with a manifest."""
    from crossearth.components.ingest import IngestConfig
    from crossearth.components.ingest import ingest as run
    from crossearth.components.preview import log_preview

    params, loaded = _inputs(params_file, catalog)
    config = params.config(IngestConfig, "ingest")
    written = run(names, loaded, params.archives, ARTIFACTS / "domains", config)
    sheets = [
        log_preview(folder.name, loaded, ARTIFACTS / "domains", ARTIFACTS / "previews") for folder in written
    ]
    _done([*written, *sheets], "look at the sheets, then crossearth validate")


@app.command()
def validate(
    names: Annotated[list[str] | None, typer.Argument(help="Domains (default: all ingested).")] = None,
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
) -> None:
    """Hold every manifest against the catalog; stops the pipeline where labels or splits are wrong."""
    from crossearth.components.validate import validate as run
    from crossearth.data.validation import ValidateConfig

    params, loaded = _inputs(params_file, catalog)
    config = params.config(ValidateConfig, "validate")
    written = run(loaded, ARTIFACTS / "domains", ARTIFACTS / "validation", config, names or ())
    _done(written, f"open {written / 'docs' / 'index.html'}, or crossearth train RECIPE")


@app.command()
def preview(
    domain: Annotated[str, typer.Argument(help="An ingested domain.")],
    catalog: Catalogs = None,
) -> None:
    """Draw a sheet of tiles with their labels on top, to see that they align."""
    from crossearth.components.preview import preview as run

    _, loaded = _inputs(None, catalog)
    _done(run(domain, loaded, ARTIFACTS / "domains", ARTIFACTS / "previews"), "")


@styles_app.command("fit")
def styles_fit(
    images: Annotated[
        Path | None, typer.Argument(help="Folder of images or archives (default: Million-AID's archives).")
    ] = None,
    params_file: ParamsFile = None,
    shard: ShardOption = "0/1",
) -> None:
    """Fit the Earth's styles: mean and covariance of style embeddings over a corpus of images."""
    from crossearth.components.fit_styles import StylesConfig, fit_styles
    from crossearth.data.shards import Shard

    params, _ = _inputs(params_file, None)
    config = params.config(StylesConfig, "styles")
    images = images or params.archives / "million-aid"
    written = fit_styles(images, ARTIFACTS / "styles", config, style_weights_dir(), Shard.parse(shard))
    _done(written, "crossearth styles show TILE, or crossearth stylize DOMAIN")


@styles_app.command("coverage")
def styles_coverage(params_file: ParamsFile = None, catalog: Catalogs = None) -> None:
    """Measure, per setting, how far the injected styles cover the unseen domain."""
    from crossearth.components.fit_styles import STYLES_FILE
    from crossearth.components.style_coverage import style_coverage
    from crossearth.components.training_setup import TrainConfig

    params, loaded = _inputs(params_file, catalog)
    written = style_coverage(
        loaded,
        ARTIFACTS / "domains",
        ARTIFACTS / "styles" / STYLES_FILE,
        ARTIFACTS / "coverage",
        params.config(TrainConfig, "train").style,
        style_weights_dir(),
    )
    _done(written, "crossearth report shows it")


@styles_app.command("show")
def styles_show(
    image: Annotated[Path, typer.Argument(help="Any image file.")],
    sheet: Annotated[Path, typer.Option("--out", help="The sheet's PNG file.")] = Path("styles.png"),
    params_file: ParamsFile = None,
) -> None:
    """Draw an image, restyled versions of it, the masks and what is injected."""
    from crossearth.components.fit_styles import STYLES_FILE
    from crossearth.components.style_sheet import show_image
    from crossearth.components.stylize import StylizeConfig

    params, _ = _inputs(params_file, None)
    config = params.config(StylizeConfig, "stylize").style
    _done(show_image(image, ARTIFACTS / "styles" / STYLES_FILE, sheet, config, style_weights_dir()), "")


@app.command()
def stylize(
    names: Annotated[list[str], typer.Argument(help="Ingested domains.")],
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
    shard: ShardOption = "0/1",
) -> None:
    """Write restyled counterparts of a domain's training tiles as a dataset of its own."""
    from dataclasses import replace

    from crossearth.components.fit_styles import STYLES_FILE
    from crossearth.components.stylize import StylizeConfig
    from crossearth.components.stylize import stylize as run
    from crossearth.data.shards import Shard

    params, loaded = _inputs(params_file, catalog)
    config = replace(params.config(StylizeConfig, "stylize"), seed=params.seed)
    written = [
        run(
            name,
            loaded.domain_dir(ARTIFACTS / "domains", name).parent,
            ARTIFACTS / "styles" / STYLES_FILE,
            ARTIFACTS / "stylized",
            config,
            style_weights_dir(),
            Shard.parse(shard),
        )
        for name in names
    ]
    _done(written, "look at sheet.png in it")


@app.command()
def train(
    names: Annotated[list[str], typer.Argument(help="Recipes: `crossearth settings` names them.")],
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
    seed: Annotated[int | None, typer.Option(help="Another seed than that of params.yaml.")] = None,
) -> None:
    """Train the model of a recipe; the same command goes on after an interruption."""
    from crossearth.data.domains import Recipe

    params, loaded = _inputs(params_file, catalog)
    recipes: list[Recipe] = [loaded.recipe(name) for name in names]

    from dataclasses import replace

    from crossearth.components.fit_styles import STYLES_FILE
    from crossearth.components.train import train as run
    from crossearth.components.training_setup import TrainConfig

    configs = [params.config(TrainConfig, "train", recipe.name) for recipe in recipes]
    for recipe, config in zip(recipes, configs, strict=True):
        written = run(
            recipe,
            loaded,
            ARTIFACTS / "domains",
            ARTIFACTS / "models" / recipe.name,
            replace(config, seed=params.seed if seed is None else seed),
            ARTIFACTS / "styles" / STYLES_FILE,
            style_weights_dir(),
        )
        if os.environ.get("RANK", "0") == "0":  # under torchrun the first process alone writes
            _done(written, f"crossearth evaluate {recipe.name}")


@app.command()
def evaluate(
    names: Annotated[list[str], typer.Argument(help="Recipes: `crossearth settings` names them.")],
    model: Annotated[
        Path | None,
        typer.Option(help="Score this model, e.g. a converted one (default: the trained one)."),
    ] = None,
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
) -> None:
    """Score a recipe's model on the test split of all its targets."""
    params, loaded = _inputs(params_file, catalog)
    recipes = [loaded.recipe(name) for name in names]

    from crossearth.components.evaluate import EvaluateConfig
    from crossearth.components.evaluate import evaluate as run

    config = params.config(EvaluateConfig, "evaluate")
    for recipe in recipes:
        model_dir = model or ARTIFACTS / "models" / recipe.name
        written = run(
            recipe, loaded, ARTIFACTS / "domains", model_dir, ARTIFACTS / "scores" / recipe.name, config
        )
        _done(written, "crossearth report")


@app.command()
def report(
    scores: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of results, e.g. one per seed (default: artifacts/scores)."),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of other results: the page compares them (A) with these (B) (repeatable)."),
    ] = None,
    require_all: Annotated[
        bool, typer.Option("--require-all", help="Fail if a setting has no result.")
    ] = False,
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
) -> None:
    """Write scores.csv, scores.md and the self-contained page."""
    from dataclasses import replace

    from crossearth.components.report import ReportConfig
    from crossearth.components.report import report as run

    params, loaded = _inputs(params_file, catalog)
    config = params.config(ReportConfig, "report")
    written = run(
        scores or [ARTIFACTS / "scores"],
        loaded,
        ARTIFACTS / "report",
        replace(config, require_all=require_all or config.require_all),
        validation_dir=ARTIFACTS / "validation",
        styles_dir=ARTIFACTS / "styles",
        coverage_dir=ARTIFACTS / "coverage",
        against=against or (),
    )
    _done(written, f"open {written / 'index.html'}")


@app.command()
def register(
    names: Annotated[list[str] | None, typer.Argument(help="Recipes (default: all that are scored).")] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="The model that was scored, where `evaluate` was given one."),
    ] = None,
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
) -> None:
    """Put models into the registry; the rule decides which become champions."""
    params, loaded = _inputs(params_file, catalog)
    scored = [name for name in loaded.recipes() if (ARTIFACTS / "scores" / name).is_dir()]
    recipes = [loaded.recipe(name) for name in names or scored]

    from crossearth.components.promotion import RegisterConfig
    from crossearth.components.register import register as run
    from crossearth.data.errors import InputError

    if not recipes:
        raise InputError(
            "no scored recipes here", where=ARTIFACTS / "scores", next_step="crossearth evaluate"
        )
    config = params.config(RegisterConfig, "register")
    outcomes = run(
        recipes, loaded, ARTIFACTS / "models", ARTIFACTS / "scores", ARTIFACTS / "registry", config, model
    )
    _table(
        "model registry",
        ["model", "version", "champion"],
        [
            [
                outcome.name,
                outcome.version,
                f"{outcome.champion or 'none'}{' (this one)' if outcome.promoted else ''}",
            ]
            for outcome in outcomes
        ],
    )
    for outcome in outcomes:
        if not outcome.promoted:
            _table(
                f"{outcome.name}: why version {outcome.version} is not champion",
                ["the rule", "champion", "challenger", ""],
                [
                    [check.question, check.champion, check.challenger, "holds" if check.holds else "fails"]
                    for check in outcome.checks
                ],
            )
    _done(
        ARTIFACTS / "registry",
        f"crossearth predict SCENE.tif --model models:/{outcomes[0].name}@champion ...",
    )


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="A recipe.")],
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
) -> None:
    """Make the champion before the present one champion again."""
    params, loaded = _inputs(params_file, catalog)
    recipe = loaded.recipe(name)

    from crossearth.components.promotion import RegisterConfig
    from crossearth.components.register import rollback as run

    before, now = run(recipe, params.config(RegisterConfig, "register"))
    out.print(f"{name}: version {now} is champion again, instead of {before}", highlight=False)


@app.command()
def push(
    names: Annotated[list[str], typer.Argument(help="Ingested domains.")],
    store: Annotated[str, typer.Option(help="s3://bucket/prefix.")],
    catalog: Catalogs = None,
) -> None:
    """Mirror ingested domains to an S3 store, keyed by manifest digest."""
    from crossearth.data.store import StoreConfig
    from crossearth.data.store import push as run

    _, loaded = _inputs(None, catalog)
    for name in names:
        out.print(run(loaded.domain_dir(ARTIFACTS / "domains", name), StoreConfig(store)))


@app.command()
def pull(
    names: Annotated[list[str], typer.Argument(help="Domains.")],
    store: Annotated[str, typer.Option(help="s3://bucket/prefix.")],
    version: Annotated[str, typer.Option(help="Version that `push` printed.")] = "latest",
    catalog: Catalogs = None,
) -> None:
    """Get domains from an S3 store; only the files that differ here."""
    from crossearth.data.store import StoreConfig
    from crossearth.data.store import pull as run

    _, loaded = _inputs(None, catalog)
    for name in names:
        domain_dir = loaded.domain_dir(ARTIFACTS / "domains", name)
        out.print(run(name, StoreConfig(store), domain_dir.parent, version))


@app.command()
def show(
    recipe: Annotated[str | None, typer.Argument(help="One recipe in full (default: all settings).")] = None,
    catalog: Catalogs = None,
) -> None:
    """Print the table of all settings, or the results of one recipe."""
    from crossearth.components import show as tables
    from crossearth.components.results import read_results
    from crossearth.components.tracking import tracking_uri
    from crossearth.data.errors import without_credentials

    _, loaded = _inputs(None, catalog)
    if recipe:
        _print(tables.run(read_results(ARTIFACTS / "scores" / loaded.recipe(recipe).name)))
        return
    _print(tables.benchmark([ARTIFACTS / "scores"], loaded))
    if (ARTIFACTS / "report" / "index.html").exists():
        out.print(f"report: open {ARTIFACTS / 'report' / 'index.html'}", highlight=False, soft_wrap=True)
    address = without_credentials(tracking_uri())
    out.print(f"runs:   mlflow ui --backend-store-uri {address}", highlight=False, soft_wrap=True)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of results, or of several results.")],
    b: Annotated[Path, typer.Argument(help="The other one.")],
    catalog: Catalogs = None,
) -> None:
    """Compare two sets of results setting by setting (paired bootstrap)."""
    from crossearth.components import show as tables
    from crossearth.components.compare import compare as run

    _, loaded = _inputs(None, catalog)
    _print(tables.comparison(run([a], [b], loaded), str(a), str(b)))


@app.command()
def predict(
    scenes: Annotated[list[Path], typer.Argument(help="Rasters, or folders of rasters.")],
    model: Annotated[str, typer.Option(help="Model folder, file, or models:/NAME@ALIAS of the registry.")],
    maps: Annotated[Path, typer.Option("--out", help="The map's file; for several scenes a folder.")],
    bands: Annotated[
        str | None,
        typer.Option(help="Three band numbers in the network's order, e.g. 4,3,2."),
    ] = None,
    value_range: Annotated[
        str | None,
        typer.Option(help="Raw values that become 0 and 255, e.g. 0,3000."),
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Windows per pass of the network.")] = 1,
    probabilities: Annotated[bool, typer.Option(help="Also write each class's probability.")] = False,
    backbone: Annotated[
        Path | None, typer.Option(help="The model's shared backbone, where it was moved.")
    ] = None,
) -> None:
    """Map scenes of any size: Cloud Optimized GeoTIFF, preview and areas per class."""
    from contextlib import nullcontext

    from crossearth.components.predict import PredictConfig
    from crossearth.components.predict import predict as run
    from crossearth.data.config import load_config

    found: AbstractContextManager[tuple[Path, Path | None]] = nullcontext((Path(model), None))
    if model.startswith(("models:/", "runs:/")):
        from crossearth.components.registry import fetch_model

        found = fetch_model(model)
    given = {
        "bands": _numbers("--bands", bands),
        "value_range": _numbers("--value-range", value_range),
        "precision": precision,
        "device": device,
        "batch_size": batch_size,
        "probabilities": probabilities,
    }
    with found as (folder, shared):
        config = load_config(PredictConfig, given | {"backbone": backbone or shared}, "predict")
        written = run(scenes, folder, maps, config)
    _done(written, "open the maps in a GIS; areas stand in the .json beside them")


@app.command()
def convert(
    released: Annotated[Path, typer.Argument(help="The authors' checkpoint, *-source.pth.")],
    backbone: Annotated[
        str, typer.Option(help="dinov2_converted*.pth, DINOv2's own file, s3://..., or timm's hub name.")
    ],
    model: Annotated[Path, typer.Option("--out", help="Folder of the converted model.")],
    class_set: Annotated[
        str | None, typer.Option(help="Class set of the catalog (default: the checkpoint's own words).")
    ] = None,
    image_px: Annotated[
        int | None, typer.Option(help="Side of the training window (default: from the backbone).")
    ] = None,
    keep_training: Annotated[bool, typer.Option(help="Keep the modules that only training uses.")] = False,
    backbones: Annotated[
        Path | None, typer.Option(help="Store the backbone here, once for all models.")
    ] = None,
    catalog: Catalogs = None,
) -> None:
    """Turn a released checkpoint into safetensors and JSON; nothing in it is run."""
    from crossearth.components.convert import ConvertConfig
    from crossearth.components.convert import convert as run
    from crossearth.data.config import nearest
    from crossearth.data.errors import InputError

    _, loaded = _inputs(None, catalog)
    if class_set is not None and class_set not in loaded.class_sets:
        raise InputError(f"unknown class set {class_set!r}", expected=nearest(class_set, loaded.class_sets))
    config = ConvertConfig(backbone, image_px, keep_training, backbones)
    written = run(released, model, config, loaded.class_sets[class_set] if class_set else None)
    _done(written, f"crossearth predict SCENE.tif --model {written} --out MAP.tif")


def _numbers(option: str, text: str | None) -> list[float] | None:
    from crossearth.data.errors import InputError

    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option}: {text!r}", expected="numbers with commas between") from error


# what a disk or its owner refuses, and what may be done
REFUSALS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some disk, then run the command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder that you may write to"),
}


def main() -> None:
    """Entry point: exit 0 fine, 2 bad usage or input, 130 interrupted, 143 terminated, 1 anything else."""
    from crossearth.data.errors import InputError

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app(standalone_mode=True)
    except InputError as error:
        _refuse(error)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        _refuse(
            InputError(
                error.strerror or str(error),
                where=error.filename or Path.cwd(),
                next_step=REFUSALS[error.errno],
            )
        )
    except SystemExit as stop:
        if stop.code in (130, 143):
            again = shlex.join(["crossearth", *sys.argv[1:]])
            err.print(f"stopped; go on with: {again}", markup=False, highlight=False, soft_wrap=True)
        raise


def _refuse(error: ValueError) -> NoReturn:
    err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)
