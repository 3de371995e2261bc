"""The benchmark's result: table, page and metrics, written as one folder and logged as one run."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt

from crossearth.components.evaluate.results import (
    SUMMARY_METRICS,
    RecipeResult,
    find_results,
    metric_name,
    rows_of,
    summary_metrics,
)
from crossearth.components.report.compare import compare
from crossearth.components.report.markdown import latex, markdown
from crossearth.components.report.page import page, picture
from crossearth.components.report.plots import write_plots
from crossearth.components.report.summary import Summary, summarise
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.places import COVERAGE, REPORT, SCORES, STYLES, VALIDATION
from crossearth.components.runtime.tracking import VIEW, start_run
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.config import checked
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import (
    atomic_dir,
    csv_text,
    digest,
    read_checksummed,
    write_json,
    write_text,
)

SHEET_BYTES = 400_000  # of the sheet of styles


@checked
class ReportConfig:
    """How results are reported.

    Attributes:
        replicates: bootstrap replicates behind each interval.
        worst_tiles: length of each setting's list of worst tiles.
        require_all: refuse to report when a setting has no result: of the benchmark, if one of it was scored,
            and of the user's, if one of those was.
    """

    replicates: Annotated[int, Field(ge=100)] = 1000  # fewer say nothing of an interval
    worst_tiles: NonNegativeInt = 10
    require_all: bool = False


def run(
    params: Params,
    catalog: Catalog,
    scores: Sequence[Path] = (),
    against: Sequence[Path] = (),
    require_all: bool = False,
) -> Path:
    """Reports in the working folder: its own scores, or those of other folders."""
    config = params.config(ReportConfig, "report")
    return report(
        scores or [SCORES],
        catalog,
        REPORT,
        replace(config, require_all=require_all or config.require_all),
        against,
    )


def report(
    scores: Sequence[Path],
    catalog: Catalog,
    out_dir: Path,
    config: ReportConfig | None = None,
    against: Sequence[Path] = (),
) -> Path:
    """Writes `scores.csv`, `.md`, `.tex`, `metrics.json`, `plots/` and `index.html`; logs them as a run.

    Args:
        scores: folders of results, or folders of such folders.
        catalog: gives the table's order, the class names and the published scores.
        out_dir: replaced as a whole. Of what other steps left beside it, the page shows the verdicts of
            `validate`, whose Data Docs it links, the sheet of `styles fit`, and how far the styles cover the
            unseen domains (`styles coverage`).
        against: folders of other results; the page compares them (A) with these (B).

    Returns:
        `out_dir`.

    Raises:
        InputError: no results; two results for one setting, rule and seed; a picture that is gone or damaged;
            with `require_all`, missing settings.
    """
    config = config or ReportConfig()
    results = find_results(scores)
    summary = summarise(results, catalog, config.replicates)
    if config.require_all and summary.missing:
        raise InputError(
            f"{len(summary.missing)} of {len(summary.wanted)} settings have no result: "
            + ", ".join(setting.abbr for setting in summary.missing),
            where=", ".join(map(str, scores)),
            next_step="crossearth evaluate RECIPE, or report without require_all",
        )
    order = {line.setting.abbr: place for place, line in enumerate(summary.lines)}
    rows = [row for result in results for row in rows_of(result)]
    rows.sort(key=lambda row: order[row["setting"]])
    with atomic_dir(out_dir) as folder:
        write_text(folder / "scores.csv", csv_text(rows))
        write_json(folder / "metrics.json", _means(summary))
        write_plots(summary, results, folder / "plots")
        write_text(folder / "scores.md", markdown(summary))
        write_text(folder / "scores.tex", latex(summary))
        text = page(
            summary,
            results,
            catalog,
            config.worst_tiles,
            validation=_validation(Path(out_dir)),
            styles=_styles(Path(out_dir).parent),
            comparison=compare(against, scores, catalog) if against else None,
        )
        write_text(folder / "index.html", text)
    _track(summary, results, Path(out_dir))
    return Path(out_dir)


def _validation(out_dir: Path) -> list[dict[str, Any]]:
    """What `validate` found, per domain; `docs` as seen from the page. Empty where it has not run."""
    folder = out_dir.parent / VALIDATION.name
    summary = _left(folder / "summary.json") or {"domains": {}}
    return [
        {
            "domain": domain,
            **found,
            "failed": [check for check in found["checks"] if not check["passed"]],
            "docs": Path(os.path.relpath(folder / found["docs"], out_dir)).as_posix(),
        }
        for domain, found in summary["domains"].items()
    ]


def _styles(folder: Path) -> dict[str, Any] | None:
    """What `styles fit` found of the Earth's styles; None where it has not run."""
    summary = _left(folder / STYLES.name / "summary.json")
    if summary is None:
        return None
    sheet = folder / STYLES.name / "sheet.png"
    return {
        "summary": summary,
        "sheet": picture(sheet, "crossearth styles fit", SHEET_BYTES) if sheet.is_file() else None,
        "coverage": _left(folder / COVERAGE.name / "coverage.json"),
    }


def _left(path: Path) -> dict[str, Any] | None:
    """What another step left in a JSON file, None where that step has not run.

    Raises:
        InputError: it is damaged, or not what the step wrote.
    """
    return read_checksummed(path) if path.is_file() else None


def _means(summary: Summary) -> dict[str, float]:
    """The few numbers that sum the table up, for `dvc metrics`, which puts all of them into one row."""
    return summary_metrics([(line.setting, line.score) for line in summary.lines])


def _metrics(summary: Summary) -> dict[str, float]:
    """The table's numbers by name, for MLflow."""
    found = [
        *((metric_name(line.recipe.metric_key, line.setting.abbr), line.score) for line in summary.lines),
        *((metric_name("gap", mean.name), mean.score) for mean in summary.gaps),
        *((metric_name("deviation", line.setting.abbr), line.deviation) for line in summary.lines),
    ]
    return {name: value for name, value in found if value is not None} | _means(summary)


def _track(summary: Summary, results: Sequence[RecipeResult], out_dir: Path) -> None:
    """Logs the report as a run of its own, the parent of the recipes' runs."""
    keys = sorted({result.recipe_hash for result in results})
    tags = {
        "kind": "benchmark",
        "settings": str(len(summary.lines)),
        "missing": str(len(summary.missing)),
        "selection": ", ".join(summary.selections),
        "seeds": ", ".join("none" if seed is None else str(seed) for seed in summary.seeds),
        "provenance": ", ".join(sorted({line.provenance for line in summary.lines})),
    }
    with start_run("benchmark", key=digest(keys), tags=tags) as run:
        run.log_metrics(_metrics(summary))
        run.describe((out_dir / "scores.md").read_text(encoding="utf-8"))
        run.log_artifact(out_dir, "report")
        scored = (metric_name(line.recipe.metric_key, line.setting.target) for line in summary.lines)
        columns = [*SUMMARY_METRICS, *dict.fromkeys(scored)]
        name = f"Recipes by {summary.metric} on unseen domains"
        run.save_view(VIEW, name, columns, SUMMARY_METRICS[0])
        run.adopt(keys)
