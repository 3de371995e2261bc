"""Resolves catalog and params into one small file per recipe and per dataset.

DVC hangs each stage on its own file, so that editing one setting, one domain or one recipe's parameters
re-runs what depends on it and nothing else.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from crossearth.components.runtime.code import code_digest
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.places import PLAN
from crossearth.components.steps import STEPS, Step, load
from crossearth.components.train.setup import TrainConfig, flat
from crossearth.data.catalog.domains import Catalog, Recipe
from crossearth.data.common.files import atomic_dir, write_json


def check(params: Params, catalog: Catalog) -> None:
    """Looks at all parameters of the preset in force; InputError: a wrong key or value, an unknown name."""
    params.check(catalog)
    kinds = {step.name: load(step.config) for step in STEPS.values() if step.config}
    for step, kind in kinds.items():
        params.config(kind, step)
    for recipe in params.presets[params.preset].get("recipes", {}):
        params.config(kinds["train"], "train", recipe)


def run(params: Params, catalog: Catalog) -> Path:
    return plan(catalog, params, PLAN)


def plan(catalog: Catalog, params: Params, out_dir: Path) -> Path:
    """Writes what the steps hang on under `out_dir`.

    That is `ingest/<dataset>.json`, `train/<recipe>.json`, `evaluate/<recipe>.json` and a file for each other
    step; each with the digest of the code that its step runs.

    Raises:
        InputError: a wrong parameter of any step.
    """
    check(params, catalog)
    with atomic_dir(out_dir) as folder:
        for step in STEPS.values():
            for path, inputs in _inputs(step, catalog, params):
                write_json(folder / path, {**inputs, "code": code_digest(step.module)})
    return out_dir


def _inputs(step: Step, catalog: Catalog, params: Params) -> Iterator[tuple[str, dict[str, Any]]]:
    """Files of a step's plan, with what of catalog and params the step depends on."""
    values = {step.name: params.values(step.name)} if step.config else {}
    if step.planned == "once":
        yield f"{step.name}.json", {**values, **_besides(step.name, catalog, params)}
    elif step.planned == "dataset":
        for dataset in catalog.datasets.values():
            domains = [
                asdict(domain) for domain in catalog.domains.values() if domain.dataset == dataset.name
            ]
            yield (
                f"{step.name}/{dataset.name}.json",
                {"dataset": asdict(dataset), "domains": domains, **values},
            )
    elif step.planned == "recipe":
        for recipe in catalog.recipes().values():
            inputs = _of_training if step.name == "train" else _of_scores
            yield f"{step.name}/{recipe.name}.json", {**values, **inputs(recipe, catalog, params)}


def _besides(step: str, catalog: Catalog, params: Params) -> dict[str, Any]:
    """What a step depends on that does not stand in its own section."""
    if step == "validate":
        return {"may_lack_classes": params.may_lack_classes(catalog)}
    if step == "coverage":
        return {"styles": {name: params.values("train", name).get("style", {}) for name in catalog.recipes()}}
    return {}


def _of_training(recipe: Recipe, catalog: Catalog, params: Params) -> dict[str, Any]:
    source, class_set = catalog.domain(recipe.source), catalog.class_sets[recipe.class_set]
    return {
        "source": source.name,
        "class_set": asdict(class_set),
        "remap": catalog.remap(source.class_set, class_set.name),
        "train": params.values("train", recipe.name),
    }


def _of_scores(recipe: Recipe, catalog: Catalog, _: Params) -> dict[str, Any]:
    class_set = catalog.class_sets[recipe.class_set]
    targets = [catalog.domain(setting.target) for setting in recipe.settings]
    return {
        "settings": [asdict(setting) for setting in recipe.settings],
        "class_set": asdict(class_set),
        "remaps": {target.name: catalog.remap(target.class_set, class_set.name) for target in targets},
    }


def parameters(params: Params, recipe: str) -> list[tuple[str, Any, str]]:
    """Every parameter of a recipe's training: its (dotted) name, its value, and where that comes from.

    It comes from "default", the class's, or from a key of the preset in force: "train" or "recipes.NAME".

    Raises:
        InputError: a wrong parameter.
    """
    config = params.config(TrainConfig, "train", recipe)
    style = replace(config.style, alpha=config.style.earth_share)
    config = replace(config, seed=params.seed, style=style, schedule_iterations=config.poly_end)
    layers = {key: flat(values) for key, values in params.layers("train", recipe).items()}
    found = []
    for name, value in flat(to_jsonable_python(config)).items():
        origin = next((key for key in reversed(layers) if name in layers[key]), "default")
        found.append((name, value, "seed" if name == "seed" else origin))
    return found
