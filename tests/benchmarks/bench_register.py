"""How the registration of models grows with their number; MLflow's store is a SQLite file."""

from dataclasses import replace
from itertools import count
from pathlib import Path

from harness import Action, Case, Form, scratch
from results_factory import write_fake_results

from crossearth.components.evaluate.results import write_results
from crossearth.components.register.promotion import RegisterConfig
from crossearth.components.register.step import register
from crossearth.data.catalog.domains import Recipe
from crossearth.data.catalog.loader import load_catalog
from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.weights.checkpoint import read_meta, save

CATALOG = load_catalog()
RECIPES = list(CATALOG.recipes().values())
runs = count()


def write_scored_model(recipe: Recipe, models: Path, scores: Path) -> None:
    """A network with random weights, and scores that say they are its own."""
    class_set = CATALOG.class_sets[recipe.class_set]
    about = {"classes": class_set.classes, "palette": class_set.palette, "provenance": "synthetic"}
    save(crossearth_tiny(len(class_set.classes), 64), models / recipe.name, about)
    result = write_fake_results(scores / recipe.name, CATALOG, recipe)
    write_results(replace(result, model_sha256=read_meta(models / recipe.name)["sha256"]))


def registering(number: int) -> Action:
    models, scores = scratch("models"), scratch("scores")
    chosen = RECIPES[:number]
    for recipe in chosen:
        if not (models / recipe.name).exists():
            write_scored_model(recipe, models, scores)

    def run() -> None:
        name = f"run-{next(runs)}"  # models of another name are all new
        register(chosen, CATALOG, scratch("."), RegisterConfig(prefix=name))

    return run


CASES = {
    "growth of register": Case(
        {
            f"{number} models": Form(lambda number=number: registering(number), number)  # type: ignore[misc]
            for number in (1, 4, 14)
        },
        "model",
        rounds=3,
    )
}
