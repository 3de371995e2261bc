"""The table of a grid: a row per combination, a column per setting, over the seeds that are there."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from crossearth.components.ablate.grid import Cell, Job, shown
from crossearth.components.evaluate.results import RecipeResult, per_cent, read_results
from crossearth.components.report.markdown import SELECTIONS
from crossearth.components.runtime.tables import TextTable
from crossearth.data.common.files import markdown_table
from crossearth.model.weights.checkpoint import read_meta


@dataclass(frozen=True)
class Score:
    """Of one combination on one setting: the primary metric per seed, fractions."""

    cell: Cell
    setting: str
    unseen: bool
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)


@dataclass(frozen=True)
class Outcome:
    """What is there of a grid.

    Attributes:
        results: of its finished jobs.
        scores: a row's cells, on unseen domains first.
        held_out: (combination, recipe) -> scores on held-out tiles of the source, by which parameters may be
            chosen.
    """

    results: tuple[RecipeResult, ...]
    scores: tuple[Score, ...]
    held_out: tuple[Score, ...]
    cells: tuple[Cell, ...]
    jobs: int

    @property
    def settings(self) -> list[str]:
        """Unseen domains first."""
        return [*dict.fromkeys(each.setting for each in self.scores)]

    def unseen_mean(self, cell: Cell) -> float | None:
        """Mean over the unseen settings; None where one of them is missing."""
        wanted = {each.setting for each in self.scores if each.unseen}
        means = [each.mean for each in self.scores if each.unseen and each.cell == cell]
        return statistics.mean(means) if wanted and len(means) == len(wanted) else None


def collect(jobs: Sequence[Job], finished: Sequence[Job]) -> Outcome:
    """Reads the results of the finished ones among all jobs; of a refused one older results may lie there."""
    values: dict[tuple[bool, bool, str, int], list[float]] = {}  # held out, seen, name, row -> a score a seed
    cells = list({job.cell.folder: job.cell for job in jobs}.values())
    results = []
    for job in sorted(finished, key=jobs.index):
        result, row = read_results(job.scores), cells.index(job.cell)
        results.append(result)
        found: dict[tuple[bool, bool, str, int], float | None] = {
            (False, not each.setting.unseen, each.setting.abbr, row): result.scores(each).primary_metric
            for each in result.settings
        }
        found[True, True, f"held out of {job.recipe}", row] = read_meta(job.model).get("held_out_score")
        for column, value in found.items():
            if value is not None and not math.isnan(value):
                values.setdefault(column, []).append(float(value))
    scores: dict[bool, list[Score]] = {True: [], False: []}
    for (held, seen, name, row), each in sorted(values.items(), key=lambda item: item[0][1]):
        scores[held].append(Score(cells[row], name, not seen, tuple(each)))
    return Outcome(tuple(results), tuple(scores[False]), tuple(scores[True]), tuple(cells), len(jobs))


def markdown(outcome: Outcome, name: str) -> str:
    """The table as Markdown, with what must stand beside every number of it."""
    rules = dict.fromkeys(result.selection for result in outcome.results)
    methods = dict.fromkeys(str(result.lineage["model"].get("method", "")) for result in outcome.results)
    seeds = sorted({result.seed for result in outcome.results if result.seed is not None})
    data = dict.fromkeys(each.provenance for result in outcome.results for each in result.settings)
    told = "; ".join(f"{rule} ({SELECTIONS.get(rule, 'own rule')})" for rule in rules)
    parts = [
        f"# {name}: primary score in per cent",
        f"Data: {', '.join(data)} · selection: {told}"
        f" · method: {'; '.join(methods)} · seeds: {', '.join(map(str, seeds))}"
        f" · {len(outcome.results)} of {outcome.jobs} trainings. Mean and standard deviation over seeds.",
        markdown_table(*_rows(outcome)),
    ]
    if outcome.held_out:
        parts.append("Held-out tiles of the source are the only ones by which a row may be chosen.")
    return "\n\n".join(parts) + "\n"


def text_table(outcome: Outcome, name: str) -> TextTable:
    """For a terminal: settings are the first to go, for what a row is chosen by must stay."""
    columns, lines = _rows(outcome)
    title, scores = f"{name}: primary score in per cent", columns[len(outcome.cells[0].values) :]
    return TextTable(columns, lines, title=title, numbers=scores, spare=outcome.settings[::-1])


def _rows(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    names = list(outcome.cells[0].values)
    held = list(dict.fromkeys(each.setting for each in outcome.held_out))
    columns = [*names, *outcome.settings, "mean unseen", *held]
    lines = []
    for cell in outcome.cells:
        scores = {each.setting: each for each in (*outcome.scores, *outcome.held_out) if each.cell == cell}
        here, chosen_by = ([_written(scores.get(name)) for name in of] for of in (outcome.settings, held))
        mean = per_cent(outcome.unseen_mean(cell))
        lines.append([*map(shown, cell.values.values()), *here, mean, *chosen_by])
    return columns, lines


def _written(score: Score | None) -> str:
    if score is None:
        return ""
    several = len(score.values) > 1
    return per_cent(score.mean) + (f" ± {per_cent(statistics.stdev(score.values))}" if several else "")
