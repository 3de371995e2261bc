"""Resolves catalog and params into one small file per recipe and per dataset.

DVC hangs each stage on its own file, so that editing one setting, one domain or one recipe's numbers
re-runs what depends on it and nothing else.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from crossearth.components.plan.configs import check
from crossearth.components.runtime.params import Params
from crossearth.components.train.setup import TrainConfig, flat, plain
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.files import atomic_dir, write_json


def plan(catalog: Catalog, params: Params, out_dir: Path) -> Path:
    """Writes what the steps hang on under `out_dir`.

    That is `ingest/<dataset>.json`, `validate.json`, `train/<recipe>.json` and `evaluate/<recipe>.json`.

    Raises:
        InputError: a wrong number of any step.
    """
    check(params, catalog)
    with atomic_dir(out_dir) as folder:
        write_json(folder / "validate.json", {"may_lack_classes": params.may_lack_classes(catalog)})
        for dataset in catalog.datasets.values():
            domains = [
                asdict(domain) for domain in catalog.domains.values() if domain.dataset == dataset.name
            ]
            write_json(
                folder / "ingest" / f"{dataset.name}.json", {"dataset": asdict(dataset), "domains": domains}
            )
        for recipe in catalog.recipes().values():
            source, class_set = catalog.domain(recipe.source), catalog.class_sets[recipe.class_set]
            write_json(
                folder / "train" / f"{recipe.name}.json",
                {
                    "source": source.name,
                    "class_set": asdict(class_set),
                    "remap": catalog.remap(source.class_set, class_set.name),
                    "train": params.values("train", recipe.name),
                },
            )
            write_json(
                folder / "evaluate" / f"{recipe.name}.json",
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


def numbers(params: Params, recipe: str) -> list[tuple[str, Any, str]]:
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
