"""Results on the terminal, as rich renderables; the command line prints them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from crossearth.components.evaluate.results import RecipeResult, find_results, nan_to_none
from crossearth.components.report.compare import Comparison, Difference
from crossearth.components.report.markdown import heading, per_cent
from crossearth.components.report.summary import summarise
from crossearth.data.catalog.domains import Catalog

BAR_CELLS = 20


def benchmark(scores: Sequence[Path], catalog: Catalog, replicates: int = 300) -> RenderableType:
    """The benchmark's table: a line per setting by gap, the means, what is missing.

    Raises:
        InputError: no results.
    """
    summary = summarise(find_results(scores), catalog, replicates)
    many_rules = len(summary.selections) > 1
    published = any(line.published is not None for line in summary.lines)
    table = _table(
        ["setting", "source", "target", "gap"],
        ["mIoU %", "95 % interval", "seeds", *(["published %"] if published else [])],
        ["", *(["selection"] if many_rules else [])],
    )
    previous = None
    for line in summary.lines:
        if previous not in (None, line.gap):
            table.add_section()
        previous = line.gap
        table.add_row(
            line.setting,
            line.source,
            line.target,
            line.gap,
            per_cent(line.miou),
            f"{per_cent(line.low)}–{per_cent(line.high)}",
            str(len(line.runs)),
            *([per_cent(line.published)] if published else []),
            _bar(line.miou),
            *([line.selection] if many_rules else []),
        )
    means = _table(["mean over"], ["settings", "mIoU %"], ["", *(["selection"] if many_rules else [])])
    for mean in summary.means:
        means.add_row(
            mean.name,
            str(mean.settings),
            per_cent(mean.miou),
            _bar(mean.miou),
            *([mean.selection] if many_rules else []),
        )
    parts: list[RenderableType] = [Text(heading(summary), style="bold")]
    if summary.synthetic:
        parts.append(Text("Drawn by code: not comparable with published scores.", style="yellow"))
    parts += [table, means]
    if summary.missing:
        names = ", ".join(setting.abbr for setting in summary.missing)
        parts.append(Text(f"not scored ({len(summary.missing)}): {names}", style="yellow"))
    return Group(*parts)


def run(result: RecipeResult) -> RenderableType:
    """One recipe's results: per setting the scores and the IoU of every class, and where they come from."""
    table = _table(
        ["setting", "target"], ["mIoU %", "accuracy %", "F1 %", *result.classes, "tiles", "tiles/s"], []
    )
    for each in result.settings:
        scores = result.scores(each)
        table.add_row(
            each.setting,
            each.target,
            *(
                per_cent(nan_to_none(value))
                for value in (scores.primary_metric, scores.accuracy, scores.mean_f1)
            ),
            *(per_cent(nan_to_none(value)) for value in scores.iou),
            str(each.tiles),
            f"{each.tiles / each.seconds:.1f}" if each.seconds else "",
        )
    provenances = ", ".join(sorted({each.provenance for each in result.settings}))
    facts = {
        "recipe": f"{result.recipe} (classes of {result.class_set})",
        "training": result.recipe_hash,
        "seed": "none" if result.seed is None else str(result.seed),
        "selection": result.selection,
        "weights": result.model_sha256,
        "data": provenances,
        "revision": str(result.lineage.get("git_revision", "")),
        "machine": str(result.lineage.get("machine", "")),
        "folder": str(result.folder),
    }
    width = max(map(len, facts))
    about = Text("\n".join(f"{name.ljust(width)}  {value}" for name, value in facts.items()))
    return Group(about, table)


def comparison(found: Comparison, a: str, b: str) -> RenderableType:
    """A comparison as a table.

    Args:
        a, b: what the two sides are called.
    """
    table = _table(["setting", "target"], ["A %", "B %", "B - A", "95 % interval", "p"], [""])
    for each in found.differences:
        _add_difference(table, each)
    table.add_section()
    _add_difference(table, found.mean)
    parts: list[RenderableType] = [Text(f"A  {a}\nB  {b}"), table]
    for side, only in (("A", found.only_a), ("B", found.only_b)):
        if only:
            parts.append(Text(f"only in {side}: {', '.join(only)}", style="yellow"))
    parts.append(
        Text("p: paired bootstrap over tiles, two-sided, per setting, not adjusted for their number")
    )
    return Group(*parts)


def _add_difference(table: Table, each: Difference) -> None:
    verdict = ""
    if each.p_value is not None and each.difference is not None and each.p_value < 0.05:
        verdict = "B better" if each.difference > 0 else "A better"
    table.add_row(
        each.setting,
        each.target,
        per_cent(each.a),
        per_cent(each.b),
        "" if each.difference is None else f"{100 * each.difference:+.1f}",
        "" if each.low is None or each.high is None else f"{100 * each.low:+.1f} to {100 * each.high:+.1f}",
        "" if each.p_value is None else f"{each.p_value:.4f}",
        verdict,
    )


def _table(left: Iterable[str], right: Iterable[str], more: Iterable[str]) -> Table:
    table = Table(header_style="bold")
    for justify, names in (("left", left), ("right", right), ("left", more)):
        for name in names:
            table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    return table


def _bar(share: float | None) -> str:
    return "" if share is None else "█" * round(BAR_CELLS * share)
