"""Results for the command line: tables for a terminal, the same numbers as CSV and JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from crossearth.components.evaluate.results import RecipeResult, find_results, nan_to_none, per_cent, rows_of
from crossearth.components.report.compare import Comparison, Difference
from crossearth.components.report.markdown import heading
from crossearth.components.report.summary import Summary, distinct, facts, setting_columns, summarise
from crossearth.components.runtime.tables import TextTable, View, bar
from crossearth.data.catalog.domains import Catalog, PublishedScore
from crossearth.model.scores import OTHER_SCORES

SHORT = {"mIoU": "mIoU %", "IoU of the foreground": "IoU %", "IoU": "IoU %"}


def benchmark(scores: Sequence[Path], catalog: Catalog, replicates: int) -> View:
    """The benchmark's table: a line per setting by gap, the means, what is missing.

    Args:
        scores: folders of results, or folders of such folders.
        catalog: has the order of the settings and the published scores.
        replicates: bootstrap replicates behind each interval; equal numbers give equal intervals.

    Raises:
        InputError: no results.
    """
    summary = summarise(find_results(scores), catalog, replicates)
    parts: list[RenderableType] = [Text(heading(summary), style="bold")]
    if summary.synthetic:
        parts.append(Text("Drawn by code: not comparable with published scores.", style="yellow"))
    parts += [Text(), _settings(summary), Text(), _means(summary)]
    if summary.metric == "IoU of the foreground":
        parts.append(Text("IoU: of the foreground"))
    if summary.missing:
        names = ", ".join(setting.abbr for setting in summary.missing)
        parts.append(Text(f"not scored ({len(summary.missing)}): {names}", style="yellow"))
    published = {line.setting.abbr: catalog.scores.get(line.setting.abbr, ()) for line in summary.lines}
    rows = [
        facts(line)
        | {f"published {score.method}": score.miou / 100 for score in published[line.setting.abbr]}
        for line in summary.lines
    ]
    return View(Group(*parts), rows, _everything(summary, published))


def _settings(summary: Summary) -> TextTable:
    score = SHORT[summary.metric]
    columns = setting_columns(summary) | {
        score: [per_cent(line.score) for line in summary.lines],
        "95 % interval": [_interval(line.low, line.high) for line in summary.lines],
    }
    if len({line.metric for line in summary.lines}) > 1:
        columns["of"] = ["mean" if line.metric == "mIoU" else "foreground" for line in summary.lines]
    if len(summary.seeds) > 1:
        columns["SD"] = [per_cent(line.deviation) for line in summary.lines]
        columns["seeds"] = [str(len(line.runs)) for line in summary.lines]
    if any(line.published is not None for line in summary.lines):
        columns["published %"] = [per_cent(line.published) for line in summary.lines]
    if len(summary.selections) > 1:
        columns["selection"] = [line.selection for line in summary.lines]
    columns[""] = [bar(line.score) for line in summary.lines]
    return TextTable(
        list(columns),
        list(zip(*columns.values(), strict=True)),
        numbers=(score, "95 % interval", "SD", "seeds", "published %"),
        spare=("", "source", "gap", "seeds", "target"),
        sections=[place for place, (gap, after) in enumerate(pairwise(columns["gap"])) if gap != after],
    )


def _means(summary: Summary) -> TextTable:
    columns = {
        "mean over": [mean.name for mean in summary.means],
        "settings": [str(mean.settings) for mean in summary.means],
        "%": [per_cent(mean.score) for mean in summary.means],
        "of": [mean.metric for mean in summary.means],
    }
    if len(summary.selections) > 1:
        columns["selection"] = [mean.selection for mean in summary.means]
    columns[""] = [bar(mean.score) for mean in summary.means]
    rows = list(zip(*columns.values(), strict=True))
    return TextTable(list(columns), rows, numbers=("settings", "%"), spare=("",))


def _everything(summary: Summary, published: dict[str, tuple[PublishedScore, ...]]) -> dict[str, Any]:
    settings = [
        facts(line)
        | {
            "seeds": list(line.seeds),
            "iou": dict(zip(line.recipe.classes, line.iou, strict=True)),
            "comparable_with_published": line.provenance == "publisher",
            "published": [asdict(score) for score in published[line.setting.abbr]],
        }
        for line in summary.lines
    ]
    return {
        "settings": settings,
        "means": [asdict(mean) for mean in summary.means],
        "drops": [asdict(drop) for drop in summary.drops],
        "missing": [setting.abbr for setting in summary.missing],
    }


def run(result: RecipeResult) -> View:
    """One recipe's results: where they come from, the scores of every setting, and those of every class."""
    parts: list[RenderableType] = [Text(_about(result)), Text()]
    if result.primary_metric == "foreground":
        parts.append(Text(f"IoU: of the foreground, {result.classes[1]}"))
    parts += [_settings_of(result), Text(), _classes_of(result)]
    rows = rows_of(result)
    return View(Group(*parts), rows, asdict(result) | {"folder": str(result.folder), "scores": rows})


def _settings_of(result: RecipeResult) -> TextTable:
    others = [f"{title} %" for _, title in OTHER_SCORES.values()]
    numbers = (SHORT[result.metric], *others, "tiles", "tiles/s")
    rows = []
    for each in result.settings:
        scores = result.scores(each)
        of_target = [scores.primary_metric, *(getattr(scores, name) for name, _ in OTHER_SCORES.values())]
        shares = (per_cent(nan_to_none(value)) for value in of_target)
        pace = f"{each.tiles / each.seconds:.1f}" if each.seconds else ""
        rows.append((each.setting.abbr, each.setting.target, *shares, each.tiles, pace))
    return TextTable(("setting", "target", *numbers), rows, numbers=numbers, spare=("tiles/s", "target"))


def _classes_of(result: RecipeResult) -> TextTable:
    columns: dict[str, list[str]] = {name: [] for name in ("setting", "class", "IoU %", "F1 %")}
    for each in result.settings:
        scores, num = result.scores(each), len(result.classes)
        columns["setting"] += [each.setting.abbr, *[""] * (num - 1)]
        columns["class"] += result.classes
        columns["IoU %"] += [per_cent(nan_to_none(value)) for value in scores.iou]
        columns["F1 %"] += [per_cent(nan_to_none(value)) for value in scores.f1]
        if any(other.published_iou for other in result.settings):
            columns.setdefault("published %", []).extend(map(per_cent, each.published_iou or [None] * num))
        columns.setdefault("labelled px", []).extend(f"{pixels:,}" for pixels in scores.pixels)
        columns.setdefault("", []).extend(bar(nan_to_none(value)) for value in scores.iou)
    ends = range(len(result.classes) - 1, len(columns["class"]) - 1, len(result.classes))
    return TextTable(
        list(columns),
        list(zip(*columns.values(), strict=True)),
        numbers=("IoU %", "F1 %", "published %", "labelled px"),
        spare=("", "labelled px"),
        sections=ends,
    )


def _about(result: RecipeResult) -> str:
    facts = {
        "recipe": f"{result.recipe} (classes of {result.class_set})",
        "training": result.recipe_hash,
        "seed": "none" if result.seed is None else str(result.seed),
        "selection": result.selection,
        "weights": result.model_sha256,
        "data": ", ".join(distinct(each.provenance for each in result.settings)),
        "revision": str(result.lineage.get("git_revision", "")),
        "machine": str(result.lineage.get("machine", "")),
        "folder": str(result.folder),
    }
    width = max(map(len, facts))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in facts.items())


def comparison(found: Comparison, a: str, b: str) -> View:
    """A comparison as a table; `a` and `b` are what the two sides are called."""
    table = TextTable(
        ("setting", "target", "of", "A %", "B %", "B - A", "95 % interval", "p", ""),
        [
            (
                found.name(each),
                each.setting.target if each.setting else "",
                each.metric,
                per_cent(each.a),
                per_cent(each.b),
                signed(each.difference),
                "" if each.low is None else f"{signed(each.low)} to {signed(each.high)}",
                "" if each.p_value is None else f"{each.p_value:.4f}",
                _verdict(each),
            )
            for each in found.all
        ],
        numbers=("A %", "B %", "B - A", "95 % interval", "p"),
        spare=("target", "of"),
        sections=[len(found.differences) - 1],
    )
    parts: list[RenderableType] = [Text(f"A  {a}\nB  {b}\n"), table]
    for side, only in (("A", found.only_a), ("B", found.only_b)):
        if only:
            parts.append(Text(f"only in {side}: {', '.join(only)}", style="yellow"))
    parts.append(
        Text("p: paired bootstrap over tiles, two-sided, per setting, not adjusted for their number")
    )
    rows = []
    for each in found.all:
        source, target = (each.setting.source, each.setting.target) if each.setting else (None, None)
        named = {"setting": found.name(each), "source": source, "target": target}
        rows.append(named | {name: value for name, value in asdict(each).items() if name not in named})
    data = {"a": a, "b": b, "differences": rows, "only_a": found.only_a, "only_b": found.only_b}
    return View(Group(*parts), rows, data)


def signed(value: float | None) -> str:
    """A difference of fractions in points, with its sign; a blank where it is undefined."""
    return "" if value is None else f"{100 * value:+.1f}"


def _verdict(each: Difference) -> str:
    if each.p_value is None or each.difference is None or each.p_value >= 0.05:
        return ""
    return "B better" if each.difference > 0 else "A better"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None else f"{per_cent(low)} to {per_cent(high)}"
