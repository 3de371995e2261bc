"""The report's charts as Plotly figures, without a background: the page's style sheet gives ink and paper."""

import csv
import json
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from crossearth.components.evaluate.results import CURVES, RecipeResult
from crossearth.components.report.summary import Drop, Line, Summary, distinct

# Okabe and Ito's, without their black
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#7a8794", "#d55e00", "#b8a800")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
LEAST_SPOKES = 4  # of a radar that shows a shape
CURVE_POINTS = 200  # of each curve, evenly taken
GRID = "rgba(120,132,144,.35)"  # on light paper and on dark
CLEAR = "rgba(0,0,0,0)"


def figures(
    summary: Summary, results: Sequence[RecipeResult], coverage: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Figures by the id of the element that shows them, as plain values; what tells nothing is left out.

    Args:
        results: whose curves are drawn.
        coverage: what `styles coverage` found, None where it has not run.
    """
    drawn = {"bars": bars(summary)}
    if summary.drops:
        drawn["drops"] = dumbbells(summary)
    if len(summary.lines) >= LEAST_SPOKES:
        drawn["radar"] = radar(summary)
    if any((result.folder / CURVES).is_file() for result in results):
        drawn["curves"] = curves(results)
    if coverage:
        drawn["scatter"] = scatter(coverage["scatter"])
    return {name: json.loads(figure.to_json()) for name, figure in drawn.items()}


def label(line: Line, summary: Summary) -> str:
    """A setting's name, with its selection rule where there are several."""
    name = line.setting.abbr
    return name if len(summary.selections) == 1 else f"{name}, {line.selection}"


def bars(summary: Summary) -> go.Figure:
    """The score of every setting with its interval, coloured by gap."""
    traces = []
    for place, gap in enumerate(distinct(line.setting.gap for line in summary.lines)):
        lines = [line for line in summary.lines if line.setting.gap == gap]
        above = [_points_apart(line.score, line.high) for line in lines]
        below = [_points_apart(line.score, line.low) for line in lines]
        traces.append(
            go.Bar(
                name=gap,
                orientation="h",
                marker_color=COLOURS[place % len(COLOURS)],
                y=[label(line, summary) for line in lines],
                x=_points(line.score for line in lines),
                error_x={"array": above, "arrayminus": below, "thickness": 1, "width": 2},
                hovertemplate=f"%{{y}}: %{{x:.1f}}<extra>{gap}</extra>",
            )
        )
    names = [label(line, summary) for line in summary.lines]
    figure = _figure(traces, 120 + 21 * len(names), bargap=0.25)
    figure.update_xaxes(title=f"{summary.metric}, %", range=[0, 100], fixedrange=True)
    figure.update_yaxes(autorange="reversed", fixedrange=True, tickmode="array", tickvals=names)
    return figure


def dumbbells(summary: Summary) -> go.Figure:
    """Per source the score at home and the mean over its unseen targets."""
    drops = summary.drops
    names = [_source(drop, summary) for drop in drops]
    ends = [value for drop in drops for value in (drop.unseen, drop.in_domain, None)]
    lines = go.Scatter(
        mode="lines",
        line={"color": "#7a8794", "width": 2},
        hoverinfo="skip",
        showlegend=False,
        x=_points(ends),
        y=[value for name in names for value in (name, name, None)],
    )
    dots = [
        go.Scatter(
            mode="markers",
            name=name,
            y=names,
            x=_points(values),
            marker={"color": colour, "symbol": symbol, "size": 12},
            hovertemplate=f"%{{y}}: %{{x:.1f}}<extra>{name}</extra>",
        )
        for name, colour, symbol, values in (
            ("in-domain", "#7a8794", "circle", [drop.in_domain for drop in drops]),
            ("unseen, mean", "#d55e00", "diamond", [drop.unseen for drop in drops]),
        )
    ]
    figure = _figure([lines, *dots], 130 + 34 * len(drops))
    figure.update_xaxes(title=f"{summary.metric}, %", range=[0, 100], fixedrange=True)
    figure.update_yaxes(autorange="reversed", fixedrange=True)
    return figure


def radar(summary: Summary) -> go.Figure:
    """All settings at a glance; published scores as a second line where they may be compared."""
    lines = [*summary.lines, summary.lines[0]]
    theta = [label(line, summary) for line in lines]
    traces = [
        go.Scatterpolar(
            name="this report",
            mode="lines+markers",
            fill="toself",
            fillcolor="rgba(0,114,178,.15)",
            line_color="#0072b2",
            r=_points(line.score for line in lines),
            theta=theta,
            hovertemplate="%{theta}: %{r:.1f}<extra></extra>",
        )
    ]
    if any(line.published is not None for line in lines):
        traces.append(
            go.Scatterpolar(
                name="published",
                mode="lines+markers",
                line={"color": "#d55e00", "dash": "dash"},
                marker_symbol="diamond",
                r=_points(line.published for line in lines),
                theta=theta,
                hovertemplate="%{theta}: %{r:.1f}<extra>published</extra>",
            )
        )
    figure = _figure(traces, 560, showlegend=len(traces) > 1, margin={"l": 60, "r": 60, "t": 40, "b": 40})
    figure.update_polars(
        bgcolor=CLEAR,
        radialaxis={"range": [0, 100], "gridcolor": GRID, "linecolor": GRID, "angle": 90, "tickangle": 90},
        angularaxis={"gridcolor": GRID, "linecolor": GRID, "direction": "clockwise"},
    )
    return figure


def curves(results: Sequence[RecipeResult]) -> go.Figure:
    """The loss of every training."""
    traces = [
        go.Scatter(
            mode="lines",
            name=name,
            x=[iteration for iteration, _ in points],
            y=[loss for _, loss in points],
            line={
                "color": COLOURS[place % len(COLOURS)],
                "dash": ("solid", "dash", "dot")[place // len(COLOURS) % 3],
            },
            hovertemplate=f"%{{x}}: %{{y:.3f}}<extra>{name}</extra>",
        )
        for place, (name, points) in enumerate(loss_points(results).items())
    ]
    figure = _figure(traces, 460, legend={"orientation": "h", "y": -0.15, "yanchor": "top", "bgcolor": CLEAR})
    figure.update_xaxes(title="iteration")
    figure.update_yaxes(title="loss", rangemode="tozero")
    return figure


def loss_points(results: Sequence[RecipeResult]) -> dict[str, list[tuple[int, float]]]:
    """Iterations and losses of every training whose curves are known, by its name."""
    many_seeds = len({result.seed for result in results}) > 1
    found = {}
    for result in results:
        path = result.folder / CURVES
        if not path.is_file():
            continue
        with path.open(newline="", encoding="utf-8") as file:
            points = [
                (int(row["iteration"]), float(row["loss"])) for row in csv.DictReader(file) if row["loss"]
            ]
        name = f"{result.recipe}, seed {result.seed}" if many_seeds else result.recipe
        found[name] = points[:: max(1, len(points) // CURVE_POINTS)]
    return {name: points for name, points in found.items() if points}


def scatter(groups: Mapping[str, Sequence[Sequence[float]]]) -> go.Figure:
    """The two leading style components: of the Earth's samples, the first group, and of domains' tiles."""
    traces = []
    for place, (name, points) in enumerate(groups.items()):
        domain = {"color": COLOURS[place % len(COLOURS)], "symbol": SYMBOLS[place % len(SYMBOLS)], "size": 7}
        traces.append(
            go.Scatter(
                mode="markers",
                name=name,
                x=[point[0] for point in points],
                y=[point[1] for point in points],
                marker=domain if place else {"color": "#9aa5b1", "size": 4},
                visible="legendonly" if place and name.endswith("(source)") else True,
                hovertemplate=f"%{{x:.2f}}, %{{y:.2f}}<extra>{name}</extra>",
            )
        )
    figure = _figure(traces, 640)
    figure.update_xaxes(title="first component", zeroline=False)
    figure.update_yaxes(title="second component", zeroline=False)
    return figure


def _source(drop: Drop, summary: Summary) -> str:
    return drop.source if len(summary.selections) == 1 else f"{drop.source}, {drop.selection}"


def _points(fractions: Any) -> list[float | None]:
    return [None if value is None else 100 * value for value in fractions]


def _points_apart(score: float | None, end: float | None) -> float | None:
    return None if end is None or score is None else abs(100 * (end - score))


def _figure(traces: list[Any], height: int, **layout: Any) -> go.Figure:
    figure = go.Figure(traces)
    figure.update_layout(
        template="none",
        height=height,
        font={"family": "system-ui, sans-serif", "size": 12},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        **{
            "margin": {"l": 10, "r": 20, "t": 10, "b": 40},
            "legend": {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "bgcolor": CLEAR},
        }
        | layout,
    )
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID, automargin=True)
    return figure
