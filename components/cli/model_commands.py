"""`crossearth train` and the other commands that make, score and use models.

Only the standard library, typer and rich are imported here; each command imports its step when it runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markdown import Markdown

from crossearth.components.cli.terminal import (
    Catalogs,
    ParamsFile,
    done,
    given,
    out,
    parse_numbers,
    print_table,
    print_whole,
)
from crossearth.components.runtime.places import REGISTRY, REPORT, SCORES, inputs

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

app = typer.Typer()


@app.command()
def train(
    names: Annotated[list[str], typer.Argument(help="Recipes: `crossearth settings` names them.")],
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
    seed: Annotated[int | None, typer.Option(help="Another seed than that of params.yaml.")] = None,
) -> None:
    """Train the model of a recipe; the same command goes on after an interruption."""
    params, loaded = inputs(params_file, catalog)
    recipes = [loaded.recipe(name) for name in names]

    from crossearth.components.train.step import config_of, run

    for recipe in recipes:  # a wrong number of the last is refused before the first is trained
        config_of(params, recipe, seed)
    for recipe in recipes:
        written = run(params, loaded, recipe.name, seed)
        if os.environ.get("RANK", "0") == "0":  # under torchrun the first process alone writes
            _say_licence(written)
            done(written, f"crossearth evaluate {recipe.name}{given(catalog, params_file)}")


def _say_licence(model: Path) -> None:
    from crossearth.model.weights.checkpoint import read_meta

    pretrained = read_meta(model).get("pretrained")
    if pretrained:
        line = f"backbone {pretrained['name']}: licence {pretrained['licence']}"
        out.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command()
def ablate(
    grid: Annotated[Path, typer.Argument(help="YAML: recipes, seeds, and the values that numbers take.")],
    jobs: Annotated[int, typer.Option(help="Trainings at a time.")] = 1,
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
) -> None:
    """Train and score every combination of a grid; the same command goes on after an interruption."""
    from crossearth.components.ablate.step import run

    written = run(*inputs(params_file, catalog), grid, jobs)
    print_whole(Markdown(written.read_text(encoding="utf-8")))
    done(written, "crossearth show RECIPE; the runs lie below the table's in MLflow")


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
    params, loaded = inputs(params_file, catalog)
    recipes = [loaded.recipe(name) for name in names]

    from crossearth.components.evaluate.step import run

    for recipe in recipes:
        written = run(params, loaded, recipe.name, model)
        if os.environ.get("RANK", "0") == "0":
            done(written, f"crossearth report{given(catalog, params_file)}")


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
    from crossearth.components.report.step import run

    written = run(*inputs(params_file, catalog), scores or (), against or (), require_all)
    done(written, f"open {written / 'index.html'}")


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
    params, loaded = inputs(params_file, catalog)
    for name in names or ():
        loaded.recipe(name)

    from crossearth.components.register.step import run

    outcomes = run(params, loaded, names or (), model)
    print_table(
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
            print_table(
                f"{outcome.name}: why version {outcome.version} is not champion",
                ["the rule", "champion", "challenger", ""],
                [
                    [check.question, check.champion, check.challenger, "holds" if check.holds else "fails"]
                    for check in outcome.checks
                ],
            )
    done(
        REGISTRY,
        f"crossearth predict SCENE.tif --model models:/{outcomes[0].name}@champion ...",
    )


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="A recipe.")],
    params_file: ParamsFile = None,
    catalog: Catalogs = None,
) -> None:
    """Make the champion before the present one champion again."""
    params, loaded = inputs(params_file, catalog)
    recipe = loaded.recipe(name)

    from crossearth.components.register.promotion import RegisterConfig
    from crossearth.components.register.step import rollback as run

    before, now = run(recipe, params.config(RegisterConfig, "register"))
    out.print(f"{name}: version {now} is champion again, instead of {before}", highlight=False)


@app.command()
def show(
    recipe: Annotated[str | None, typer.Argument(help="One recipe in full (default: all settings).")] = None,
    catalog: Catalogs = None,
) -> None:
    """Print the table of all settings, or the results of one recipe."""
    from crossearth.components.evaluate.results import read_results
    from crossearth.components.report import show as tables
    from crossearth.components.runtime.tracking import tracking_uri
    from crossearth.data.common.errors import without_credentials

    _, loaded = inputs(None, catalog)
    if recipe:
        print_whole(tables.run(read_results(SCORES / loaded.recipe(recipe).name)))
        return
    print_whole(tables.benchmark([SCORES], loaded))
    if (REPORT / "index.html").exists():
        out.print(f"report: open {REPORT / 'index.html'}", highlight=False, soft_wrap=True)
    address = without_credentials(tracking_uri())
    runs = address if address.startswith("http") else f"mlflow ui --backend-store-uri {address}"
    out.print(f"runs:   {runs}", highlight=False, soft_wrap=True)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of results, or of several results.")],
    b: Annotated[Path, typer.Argument(help="The other one.")],
    catalog: Catalogs = None,
) -> None:
    """Compare two sets of results setting by setting (paired bootstrap)."""
    from crossearth.components.report import show as tables
    from crossearth.components.report.compare import compare as run

    _, loaded = inputs(None, catalog)
    print_whole(tables.comparison(run([a], [b], loaded), str(a), str(b)))


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
    from crossearth.components.convert.step import ConvertConfig
    from crossearth.components.convert.step import convert as run
    from crossearth.data.common.config import nearest
    from crossearth.data.common.errors import InputError

    _, loaded = inputs(None, catalog)
    if class_set is not None and class_set not in loaded.class_sets:
        raise InputError(f"unknown class set {class_set!r}", expected=nearest(class_set, loaded.class_sets))
    config = ConvertConfig(backbone, image_px, keep_training, backbones)
    written = run(released, model, config, loaded.class_sets[class_set] if class_set else None)
    done(written, f"crossearth predict SCENE.tif --model {written} --out MAP.tif")


@app.command()
def predict(
    scenes: Annotated[list[Path], typer.Argument(help="Rasters, or folders, searched recursively.")],
    model: Annotated[str, typer.Option(help="Model folder, file, or models:/NAME@ALIAS of the registry.")],
    maps: Annotated[Path, typer.Option("--out", help="The map's file; for several scenes a folder.")],
    bands: Annotated[
        str | None,
        typer.Option(help="Three band numbers in the network's order, e.g. 4,3,2 (default: the model's)."),
    ] = None,
    value_range: Annotated[
        str | None,
        typer.Option(help="Raw values that become 0 and 255, e.g. 0,3000 (default: the model's)."),
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

    from crossearth.components.predict.step import PredictConfig
    from crossearth.components.predict.step import predict as run
    from crossearth.data.common.config import load_config
    from crossearth.data.common.errors import PartlyDoneError
    from crossearth.data.common.files import read_json

    found: AbstractContextManager[tuple[Path, Path | None]] = nullcontext((Path(model), None))
    if model.startswith(("models:/", "runs:/")):
        from crossearth.components.register.registry import fetch_model

        found = fetch_model(model)
    options = {
        "bands": parse_numbers("--bands", bands),
        "value_range": parse_numbers("--value-range", value_range),
        "precision": precision,
        "device": device,
        "batch_size": batch_size,
        "probabilities": probabilities,
    }
    with found as (folder, shared):
        config = load_config(PredictConfig, options | {"backbone": backbone or shared}, "predict")
        try:
            written, broken = run(scenes, folder, maps, config), None
        except PartlyDoneError as error:
            written, broken = error.done, error
    for path in written:
        report = read_json(path.with_suffix(".json"))
        used = f"bands {', '.join(map(str, report['bands']))} ({report['bands_from']})"
        scaled = "{:g} to {:g}".format(*(report["value_range"] or (0, 255)))
        used += f", values {scaled} ({report['value_range_from']})"
        for line in (used, *report["notes"]):
            out.print(f"{report['scene']}: {line}", highlight=False, soft_wrap=True, markup=False)
    done(written, "open the maps in a GIS; areas stand in the .json beside them")
    if broken:
        raise broken
