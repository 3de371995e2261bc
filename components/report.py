"""The benchmark's result as one table (CSV, Markdown) and one self-contained page."""

import json
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from crossearth.components.compare import Comparison, compare
from crossearth.components.palette import safe_palette
from crossearth.components.results import (
    SUMMARY_METRICS,
    RecipeResult,
    defined,
    find_results,
    metric_name,
    rows_of,
    summary_metrics,
    write_table,
)
from crossearth.components.summary import Drop, Line, Summary, summarise
from crossearth.components.tracking import start_run
from crossearth.components.version import git_revision
from crossearth.data.catalog import Catalog
from crossearth.data.errors import InputError
from crossearth.data.files import atomic_dir, digest, write_json, write_text

TEMPLATE = "report_template.html"
PICTURE_QUALITY = 80
SELECTIONS = {
    "last": "the last iterate, as the authors do",
    "best-source": "the best iterate on held-out scenes of the source",
    "released": "as released by the authors",
}


@dataclass(frozen=True)
class ReportConfig:
    """How results are reported.

    Attributes:
        replicates: bootstrap replicates behind each interval.
        worst_tiles: length of each setting's list of worst tiles.
        require_all: refuse to report when a setting of the catalog has no result.
    """

    replicates: int = 1000
    worst_tiles: int = 10
    require_all: bool = False

    def __post_init__(self) -> None:
        if self.replicates < 100:
            raise InputError(
                f"replicates: {self.replicates} say nothing of an interval", expected="at least 100"
            )


def report(
    scores: Sequence[Path],
    catalog: Catalog,
    out_dir: Path,
    config: ReportConfig | None = None,
    *,
    validation_dir: Path | None = None,
    styles_dir: Path | None = None,
    coverage_dir: Path | None = None,
    against: Sequence[Path] = (),
) -> Path:
    """Writes `scores.csv`, `scores.md`, `metrics.json` and `index.html`; logs them as the benchmark's run.

    Args:
        scores: folders of results, or folders of such folders.
        catalog: gives the table's order, the class names and the published scores.
        out_dir: replaced as a whole.
        config: defaults if None.
        validation_dir: what `validate` wrote; its verdicts are shown, its Data Docs linked.
        styles_dir: what `styles fit` wrote; its sheet is shown.
        coverage_dir: what `styles coverage` wrote; how far the styles cover the unseen domains is shown.
        against: folders of other results; the page compares them (A) with these (B).

    Returns:
        `out_dir`.

    Raises:
        InputError: no results; two results for one setting, rule and seed; with `require_all`, missing
            settings.
    """
    config = config or ReportConfig()
    results = find_results(scores)
    summary = summarise(results, catalog, config.replicates)
    if config.require_all and summary.missing:
        raise InputError(
            f"{len(summary.missing)} of {len(catalog.settings)} settings have no result: "
            + ", ".join(setting.abbr for setting in summary.missing),
            where=", ".join(map(str, scores)),
            next_step="crossearth evaluate RECIPE, or report without require_all",
        )
    order = {line.setting: place for place, line in enumerate(summary.lines)}
    rows = sorted((row for result in results for row in rows_of(result)), key=lambda row: order[row.setting])
    with atomic_dir(out_dir) as folder:
        write_table(folder / "scores.csv", rows)
        write_json(folder / "metrics.json", _metrics(summary))
        write_text(folder / "scores.md", markdown(summary, catalog))
        text = page(
            summary,
            results,
            catalog,
            config,
            validation=_validation(validation_dir, Path(out_dir)),
            styles=_styles(styles_dir, coverage_dir),
            comparison=compare(against, scores, catalog) if against else None,
        )
        write_text(folder / "index.html", text)
    _track(summary, results, Path(out_dir))
    return Path(out_dir)


def per_cent(value: float | None) -> str:
    """A fraction as the paper prints it: per cent with one digit; a blank where it is undefined."""
    return "" if value is None else f"{100 * value:.1f}"


def heading(summary: Summary) -> str:
    """What must stand over every table of these numbers: data, selection rule, seeds."""
    kinds = sorted({line.provenance == "synthetic" for line in summary.lines}, reverse=True)
    data = " and ".join("synthetic miniatures" if kind else "real imagery" for kind in kinds).capitalize()
    rules = "; ".join(f"{rule} ({SELECTIONS.get(rule, 'own rule')})" for rule in summary.selections)
    seeds = ", ".join("none" if seed is None else str(seed) for seed in summary.seeds)
    return f"{data} · selection: {rules} · seed: {seeds}"


def markdown(summary: Summary, catalog: Catalog) -> str:
    """The table as Markdown, ready to be pasted."""
    comparable = [line for line in summary.lines if line.published is not None]
    parts = [
        f"# {len(summary.lines)} settings, mIoU in per cent",
        heading(summary) + ". Brackets: 95 % bootstrap interval over tiles.",
    ]
    if summary.synthetic:
        parts.append(
            "**Synthetic data: drawn by code to exercise the pipeline. These numbers are not comparable with"
            " published scores.**"
        )
    columns = ["setting", "source", "target", "gap", "mIoU", "interval", "sd", "seeds"]
    table = [
        [
            line.setting,
            line.source,
            line.target,
            line.gap,
            per_cent(line.miou),
            f"[{per_cent(line.low)}, {per_cent(line.high)}]" if line.low is not None else "",
            per_cent(line.deviation),
            str(len(line.runs)),
        ]
        for line in summary.lines
    ]
    if len(summary.selections) > 1:
        columns.append("selection")
        table = [[*row, line.selection] for row, line in zip(table, summary.lines, strict=True)]
    if comparable:
        columns += ["published", "evidence"]
        table = [
            [*row, per_cent(line.published), line.evidence]
            for row, line in zip(table, summary.lines, strict=True)
        ]
    parts.append(_markdown_table(columns, table))
    means = [[mean.name, mean.selection, str(mean.settings), per_cent(mean.miou)] for mean in summary.means]
    parts += ["## Means", _markdown_table(["group", "selection", "settings", "mIoU"], means)]
    if summary.drops:
        drops = [
            [
                drop.source,
                per_cent(drop.in_domain),
                per_cent(drop.unseen),
                per_cent(drop.points),
                str(drop.targets),
            ]
            for drop in summary.drops
        ]
        parts += [
            "## From the seen domain to unseen ones",
            _markdown_table(["source", "in-domain", "unseen mean", "drop in points", "targets"], drops),
        ]
    if summary.missing:
        parts += ["## Not scored", ", ".join(setting.abbr for setting in summary.missing)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def page(
    summary: Summary,
    results: Sequence[RecipeResult],
    catalog: Catalog,
    config: ReportConfig,
    *,
    validation: Sequence[Mapping[str, Any]],
    styles: Mapping[str, Any] | None,
    comparison: Comparison | None,
) -> str:
    """The page as one HTML file: styles, scripts, charts' data and pictures are all in it."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": per_cent, "short": lambda text: str(text)[:10]}
    template = environment.from_string(files("crossearth.components").joinpath(TEMPLATE).read_text("utf-8"))
    gaps = list(dict.fromkeys(line.gap for line in summary.lines))
    return template.render(
        summary=summary,
        heading=heading(summary),
        results=results,
        num_settings=len(catalog.settings),
        settings=[_setting(line, gaps.index(line.gap), summary, config) for line in summary.lines],
        published=_published(summary, catalog),
        drops=[_drop(drop, summary) for drop in summary.drops],
        validation=validation,
        styles=styles,
        comparison=comparison,
        revision=git_revision(),
        plotly=files("plotly").joinpath("package_data/plotly.min.js").read_text("utf-8"),
    )


def _setting(line: Line, gap_place: int, summary: Summary, config: ReportConfig) -> dict[str, Any]:
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
        "f1": [defined(value) for value in scores.f1],
        "accuracy": defined(float(np.mean([each.accuracy for each in of_seed]))),
        "mean_f1": defined(float(np.mean([each.mean_f1 for each in of_seed]))),
        "worst_tiles": ranked[: config.worst_tiles],
        "pictures": [
            {"rank": rank, "panel": panel} | _picture(recipe.folder / panel.file)
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


def _picture(path: Path) -> dict[str, Any]:
    """Size in px and data URI of a picture."""
    with Image.open(path) as image:
        buffer = BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=PICTURE_QUALITY, method=0)
        return {"size": image.size, "uri": "data:image/webp;base64," + b64encode(buffer.getvalue()).decode()}


def _validation(folder: Path | None, out_dir: Path) -> list[dict[str, Any]]:
    """What `validate` found, per domain; `docs` as seen from the page. Empty where it has not run."""
    summary = _read_json(folder, "summary.json")
    if folder is None or summary is None:
        return []
    return [
        {
            "domain": domain,
            **found,
            "failed": [check for check in found["checks"] if not check["passed"]],
            "docs": Path(os.path.relpath(folder / found.get("docs", "docs/index.html"), out_dir)).as_posix(),
        }
        for domain, found in summary.items()
    ]


def _styles(folder: Path | None, coverage_dir: Path | None) -> dict[str, Any] | None:
    """What `styles fit` found of the Earth's styles; None where it has not run."""
    summary = _read_json(folder, "summary.json")
    if folder is None or summary is None:
        return None
    sheet = folder / "sheet.png"
    return {
        "summary": summary,
        "sheet": _picture(sheet) if sheet.is_file() else None,
        "coverage": _read_json(coverage_dir, "coverage.json"),
    }


def _read_json(folder: Path | None, name: str) -> Any:
    """A JSON file of another step, None where that step has not run.

    Raises:
        InputError: it is damaged.
    """
    if folder is None or not (folder / name).is_file():
        return None
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"not JSON: {error}", where=folder / name, next_step="run that step again"
        ) from error


def _metrics(summary: Summary) -> dict[str, float]:
    """The table's numbers by name, for MLflow and for `dvc metrics`."""
    metrics = {
        metric_name("miou", line.setting): line.miou for line in summary.lines if line.miou is not None
    }
    metrics |= {metric_name("gap", mean.name): mean.miou for mean in summary.gaps if mean.miou is not None}
    unseen = [line.miou for line in summary.lines if line.unseen]
    return metrics | summary_metrics(unseen, [line.miou for line in summary.lines if not line.unseen])


def _track(summary: Summary, results: Sequence[RecipeResult], out_dir: Path) -> None:
    """Logs the report as a run of its own, the parent of the recipes' runs."""
    keys = sorted({result.recipe_hash for result in results})
    tags = {
        "kind": "benchmark",
        "settings": str(len(summary.lines)),
        "missing": str(len(summary.missing)),
        "selection": ", ".join(summary.selections),
        "provenance": ", ".join(sorted({line.provenance for line in summary.lines})),
    }
    with start_run("benchmark", key=digest(keys), tags=tags) as run:
        run.log_metrics(_metrics(summary))
        run.describe((out_dir / "scores.md").read_text(encoding="utf-8"))
        run.log_artifact(out_dir, "report")
        targets = dict.fromkeys(line.target for line in summary.lines)
        columns = [*SUMMARY_METRICS, *(metric_name("miou", target) for target in targets)]
        run.save_view("crossearth-recipes", "Recipes by mIoU on unseen domains", columns, SUMMARY_METRICS[0])
        run.adopt(keys)
