"""The catalog on the command line: its settings and its domains."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from crossearth.components.runtime.tables import TextTable, View

if TYPE_CHECKING:
    from crossearth.data.catalog.domains import Catalog


def settings_view(catalog: Catalog) -> View:
    """All settings with their recipes and published scores: per cent, as printed."""
    recipe_of = {
        setting.abbr: recipe.name for recipe in catalog.recipes().values() for setting in recipe.settings
    }
    rows, flat, data = [], [], []
    for setting in catalog.settings.values():
        scores, recipe = catalog.scores[setting.abbr], recipe_of[setting.abbr]
        published = {score.method: score.miou for score in scores}
        ours = published.get("CrossEarth", "")
        way = (setting.abbr, setting.source, setting.target)
        rows.append((*way, recipe, setting.gap, ours, setting.class_set, setting.evidence))
        facts = asdict(setting) | {"recipe": recipe}
        flat.append(facts | {f"published {method}": value for method, value in published.items()})
        data.append(facts | {"published": [asdict(score) for score in scores]})
    columns = ["setting", "source", "target", "recipe", "gap", "published %", "class set", "evidence"]
    table = TextTable(
        columns,
        rows,
        title=f"{len(rows)} settings, {len(catalog.recipes())} training recipes",
        numbers=("published %",),
        spare=("evidence", "class set", "gap", "source"),
    )
    return View(table, flat, data)


def domains_view(catalog: Catalog) -> View:
    """All domains: dataset, splits, bands, size of a pixel, classes, tiles, licence."""
    rows, flat = [], []
    for domain in catalog.domains.values():
        dataset = catalog.datasets[domain.dataset]
        facts = {
            "domain": domain.name,
            "classes": domain.class_set or "none (style source)",
            "bands": ", ".join(domain.bands),
            "metres per px": domain.gsd_m,
            "splits": ", ".join(domain.splits),
            "tile px": f"{domain.tile.px} {domain.tile.rule}",
            "dataset": dataset.title,
            "licence": dataset.licence,
        }
        flat.append(facts)
        rows.append(["" if value is None else value for value in facts.values()])
    table = TextTable(
        list(flat[0]),
        rows,
        title=f"{len(rows)} domains",
        numbers=("metres per px",),
        spare=("licence", "dataset", "tile px", "splits"),
    )
    return View(table, flat, [asdict(domain) for domain in catalog.domains.values()])
