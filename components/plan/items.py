"""The items that a pipeline's loops run over, as the plan makes them.

An item is a plain dictionary with a name and the digest of everything that its step depends on: Kubeflow's
cache looks at nothing but a step's inputs.
"""

from collections.abc import Sequence
from typing import Any

from crossearth.components.pods.items import Item
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.places import PLAN
from crossearth.components.train.setup import TrainConfig
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import digest, sha256_file
from crossearth.data.raster.archives import on_the_disk
from crossearth.model.training.multitask import BRANCHES


def recipe_items(catalog: Catalog, params: Params, names: Sequence[str], identity: str) -> list[Item]:
    """One item per recipe: name, source, settings, and digests; InputError: no recipe, or an unknown one."""
    if not names:
        raise InputError("no recipe is asked for", where="recipes", expected=", ".join(catalog.recipes()))
    return [
        {
            "name": recipe.name,
            "source": recipe.source,
            "settings": [setting.abbr for setting in recipe.settings],
            "train_key": digest([_plan("train", recipe.name), params.seed, identity]),
            "evaluate_key": digest([_plan("evaluate", recipe.name), identity]),
        }
        for recipe in map(catalog.recipe, dict.fromkeys(names))
    ]


def dataset_items(
    catalog: Catalog, params: Params, recipes: Sequence[str], versions: dict[str, str], identity: str
) -> list[Item]:
    """One item per dataset that the recipes train on or are scored on.

    Args:
        versions: domain -> its version in the store; a dataset all of whose domains have one is pulled.

    Raises:
        InputError: an unknown domain in `versions`, or a dataset of which only some domains have a version.
    """
    needed = {
        domain
        for recipe in map(catalog.recipe, recipes)
        for domain in (recipe.source, *(setting.target for setting in recipe.settings))
    }
    for name, version in versions.items():
        catalog.domain(name)
        if version == "latest":
            raise InputError(
                "latest moves on, which Kubeflow's cache cannot see",
                where=f"versions: {name}",
                expected="the version that `crossearth push` printed",
            )
    items = []
    for dataset in dict.fromkeys(catalog.domain(name).dataset for name in sorted(needed)):
        domains = [domain.name for domain in catalog.domains_of(dataset)]
        pulled = {name: versions[name] for name in domains if name in versions}
        absent = [name for name in domains if name in needed and name not in pulled]
        if pulled and absent:
            raise InputError(
                f"a version is given for {', '.join(pulled)} but none for {', '.join(absent)}",
                where="versions",
                next_step=f"give one for each domain of {dataset}, or for none",
            )
        items.append(
            {
                "name": dataset,
                "domains": sorted(pulled) or domains,
                "versions": pulled,
                "key": digest(
                    [
                        _plan("ingest", dataset),
                        params.values("ingest"),
                        _own_files(catalog, domains),
                        identity,
                    ]
                ),
            }
        )
    return items


def archives_needed(
    catalog: Catalog, params: Params, datasets: Sequence[Item], recipes: Sequence[str], shards: int
) -> list[str]:
    """Folders below `archives` that this run reads: of publishers' datasets, and of the styles' images.

    Args:
        datasets: their items; what is pulled from the store needs no archive.
        shards: of stylized tiles, which need styles whatever the recipes do.
    """
    published = [
        item["name"]
        for item in datasets
        if not item["versions"] and any(catalog.domain(name).own is None for name in item["domains"])
    ]
    styled = [BRANCHES[params.config(TrainConfig, "train", name).ablation].style for name in recipes]
    return [*published, *([params.corpus] if shards or any(styled) else [])]


def digest_of_step(params: Params, step: str, identity: str) -> str:
    """Digest of a step's plan, of the seed, of the user's catalogs and of the workspace."""
    catalogs = [sha256_file(path) for path in params.catalogs]
    return digest([sha256_file(PLAN / f"{step}.json"), params.seed, catalogs, identity])


def _own_files(catalog: Catalog, domains: Sequence[str]) -> list[Any]:
    """What the cache takes for the content of the users' own images and masks: no archive holds them."""
    owned = [own for name in domains if (own := catalog.domain(name).own)]
    # a file's name stands for those beside it that belong to it; a place in an archive for the archive
    roots = dict.fromkeys(root for own in owned for place in own.places for root in on_the_disk(place))
    files = [path for root in roots for path in sorted([root, *root.rglob("*")]) if path.is_file()]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _plan(step: str, name: str) -> str:
    return sha256_file(PLAN / step / f"{name}.json")
