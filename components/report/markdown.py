"""The benchmark's table as Markdown, and how its numbers are written."""

from crossearth.components.report.summary import Line, Summary

SELECTIONS = {
    "last": "the last iterate, as the authors do",
    "best-source": "the best iterate on held-out scenes of the source",
    "released": "as released by the authors",
}


def per_cent(value: float | None) -> str:
    """A fraction as the paper prints it: per cent with one digit; a blank where it is undefined."""
    return "" if value is None else f"{100 * value:.1f}"


def heading(summary: Summary) -> str:
    """What must stand over every table of these numbers: data, selection rule, seeds."""
    kinds = sorted({line.provenance == "synthetic" for line in summary.lines}, reverse=True)
    data = " and ".join("synthetic miniatures" if kind else "real imagery" for kind in kinds).capitalize()
    rules = "; ".join(f"{rule} ({SELECTIONS.get(rule, 'own rule')})" for rule in summary.selections)
    seeds = ", ".join("none" if seed is None else str(seed) for seed in summary.seeds)
    methods = "; ".join(summary.methods)
    return f"{data} · selection: {rules} · seed: {seeds}" + (f" · method: {methods}" if methods else "")


def markdown(summary: Summary) -> str:
    """The table as Markdown, ready to be pasted."""
    parts = [
        f"# {len(summary.lines)} settings, mIoU in per cent",
        heading(summary) + ". Brackets: 95 % bootstrap interval over tiles.",
    ]
    if summary.synthetic:
        parts.append(
            "**Synthetic data: drawn by code to exercise the pipeline. These numbers are not comparable with"
            " published scores.**"
        )
    parts.append(_settings(summary))
    means = [[mean.name, mean.selection, str(mean.settings), per_cent(mean.miou)] for mean in summary.means]
    parts += ["## Means", table(["group", "selection", "settings", "mIoU"], means)]
    if summary.drops:
        parts += ["## From the seen domain to unseen ones", _drops(summary)]
    if summary.missing:
        parts += ["## Not scored", ", ".join(setting.abbr for setting in summary.missing)]
    return "\n\n".join(parts) + "\n"


def _settings(summary: Summary) -> str:
    """A row per setting; published scores and selection rules only where they tell something."""
    columns = {
        "setting": [line.setting for line in summary.lines],
        "source": [line.source for line in summary.lines],
        "target": [line.target for line in summary.lines],
        "gap": [line.gap for line in summary.lines],
        "mIoU": [per_cent(line.miou) for line in summary.lines],
        "interval": [_interval(line) for line in summary.lines],
        "sd": [per_cent(line.deviation) for line in summary.lines],
        "seeds": [str(len(line.runs)) for line in summary.lines],
    }
    if len(summary.selections) > 1:
        columns["selection"] = [line.selection for line in summary.lines]
    if any(line.published is not None for line in summary.lines):
        columns["published"] = [per_cent(line.published) for line in summary.lines]
        columns["evidence"] = [line.evidence for line in summary.lines]
    return table(list(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def _interval(line: Line) -> str:
    return "" if line.low is None else f"[{per_cent(line.low)}, {per_cent(line.high)}]"


def _drops(summary: Summary) -> str:
    rows = [
        [
            drop.source,
            per_cent(drop.in_domain),
            per_cent(drop.unseen),
            per_cent(drop.points),
            str(drop.targets),
        ]
        for drop in summary.drops
    ]
    return table(["source", "in-domain", "unseen mean", "drop in points", "targets"], rows)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table as Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
