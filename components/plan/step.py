"""Resolves catalog and params into one small file per recipe and per dataset.

DVC hangs each stage on its own file, so that editing one setting, one domain or one recipe's parameters
re-runs what depends on it and nothing else.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from crossearth.components.plan.configs import check
from crossearth.components.runtime.code import code_digest
from crossearth.components.runtime.params import Params
from crossearth.components.train.setup import TrainConfig, flat, plain
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.files import atomic_dir, write_json


def plan(catalog: Catalog, params: Params, out_dir: Path) -> Path:
    """Writes what the steps hang on under `out_dir`.

    That is `ingest/<dataset>.json`, `train/<recipe>.json`, `evaluate/<recipe>.json` and a file for each other
    step; each with the digest of the code that its step runs.

    Raises:
        InputError: a wrong number of any step.
    """
    check(params, catalog)
    with atomic_dir(out_dir) as folder:
        for step in ("synthesize", "styles", "stylize", "report"):
            _write(folder / f"{step}.json", step, {step: params.values(step)})
        style = params.values("train").get("style", {})
        _write(folder / "coverage.json", "styles.coverage", {"style": style})
        lacking = params.may_lack_classes(catalog)
        _write(
            folder / "validate.json",
            "validate",
            {"validate": params.values("validate"), "may_lack_classes": lacking},
        )
        for dataset in catalog.datasets.values():
            domains = [
                asdict(domain) for domain in catalog.domains.values() if domain.dataset == dataset.name
            ]
            _write(
                folder / "ingest" / f"{dataset.name}.json",
                "ingest",
                {"dataset": asdict(dataset), "domains": domains, "ingest": params.values("ingest")},
            )
        for recipe in catalog.recipes().values():
            source, class_set = catalog.domain(recipe.source), catalog.class_sets[recipe.class_set]
            _write(
                folder / "train" / f"{recipe.name}.json",
                "train",
                {
                    "source": source.name,
                    "class_set": asdict(class_set),
                    "remap": catalog.remap(source.class_set, class_set.name),
                    "train": params.values("train", recipe.name),
                },
            )
            _write(
                folder / "evaluate" / f"{recipe.name}.json",
                "evaluate",
                {
                    "settings": [asdict(setting) for setting in recipe.settings],
                    "class_set": asdict(class_set),
                    "remaps": {
                        setting.target: catalog.remap(
                            catalog.domain(setting.target).class_set, class_set.name
                        )
                        for setting in recipe.settings
                    },
                    "evaluate": params.values("evaluate"),
                },
            )
    return out_dir


def _write(path: Path, step: str, values: dict[str, Any]) -> None:
    write_json(path, {**values, "code": code_digest(step)})


def parameters(params: Params, recipe: str) -> list[tuple[str, Any, str]]:
    """Every number of a recipe's training: its (dotted) name, its value, and where that comes from.

    It comes from "default", the class's, or from a key of the preset in force: "train" or "recipes.NAME".

    Raises:
        InputError: a wrong number.
    """
    config = params.config(TrainConfig, "train", recipe)
    style = replace(config.style, alpha=config.style.earth_share)
    config = replace(config, seed=params.seed, style=style, schedule_iterations=config.poly_end)
    layers = {key: flat(values) for key, values in params.layers("train", recipe).items()}
    found = []
    for name, value in flat(plain(asdict(config))).items():
        origin = next((key for key in reversed(layers) if name in layers[key]), "default")
        found.append((name, value, "seed" if name == "seed" else origin))
    return found
