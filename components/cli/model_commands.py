"""`crossearth train` and the other commands that make, score and use models.

Only the standard library, typer and rich are imported here; each command imports its step when it runs.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

from crossearth.components.cli.mapping import MAPS_IN_FULL, opened, print_areas, tell, warn_of
from crossearth.components.cli.terminal import (
    AsCsv,
    AsJson,
    Catalogs,
    Grid,
    Jobs,
    ParamsFile,
    Recipe,
    Recipes,
    Seeds,
    ShardOption,
    done,
    err,
    given,
    out,
    parse_numbers,
    print_table,
    print_view,
    print_whole,
    recipe_names,
    seed_numbers,
)
from crossearth.components.runtime.places import EXPORT, MODELS, REGISTRY, REPORT, SCORES, WATCH, inputs

app = typer.Typer()
models_app = typer.Typer(help="The models that there are, here and in the registry.")
app.add_typer(models_app, name="models")
Model = Annotated[str, typer.Argument(help="Model folder, file, or models:/NAME@ALIAS of the registry.")]
Backbone = Annotated[Path | None, typer.Option(help="The model's shared backbone, where it was moved.")]
Bands = Annotated[
    str | None,
    typer.Option(help="Three bands in the network's order, e.g. 4,3,2 or red,green,blue (default: model's)."),
]
ValueRange = Annotated[
    str | None, typer.Option(help="Raw values that become 0 and 255, e.g. 0,3000 (default: the model's).")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
# where `train` writes, and where the documents put converted models
MODEL_FOLDERS = (MODELS, Path("models"))


@app.command()
def train(
    names: Recipes, params_file: ParamsFile = None, catalog: Catalogs = None, seeds: Seeds = None
) -> None:
    """Train the model of a recipe; the same command goes on after an interruption."""
    params, loaded = inputs(params_file, catalog)
    wanted = seed_numbers(seeds, params.seed)
    recipes = [loaded.recipe(name) for name in names]

    from crossearth.components.runtime.trial import METRIC, trial_values
    from crossearth.components.train.step import place, run
    from crossearth.model.weights.checkpoint import read_meta

    # a wrong number of the last is refused before the first is trained
    places = {recipe.name: [place(params, recipe, seed)[1] for seed in wanted] for recipe in recipes}
    option = f" --seeds {seeds}" if seeds else ""
    for recipe in recipes:
        folders = places[recipe.name]
        before = [_written_at(folder) for folder in folders]
        for seed in wanted:
            run(params, loaded, recipe.name, seed)
        if os.environ.get("RANK", "0") == "0":  # under torchrun the first process alone writes
            written = []
            for folder, time in zip(folders, before, strict=True):
                if time is None or time != _written_at(folder):
                    written.append(folder)
                else:
                    out.print(f"{folder}: nothing to do, trained already from these inputs")
            for folder in folders:
                _say_licence(folder)
            trial = trial_values()  # which is scored on its source alone: a target must not decide
            again = "" if trial else f"crossearth evaluate {recipe.name}{option}{given(catalog, params_file)}"
            done(written, again)
            for folder in folders if trial else []:
                typer.echo(f"{METRIC}={read_meta(folder)[METRIC]}")  # as Katib's collector reads it


def _written_at(folder: Path) -> int | None:
    """When the model in a folder was written, None where there is none."""
    description = folder / "model.json"
    return description.stat().st_mtime_ns if description.exists() else None


def _say_licence(model: Path) -> None:
    from crossearth.model.weights.checkpoint import read_meta

    if pretrained := read_meta(model).get("pretrained"):
        out.print(f"backbone {pretrained['name']}: licence {pretrained['licence']}")


@app.command()
def ablate(
    grid: Annotated[Path, typer.Argument(help="YAML: recipes, seeds, and the values that parameters take.")],
    jobs: Jobs = 1,
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
) -> None:
    """Train and score every combination of a grid; the same command goes on after an interruption."""
    from crossearth.components.ablate.step import run
    from crossearth.components.ablate.table import text_table

    written, outcome = run(*inputs(params_file, catalog), grid, jobs)
    print_whole(text_table(outcome, grid.stem))
    done(written, "crossearth show RECIPE; the runs lie below the table's in MLflow")


@app.command()
def tune(recipe: Recipe, grid: Grid, jobs: Jobs = 1, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """Train a recipe with every combination of a grid, as experiments of DVC, and say which is the best."""
    from crossearth.components.tune.step import failures, run, view
    from crossearth.data.common.errors import PartlyDoneError

    tuning = run(*inputs(None, None), recipe, grid, jobs)
    best = tuning.best
    if print_view(view(tuning), as_json, as_csv) and best:
        out.print(f"best: {best.trial.cell.label}")
        done([], f"dvc exp apply {best.name}")
    if errors := failures(tuning):
        raise PartlyDoneError(f"{len(errors)} of {len(tuning.trials)} trainings have no score", errors, [])


@app.command()
def evaluate(
    names: Recipes,
    model: Annotated[
        Path | None, typer.Option(help="Score this model, e.g. a converted one (default: the trained one).")
    ] = None,
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
    seeds: Seeds = None,
) -> None:
    """Score a recipe's model on the test split of all its targets."""
    from crossearth.data.common.errors import InputError

    params, loaded = inputs(params_file, catalog)
    recipes = [loaded.recipe(name) for name in names]
    if model and seeds:
        raise InputError("--model and --seeds", expected="one of them: a model has the seed it has")

    from crossearth.components.evaluate.step import run

    wanted = seed_numbers(seeds, params.seed)
    for recipe in recipes:
        written = [run(params, loaded, recipe.name, model, seed) for seed in wanted]
        if os.environ.get("RANK", "0") == "0":
            done(written, f"crossearth report{given(catalog, params_file)}")


@app.command()
def report(
    scores: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of results (default: artifacts/scores, with every seed in it)."),
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
    from crossearth.components.report.step import run

    written = run(*inputs(params_file, catalog), scores or (), against or (), require_all)
    following = "" if scores else f"crossearth show{given(catalog, params_file)}"
    done(written, following, look_at=written / "index.html")


@app.command()
def register(
    names: Annotated[list[str] | None, typer.Argument(help="Recipes (default: all that are scored).")] = None,
    model: Annotated[
        Path | None, typer.Option(help="The model that was scored, where `evaluate` was given one.")
    ] = None,
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
    seed: Annotated[int | None, typer.Option(help="Of the models (default: that of params.yaml).")] = None,
) -> None:
    """Put models into the registry; the rule decides which become champions."""
    params, loaded = inputs(params_file, catalog)
    for name in names or ():
        loaded.recipe(name)

    from crossearth.components.register.publish import publish
    from crossearth.components.register.step import run

    outcomes = run(params, loaded, names or (), model, seed)
    rows = [
        [each.name, each.version, f"{each.champion or 'none'}{' (this one)' if each.promoted else ''}"]
        for each in outcomes
    ]
    print_table("model registry", ["model", "version", "champion"], rows)
    for outcome in (each for each in outcomes if not each.promoted):
        title = f"{outcome.name}: why version {outcome.version} is not champion"
        rows = [
            [check.question, check.champion, check.challenger, "holds" if check.holds else "fails"]
            for check in outcome.checks
        ]
        print_table(title, ["the rule", "champion", "challenger", ""], rows)
    done(REGISTRY, f"crossearth predict SCENE.tif --model models:/{outcomes[0].name}@champion --out MAP.tif")
    again = shlex.join(["crossearth", *sys.argv[1:]])
    _tell(publish({outcome.name: outcome.version for outcome in outcomes}, again))


def _tell(hub_url: str) -> None:
    if hub_url:
        out.print(f"told: Kubeflow Hub at {hub_url}")


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe.", autocompletion=recipe_names)],
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
) -> None:
    """Make the champion before the present one champion again."""
    params, loaded = inputs(params_file, catalog)
    recipe = loaded.recipe(name)

    from crossearth.components.register import step
    from crossearth.components.register.publish import publish

    config = params.config(step.RegisterConfig, "register")
    before, now = step.rollback(recipe, config)
    out.print(f"{name}: version {now} is champion again, instead of {before}")
    again = f"crossearth register {name}{given(catalog, params_file)}"
    _tell(publish({f"{config.prefix}-{name}": now}, again))


@app.command()
def show(
    recipe: Annotated[
        str | None,
        typer.Argument(help="One recipe in full (default: all settings).", autocompletion=recipe_names),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the recipe (default: that of params.yaml).")] = None,
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Print the table of all settings, or the results of one recipe."""
    from crossearth.components.evaluate.results import read_results
    from crossearth.components.report import show as tables
    from crossearth.components.report.step import ReportConfig
    from crossearth.components.runtime.tracking import runs_told

    params, loaded = inputs(params_file, catalog)
    if recipe:
        found = read_results(SCORES / f"{loaded.recipe(recipe).name}{params.seed_suffix(seed)}")
        print_view(tables.run(found), as_json, as_csv)
        return
    replicates = params.config(ReportConfig, "report").replicates
    if not print_view(tables.benchmark([SCORES], loaded, replicates), as_json, as_csv):
        return
    if (REPORT / "index.html").exists():
        out.print(f"report: {REPORT / 'index.html'}")
    for line in runs_told():
        out.print(line)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of results, or of several results.")],
    b: Annotated[Path, typer.Argument(help="The other one.")],
    catalog: Catalogs = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Compare two sets of results setting by setting (paired bootstrap)."""
    from crossearth.components.report import compare, show

    _, loaded = inputs(None, catalog)
    print_view(show.comparison(compare.compare([a], [b], loaded), str(a), str(b)), as_json, as_csv)


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
    backbones: Annotated[
        Path | None, typer.Option(help="Store the backbone here, once for all models.")
    ] = None,
    catalog: Catalogs = None,
) -> None:
    """Turn a released checkpoint into safetensors and JSON; nothing in it is run."""
    from crossearth.components.convert import step
    from crossearth.data.catalog.domains import known_entry

    _, loaded = inputs(None, catalog)
    classes = None if class_set is None else known_entry(loaded.class_sets, class_set, "class set")
    config = step.ConvertConfig(backbone, image_px, backbones)
    written = step.convert(released, model, config, classes)
    done(written, f"crossearth predict SCENE.tif --model {written} --out MAP.tif")


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, catalog: Catalogs = None, as_json: AsJson = False) -> None:
    """List the models: classes, bands, metres per pixel, licence of the data, scores, size."""
    if context.invoked_subcommand:
        return
    from crossearth.components.register.listing import local_models, view
    from crossearth.components.register.registry import Registry, registry_exists
    from crossearth.data.common.errors import InputError

    _, loaded = inputs(None, catalog)
    found = list(local_models(MODEL_FOLDERS, SCORES, loaded))
    try:
        found += Registry().listed() if registry_exists() else []
    except InputError as error:  # the models that are here can be used without it
        err.print(f"note: {error}", style="yellow")
    if print_view(view(found), as_json, as_csv=False):
        shown = next((each.name for each in found if each.about), None)
        out.print(f"next: crossearth models show {shown}" if shown else "next: crossearth train RECIPE")


@models_app.command("show")
def models_show(
    model: Annotated[str, typer.Argument(help="A model's folder, a recipe, or models:/NAME@ALIAS.")],
    catalog: Catalogs = None,
) -> None:
    """Print a model's card and the commands that use it."""
    from crossearth.components.register.listing import local_card
    from crossearth.components.register.registry import MODELS as REGISTERED
    from crossearth.components.register.registry import Registry

    _, loaded = inputs(None, catalog)
    if model.startswith(REGISTERED):
        card, next_steps = Registry().card(model), [f"mlflow models serve -m {model} --env-manager local"]
    else:
        known = [folder / model for folder in MODEL_FOLDERS if (folder / model).is_dir()]
        model = str(next(iter(known), model) if not Path(model).exists() else model)
        card, next_steps = local_card(Path(model), SCORES, loaded)
    if out.is_terminal:
        out.print(Markdown(card), soft_wrap=False)
    else:
        typer.echo(card)
    for line in (
        f"crossearth predict SCENE.tif --model {model} --out MAP.tif",
        f"crossearth export {model} --format onnx",
        *next_steps,
    ):
        out.print(f"next: {line}")


@app.command()
def export(
    model: Model,
    format_: Annotated[str, typer.Option("--format", help="onnx or pt2 (for torch.export.load).")],
    file: Annotated[
        Path | None, typer.Option("--out", help="The file (default: artifacts/export/MODEL.FORMAT).")
    ] = None,
    backbone: Backbone = None,
    catalog: Catalogs = None,
) -> None:
    """Write a model as one file for other programs: ONNX (QGIS with Deepness), or a graph of torch."""
    from crossearth.components.export import step
    from crossearth.data.common.config import load_config

    _, loaded = inputs(None, catalog)
    config = load_config(step.ExportConfig, {"format": format_}, "export")
    name = _file_name(model)
    with opened(model) as (folder, shared):
        config = replace(config, backbone=backbone or shared)
        written = step.export(folder, name, file or EXPORT / f"{name}.{format_}", config, loaded)
    done(written, "")
    onnx = "QGIS's plugin Deepness, or onnxruntime.InferenceSession"
    out.print(f"for {onnx if format_ == 'onnx' else 'torch.export.load'}({str(written)!r})")


def _file_name(model: str) -> str:
    """What to call a file that is made of a model: the name of its folder, or of the registered model."""
    if model.startswith(("models:/", "runs:/")):
        return model.partition(":/")[2].replace("/", "-").replace("@", "-")
    path = Path(model).resolve()
    return path.name if path.is_dir() else path.parent.name


def _bands(text: str | None) -> list[float] | list[str] | None:
    """Numbers, or names."""
    parts = [part.strip() for part in (text or "").split(",")]
    return parts if text and any(part[:1].isalpha() for part in parts) else parse_numbers("--bands", text)


def _gsd(text: str) -> float | str:
    from crossearth.data.common.errors import InputError

    try:
        return text if text in ("auto", "native") else float(text)
    except ValueError as error:
        expected = "auto, native, or metres per px, for example 0.5"
        raise InputError(f"--gsd: {text!r}", expected=expected) from error


def _box(text: str | None) -> dict[str, object]:
    """Fields of the box: four numbers, and maybe the CRS behind them."""
    from crossearth.data.common.errors import InputError

    if text is None:
        return {}
    *sides, crs = text.split(",") if text.count(",") == 4 else (*text.split(","), "")
    bounds = parse_numbers("--bbox", ",".join(sides))
    if bounds is None or len(bounds) != 4:
        expected = "west,south,east,north in degrees, or with a CRS behind them: ...,EPSG:32633"
        raise InputError(f"--bbox: {text!r}", expected=expected)
    return {"bbox": bounds} | ({"bbox_crs": crs} if crs else {})


@app.command()
def predict(
    scenes: Annotated[
        list[str],
        typer.Argument(help="Rasters, folders, https:// or s3:// addresses, STAC items (.json)."),
    ],
    model: Annotated[str, typer.Option(help="Model folder, file, or models:/NAME@ALIAS of the registry.")],
    maps: Annotated[Path, typer.Option("--out", help="The map's file; for several scenes a folder.")],
    bands: Bands = None,
    value_range: ValueRange = None,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    device: Device = "auto",
    batch_size: Annotated[
        int | None, typer.Option(help="Windows per pass of the network (default: as many as it takes well).")
    ] = None,
    gsd: Annotated[
        str,
        typer.Option(help="Metres per px that the network sees: auto (the model's), native, or e.g. 0.5."),
    ] = "auto",
    tta: Annotated[
        str, typer.Option(help="none, or d4: mean of 8 flips and turns, 8 times as long.")
    ] = "none",
    bbox: Annotated[
        str | None,
        typer.Option(help="Map this box only: W,S,E,N in degrees, or W,S,E,N,EPSG:32633 in that CRS."),
    ] = None,
    aoi: Annotated[
        Path | None, typer.Option(help="Map the polygons of this vector file only, in any CRS.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes (and GPUs) that share a scene.")] = 1,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write each class's probability.")
    ] = False,
    confidence: Annotated[
        bool,
        typer.Option("--confidence", help="Also write confidence and entropy, and how sure the areas are."),
    ] = False,
    quick_look: Annotated[
        bool, typer.Option("--quick-look", help="Also write a page with the map over the image.")
    ] = False,
    vector: Annotated[
        Path | None,
        typer.Option(
            help="Also write polygons: MAP.gpkg, .geojson or .parquet; .gpkg alone: beside each map."
        ),
    ] = None,
    min_area: Annotated[float, typer.Option(help="Leave out polygons of fewer square metres.")] = 0,
    simplify: Annotated[
        float, typer.Option(help="Straighten outlines by up to so many pixels; common sides stay common.")
    ] = 0,
    classes: Annotated[
        str | None, typer.Option(help="Polygons of these classes alone, e.g. building,water.")
    ] = None,
    backbone: Backbone = None,
    shard: ShardOption = "0/1",
) -> None:
    """Map scenes of any size: Cloud Optimized GeoTIFF, preview and areas per class."""
    from crossearth.components.predict import step
    from crossearth.data.common.config import load_config
    from crossearth.data.common.errors import PartlyDoneError
    from crossearth.data.common.files import read_json
    from crossearth.data.common.shards import Shard

    options = {
        "bands": _bands(bands),
        "value_range": parse_numbers("--value-range", value_range),
        "precision": precision,
        "device": device,
        "batch_size": batch_size,
        "gsd": _gsd(gsd),
        "tta": tta,
        **_box(bbox),
        "aoi": aoi,
        "jobs": jobs,
        "probabilities": probabilities,
        "confidence": confidence,
        "quick_look": quick_look,
        "vector": vector,
        "min_area_m2": min_area,
        "simplify_px": simplify,
        "classes": None if classes is None else [name.strip() for name in classes.split(",")],
    }
    with opened(model) as (folder, shared):
        warn_of(folder)
        config = load_config(step.PredictConfig, options | {"backbone": backbone or shared}, "predict")
        try:
            written, broken = step.predict(scenes, folder, maps, config, shard=Shard.parse(shard)), None
        except PartlyDoneError as error:
            written, broken = error.done, error
    for number, path in enumerate(written):
        told = read_json(path.with_suffix(".json"))
        tell(told)
        if number < MAPS_IN_FULL:
            print_areas(path, told)
    done(written, "")
    out.print("areas per class: in the .json beside each map")
    if broken:
        raise broken


@app.command()
def watch(
    model: Model,
    scenes: Annotated[list[str], typer.Argument(help="Rasters, folders, or addresses, as of predict.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder of the page and the table.")] = WATCH,
    bands: Bands = None,
    value_range: ValueRange = None,
    gsd: Annotated[str, typer.Option(help="Metres per px that the network sees, as of predict.")] = "auto",
    windows: Annotated[int, typer.Option(help="Windows of a scene to look at, at most.")] = 64,
    device: Device = "auto",
    backbone: Backbone = None,
    fail: Annotated[bool, typer.Option(help="End with 1 where the scenes drift, for schedulers.")] = True,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Say whether new scenes are like what a model has seen: styles, bands, confidence."""
    from crossearth.components.watch import step
    from crossearth.data.common.config import load_config
    from crossearth.data.common.errors import PartlyDoneError

    options = {
        "bands": _bands(bands),
        "value_range": parse_numbers("--value-range", value_range),
        "gsd": _gsd(gsd),
        "windows": windows,
        "device": device,
    }
    with opened(model) as (model_dir, shared):
        config = load_config(step.WatchConfig, options | {"backbone": backbone or shared}, "watch")
        watched = step.watch(scenes, model_dir, folder, config)
    if print_view(step.view(watched), as_json, as_csv):
        done(list(watched.files), f"open {watched.files[-1]}")
    if watched.errors:
        looked = len(watched.scenes) + len(watched.errors)
        what = f"{len(watched.errors)} of {looked} scenes were not looked at"
        raise PartlyDoneError(what, watched.errors, watched.scenes)
    if watched.all.drifts and fail:
        err.print(f"drift: {watched.all.reason}", style="red")
        raise typer.Exit(1)
