"""The report's charts as pictures, for `dvc plots show`: one page of them needs no network."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crossearth.components.evaluate.results import RecipeResult
from crossearth.components.report.charts import COLOURS, label, loss_points
from crossearth.components.report.summary import Summary, distinct

IOU, LOSS = "iou.png", "loss.png"
DASHES = ("solid", "dashed", "dotted")
MUTED = "#7a8794"


def write_plots(summary: Summary, results: Sequence[RecipeResult], folder: Path) -> None:
    """Draws what the table says of every setting, and the loss of every training that is known.

    Args:
        folder: gets `iou.png` and, where a result has curves, `loss.png`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"text.parse_math": False, "font.size": 9, "axes.spines.right": False}):
        for name, figure in ((IOU, scores(summary)), (LOSS, losses(results))):
            if figure is not None:
                figure.savefig(folder / name, dpi=110, metadata={"Software": None})


def scores(summary: Summary) -> Figure:
    """Per setting the score with its interval, coloured by gap, and the IoU of every class as a small dot."""
    lines = summary.lines
    figure = Figure(figsize=(9, 1.6 + 0.24 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    for place, gap in enumerate(distinct(line.setting.gap for line in lines)):
        of_gap = [(row, line) for row, line in enumerate(lines) if line.setting.gap == gap]
        known = [(row, line.score) for row, line in of_gap if line.score is not None]
        colour = COLOURS[place % len(COLOURS)]
        axes.barh(
            [row for row, _ in known], [100 * score for _, score in known], 0.7, color=colour, label=gap
        )
        for row, line in of_gap:
            if line.low is not None and line.high is not None:
                axes.plot([100 * line.low, 100 * line.high], [row, row], color="black", linewidth=1)
    dots = [(100 * iou, row) for row, line in enumerate(lines) for iou in line.iou if iou is not None]
    x, y = [x for x, _ in dots], [y for _, y in dots]
    axes.scatter(x, y, s=9, color="white", edgecolor="black", linewidth=0.6, zorder=3)
    axes.set_yticks(range(len(lines)), [label(line, summary) for line in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"{summary.metric}, % (line: 95 % interval; dots: IoU of every class)")
    _finish(figure, axes)
    return figure


def losses(results: Sequence[RecipeResult]) -> Figure | None:
    """The loss of every training; None where none is known."""
    curves = loss_points(results)
    if not curves:
        return None
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, points) in enumerate(curves.items()):
        colour, dash = COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]
        axes.plot(*zip(*points, strict=True), color=colour, linestyle=dash, linewidth=1.4, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("iteration")
    axes.set_ylabel("loss")
    _finish(figure, axes)
    return figure


def _finish(figure: Figure, axes: Axes) -> None:
    axes.grid(color=MUTED, alpha=0.25)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
