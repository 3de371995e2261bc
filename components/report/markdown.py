"""The report's table as Markdown and LaTeX, and how its numbers are written."""

from tabulate import tabulate

from crossearth.components.evaluate.results import per_cent
from crossearth.components.report.summary import Line, Summary, setting_columns
from crossearth.data.common.files import markdown_table

SELECTIONS = {
    "last": "the last iterate, as the authors do",
    "best-source": "the best iterate on held-out scenes of the source",
    "released": "as released by the authors",
}


def title(summary: Summary) -> str:
    """What a report is about: the benchmark, or the user's own sources and targets."""
    if not summary.own:
        return "CrossEarth benchmark"
    names = dict.fromkeys(
        name for line in summary.lines for name in (line.setting.source, line.setting.target)
    )
    return ", ".join(list(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def heading(summary: Summary) -> str:
    """What must stand over every table of these numbers: data, selection rule, seeds."""
    kinds = sorted({line.provenance == "synthetic" for line in summary.lines}, reverse=True)
    data = " and ".join("synthetic miniatures" if kind else "real imagery" for kind in kinds).capitalize()
    rules = "; ".join(f"{rule} ({SELECTIONS.get(rule, 'own rule')})" for rule in summary.selections)
    seeds = ", ".join("none" if seed is None else str(seed) for seed in summary.seeds)
    methods = "; ".join(summary.methods)
    return f"{data} | selection: {rules} | seed: {seeds}" + (f" | method: {methods}" if methods else "")


def interval_note(summary: Summary) -> str:
    """What the interval is, and the deviation where there are several seeds."""
    text = "95 % bootstrap interval over tiles"
    if len(summary.seeds) > 1:
        text += "; several seeds: their mean, its interval over the same tiles, and their standard deviation"
    return text


def markdown(summary: Summary) -> str:
    """The tables as Markdown, ready to be pasted."""
    parts = [
        f"# {title(summary)}: {len(summary.lines)} settings, {summary.metric} in per cent",
        f"{heading(summary)}. Brackets: {interval_note(summary)}.",
    ]
    if summary.synthetic:
        parts.append(
            "**Synthetic data: drawn by code to exercise the pipeline. These numbers are not comparable with"
            " published scores.**"
        )
    settings = _settings(summary)
    parts.append(markdown_table(list(settings), zip(*settings.values(), strict=True)))
    means = [
        [mean.name, mean.selection, mean.settings, mean.metric, per_cent(mean.score)]
        for mean in summary.means
    ]
    parts += ["## Means", markdown_table(["group", "selection", "settings", "metric", "mean"], means)]
    if summary.drops:
        drops = [
            [drop.source, *map(per_cent, (drop.in_domain, drop.unseen, drop.points)), drop.targets]
            for drop in summary.drops
        ]
        columns = ["source", "in-domain", "unseen mean", "drop in points", "targets"]
        parts += ["## From the seen domain to unseen ones", markdown_table(columns, drops)]
    if summary.missing:
        parts += ["## Not scored", ", ".join(setting.abbr for setting in summary.missing)]
    return "\n\n".join(parts) + "\n"


def latex(summary: Summary) -> str:
    """The table of the settings for a paper (package booktabs), special characters escaped."""
    columns = _settings(summary)
    words = ("setting", "source", "target", "gap", "metric", "selection", "evidence")
    align = ["left" if name in words else "right" for name in columns]
    return f"{tabulate(columns, 'keys', 'latex_booktabs', colalign=align, disable_numparse=True)}\n"


def _settings(summary: Summary) -> dict[str, list[str]]:
    """A column per fact, a cell per setting; facts that tell nothing are left out."""
    lines = summary.lines
    columns = setting_columns(summary)
    columns[summary.metric] = [per_cent(line.score) for line in lines]
    columns["interval"] = [_interval(line) for line in lines]
    if len({line.metric for line in lines}) > 1:
        columns["metric"] = [line.metric for line in lines]
    if len(summary.seeds) > 1:
        columns["sd"] = [per_cent(line.deviation) for line in lines]
        columns["seeds"] = [str(len(line.runs)) for line in lines]
    if len(summary.selections) > 1:
        columns["selection"] = [line.selection for line in lines]
    if any(line.published is not None for line in lines):
        columns["published"] = [per_cent(line.published) for line in lines]
        columns["evidence"] = [line.setting.evidence for line in lines]
    return columns


def _interval(line: Line) -> str:
    return "" if line.low is None else f"[{per_cent(line.low)}, {per_cent(line.high)}]"
