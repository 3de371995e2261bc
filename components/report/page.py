"""The benchmark's result as one HTML page that needs no network."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from crossearth.components.evaluate.results import RecipeResult, nan_to_none, read_picture
from crossearth.components.report.compare import Comparison
from crossearth.components.report.markdown import heading, per_cent
from crossearth.components.report.summary import Drop, Line, Summary
from crossearth.components.runtime.palette import safe_palette
from crossearth.components.runtime.version import git_revision
from crossearth.data.catalog.domains import Catalog

TEMPLATE = "template.html"
PICTURE_QUALITY = 80


def page(
    summary: Summary,
    results: Sequence[RecipeResult],
    catalog: Catalog,
    worst_tiles: int,
    *,
    validation: Sequence[Mapping[str, Any]],
    styles: Mapping[str, Any] | None,
    comparison: Comparison | None,
) -> str:
    """The page as one HTML file: styles, scripts, charts' data and pictures are all in it.

    Args:
        worst_tiles: length of each setting's list of worst tiles.
        validation: what `validate` found, per domain.
        styles: what `styles fit` found, None where it has not run.
        comparison: with other results, None where there are none.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": per_cent, "short": lambda text: str(text)[:10]}
    template = environment.from_string(
        files("crossearth.components.report").joinpath(TEMPLATE).read_text("utf-8")
    )
    gaps = list(dict.fromkeys(line.gap for line in summary.lines))
    return template.render(
        summary=summary,
        heading=heading(summary),
        results=results,
        num_settings=len(catalog.settings),
        settings=[_setting(line, gaps.index(line.gap), summary, worst_tiles) for line in summary.lines],
        published=_published(summary, catalog),
        drops=[_drop(drop, summary) for drop in summary.drops],
        validation=validation,
        styles=styles,
        comparison=comparison,
        revision=git_revision(),
        plotly=files("plotly").joinpath("package_data/plotly.min.js").read_text("utf-8"),
    )


def _setting(line: Line, gap_place: int, summary: Summary, worst_tiles: int) -> dict[str, Any]:
    """A line with what the page draws of it; counts and tiles are those of the first seed."""
    recipe, result = line.runs[0]
    of_seed = [each.scores(scored) for each, scored in line.runs]
    scores = of_seed[0]
    tiles = recipe.tile_table(result).select(["tile_id", "scene", "iou"]).to_pylist()
    ranked = sorted((tile for tile in tiles if tile["iou"] is not None), key=lambda tile: tile["iou"])
    label = line.setting if len(summary.selections) == 1 else f"{line.setting}, {line.selection}"
    return {
        "line": line,
        "gap_place": gap_place,
        "anchor": f"{line.setting}-{line.selection}",
        "recipe": recipe,
        "result": result,
        "classes": recipe.classes,
        "colours": safe_palette(recipe.palette),
        "pixels": [int(pixels) for pixels in scores.pixels],
        "f1": [nan_to_none(value) for value in scores.f1],
        "accuracy": nan_to_none(float(np.mean([each.accuracy for each in of_seed]))),
        "mean_f1": nan_to_none(float(np.mean([each.mean_f1 for each in of_seed]))),
        "worst_tiles": ranked[:worst_tiles],
        "pictures": [
            {"rank": rank, "panel": panel}
            | picture(recipe.folder / panel.file, f"crossearth evaluate {recipe.recipe}")
            for rank, panels in (("worst", result.worst), ("best", result.best))
            for panel in panels
        ],
        "chart": {
            "label": label,
            "gap": line.gap,
            "miou": line.miou,
            "low": line.low,
            "high": line.high,
            "published": line.published,
        },
    }


def _drop(drop: Drop, summary: Summary) -> dict[str, Any]:
    name = drop.source if len(summary.selections) == 1 else f"{drop.source}, {drop.selection}"
    return {"name": name, "in_domain": drop.in_domain, "unseen": drop.unseen}


def _published(summary: Summary, catalog: Catalog) -> list[dict[str, Any]]:
    """Published scores of the settings in the report, every method, with how each is known."""
    shown = dict.fromkeys(line.setting for line in summary.lines)
    return [
        {"setting": abbr, "score": score}
        for abbr in shown
        if abbr in catalog.settings
        for score in catalog.published(abbr)
    ]


def picture(path: Path, next_step: str) -> dict[str, Any]:
    """Size in px and data URI of a picture; whatever `read_picture` refuses is refused."""
    pixels = read_picture(path, next_step)
    buffer = BytesIO()
    pixels.save(buffer, "WEBP", quality=PICTURE_QUALITY, method=0)
    return {"size": pixels.size, "uri": "data:image/webp;base64," + b64encode(buffer.getvalue()).decode()}
