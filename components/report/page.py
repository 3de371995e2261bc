"""The results as one HTML page that needs no network."""

import gzip
from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossearth.components.evaluate.results import RecipeResult, nan_to_none, per_cent, read_picture
from crossearth.components.report.charts import figures, label
from crossearth.components.report.compare import Comparison
from crossearth.components.report.markdown import heading, interval_note, latex, title
from crossearth.components.report.show import signed
from crossearth.components.report.summary import Line, Summary, distinct, facts
from crossearth.components.runtime.pages import render
from crossearth.components.runtime.version import git_revision
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.files import csv_text
from crossearth.model.scores import OTHER_SCORES

TEMPLATE = "template.html"
PICTURES_BYTES = 2_500_000  # of all tiles' pictures together: a page that mail takes
GOOD_PICTURE_BYTES = 24_000  # rather fewer pictures than coarser ones
QUALITIES = (80, 60, 40, 20)


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
    gaps = distinct(line.setting.gap for line in summary.lines)
    each = max(1, PICTURES_BYTES // (2 * GOOD_PICTURE_BYTES * len(summary.lines)))
    plotly = files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    values = {
        "summary": summary,
        "title": title(summary),
        "heading": heading(summary),
        "interval_note": interval_note(summary),
        "results": results,
        "settings": [
            _setting(line, gaps.index(line.setting.gap), summary, worst_tiles, each) for line in summary.lines
        ],
        "matrices": _matrices(summary),
        "published": _published(summary, catalog),
        "trainings": [_training(result) for result in results],
        "csv": csv_text([facts(line) for line in summary.lines]),
        "latex": latex(summary),
        "validation": validation,
        "styles": styles,
        "comparison": comparison,
        "revision": git_revision(),
        "others": [title for _, title in OTHER_SCORES.values()],
        "figures": figures(summary, results, (styles or {}).get("coverage")),
        "plotly": b64encode(gzip.compress(plotly, mtime=0)).decode(),
    }
    filters = {
        "percent": per_cent,
        "signed": signed,
        "short": lambda text: str(text)[:10],
        "duration": _duration,
    }
    return render("report", TEMPLATE, values, filters)


def _setting(line: Line, gap_place: int, summary: Summary, worst_tiles: int, pictures: int) -> dict[str, Any]:
    """A line with what the page draws of it; counts and tiles are those of the first seed.

    Args:
        gap_place: of its gap among all.
        worst_tiles: length of the list of worst tiles.
        pictures: most of the worst tiles, and of the best, that are shown.
    """
    recipe, result = line.runs[0]
    shown = [("worst", panel) for panel in result.worst[:pictures]]
    shown += [("best", panel) for panel in result.best[:pictures]]
    most_bytes = PICTURES_BYTES // (len(summary.lines) * max(1, len(shown)))
    of_seed = [each.scores(scored) for each, scored in line.runs]
    primary_scores = [nan_to_none(each.primary_metric) for each in of_seed]
    others = [[getattr(each, name) for each in of_seed] for name, _ in OTHER_SCORES.values()]
    again = f"crossearth evaluate {recipe.recipe}"
    tiles = recipe.tile_table(result).select(["tile_id", "scene", "iou"]).to_pylist()
    ranked = sorted((tile for tile in tiles if tile["iou"] is not None), key=lambda tile: tile["iou"])
    return {
        "line": line,
        "label": label(line, summary),
        "gap_place": gap_place,
        "anchor": f"{line.setting.abbr}-{line.selection}",
        "recipe": recipe,
        "result": result,
        "classes": recipe.classes,
        "colours": recipe.palette,
        "pixels": [int(pixels) for pixels in of_seed[0].pixels],
        "f1": [nan_to_none(value) for value in of_seed[0].f1],
        "others": [nan_to_none(float(np.mean(values))) for values in others],
        "of_seed": list(zip(line.seeds, primary_scores, strict=True)),
        "worst_tiles": ranked[:worst_tiles],
        "pictures": [
            {"rank": rank, "panel": panel} | picture(recipe.folder / panel.file, again, most_bytes)
            for rank, panel in shown
        ],
    }


def _matrices(summary: Summary) -> list[dict[str, Any]]:
    """Sources as rows, targets as columns: a table per class set and selection rule, where it has several."""
    found = []
    for class_set, selection in distinct((line.recipe.class_set, line.selection) for line in summary.lines):
        kind = (class_set, selection)
        lines = [line for line in summary.lines if (line.recipe.class_set, line.selection) == kind]
        sources = distinct(line.setting.source for line in lines)
        targets = distinct([*sources, *(line.setting.target for line in lines)])
        cells = {(line.setting.source, line.setting.target): line.score for line in lines}
        targets = tuple(name for name in targets if any((source, name) in cells for source in sources))
        if len(lines) > 1:
            found.append(
                {
                    "name": class_set if len(summary.selections) == 1 else f"{class_set}, {selection}",
                    "metric": lines[0].metric,
                    "sources": sources,
                    "targets": targets,
                    "cells": cells,
                }
            )
    return found


def _published(summary: Summary, catalog: Catalog) -> dict[str, Any]:
    """Published scores of the settings in the report: a row per setting, a column per method."""
    rows: list[dict[str, Any]] = [
        {"line": line, "scores": {score.method: score for score in scores}}
        for line in summary.lines
        if (scores := catalog.scores.get(line.setting.abbr))
    ]
    return {"methods": distinct(method for row in rows for method in row["scores"]), "rows": rows}


def _training(result: RecipeResult) -> dict[str, Any]:
    """What a training took, as far as the model says it."""
    model = result.lineage.get("model", {})
    return {
        "result": result,
        "iterations": model.get("train", {}).get("iterations"),
        "chosen": model.get("iteration"),
        "seconds": result.lineage.get("timing", {}).get("seconds"),
        "parameters": model.get("parameters", {}),
    }


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def picture(path: Path, next_step: str, most_bytes: int) -> dict[str, Any]:
    """Size in px and data URI of a picture, coarser where it would take more than `most_bytes`.

    Raises:
        InputError: whatever `read_picture` refuses.
    """
    pixels = read_picture(path, next_step)
    while True:
        for quality in QUALITIES:
            buffer = BytesIO()
            pixels.save(buffer, "WEBP", quality=quality, method=0)
            content = buffer.getvalue()
            if len(content) <= most_bytes or max(pixels.size) < 128:
                uri = "data:image/webp;base64," + b64encode(content).decode()
                return {"size": pixels.size, "uri": uri}
        pixels = pixels.resize((pixels.width // 2, pixels.height // 2), Image.Resampling.BOX)
