"""Results of many runs as one table: a line per setting, means per gap, the drop on unseen domains."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from crossearth.components.evaluate.results import RecipeResult, SettingResult, named, nan_to_none, weakest
from crossearth.data.catalog.domains import IN_DOMAIN, UNSEEN, Catalog, Setting
from crossearth.data.common.errors import InputError
from crossearth.model.scores import bootstrap, interval

T = TypeVar("T")
SeedResult = tuple[RecipeResult, SettingResult]


@dataclass(frozen=True)
class Line:
    """A setting under one selection rule, over its seeds; scores are fractions 0..1, None where undefined.

    Attributes:
        setting: as it was scored.
        runs: one per seed, by seed.
        score: mean of the seeds' primary scores.
        deviation: their standard deviation (n - 1), None for a single seed.
        low, high: 95 % bootstrap interval of `score` over tiles.
        iou: mean per class, None for a class that the target does not hold.
    """

    setting: Setting
    selection: str
    provenance: str
    runs: tuple[SeedResult, ...]
    score: float | None
    deviation: float | None
    low: float | None
    high: float | None
    iou: tuple[float | None, ...]
    published: float | None

    @property
    def recipe(self) -> RecipeResult:
        """The training with the first seed; recipe, class set and classes are those of every seed."""
        return self.runs[0][0]

    @property
    def metric(self) -> str:
        return self.recipe.metric

    @property
    def seeds(self) -> tuple[int | None, ...]:
        return tuple(recipe.seed for recipe, _ in self.runs)


@dataclass(frozen=True)
class Mean:
    """Mean primary score of those settings of a group that have one.

    Attributes:
        metric: what is averaged, as `shared_metric` says it.
        settings: their number.
    """

    name: str
    selection: str
    metric: str
    settings: int
    score: float | None


@dataclass(frozen=True)
class Drop:
    """How much a source's model loses on domains that it has not seen."""

    source: str
    class_set: str
    selection: str
    in_domain: float
    unseen: float
    targets: int

    @property
    def points(self) -> float:
        """In-domain minus unseen, as a fraction."""
        return self.in_domain - self.unseen


@dataclass(frozen=True)
class Summary:
    """Everything that a report says in numbers.

    Attributes:
        lines: in the catalog's order.
        gaps: mean per gap and selection rule.
        overall: mean of the unseen and of the in-domain settings, per selection rule.
        wanted: settings that a full table would have: the benchmark's where one of them was scored, the
            user's where one of those was.
    """

    lines: tuple[Line, ...]
    gaps: tuple[Mean, ...]
    overall: tuple[Mean, ...]
    drops: tuple[Drop, ...]
    wanted: tuple[Setting, ...]

    @property
    def missing(self) -> tuple[Setting, ...]:
        """Those of `wanted` without a result."""
        scored = {line.setting.abbr for line in self.lines}
        return tuple(setting for setting in self.wanted if setting.abbr not in scored)

    @property
    def means(self) -> tuple[Mean, ...]:
        """`overall`, then the gaps between domains."""
        names = {mean.name for mean in self.overall}
        return (*self.overall, *(mean for mean in self.gaps if mean.name not in names))

    @property
    def metric(self) -> str:
        """What the scores of its lines are."""
        return shared_metric(self.lines)

    @property
    def selections(self) -> tuple[str, ...]:
        return distinct(line.selection for line in self.lines)

    @property
    def seeds(self) -> tuple[int | None, ...]:
        return distinct(seed for line in self.lines for seed in line.seeds)

    @property
    def methods(self) -> tuple[str, ...]:
        """Whose numbers the models were trained with, as their descriptions have it; none where unknown."""
        models = [recipe.lineage.get("model", {}) for line in self.lines for recipe, _ in line.runs]
        return tuple(filter(None, distinct(str(model.get("method") or "") for model in models)))

    @property
    def synthetic(self) -> bool:
        """Whether any number was made from drawn data."""
        return any(line.provenance == "synthetic" for line in self.lines)

    @property
    def own(self) -> bool:
        """Whether all of it is about settings of the user's."""
        return all(line.setting.own for line in self.lines)


def summarise(results: Sequence[RecipeResult], catalog: Catalog, replicates: int) -> Summary:
    """Puts results together.

    Args:
        results: any number of recipes, seeds and selection rules.
        catalog: gives the order, and the settings that a full table would have.
        replicates: bootstrap replicates per interval; 0 leaves the intervals out.

    Raises:
        InputError: two results for one setting, selection rule and seed; seeds of a setting that were scored
            on different tiles.
    """
    grouped: dict[tuple[str, str], list[SeedResult]] = {}
    for result in results:
        for each in result.settings:
            grouped.setdefault((each.setting.abbr, result.selection), []).append((result, each))
    order = {abbr: place for place, abbr in enumerate(catalog.settings)}
    keys = sorted(grouped, key=lambda key: (order.get(key[0], len(order)), key))
    lines = tuple(_line(grouped[key], replicates) for key in keys)
    gaps, overall = [], []
    for selection in distinct(line.selection for line in lines):
        ruled = [line for line in lines if line.selection == selection]
        for gap in distinct(line.setting.gap for line in ruled):
            gaps.append(_mean(gap, selection, [line for line in ruled if line.setting.gap == gap]))
        for name, unseen in ((UNSEEN, True), (IN_DOMAIN, False)):
            if chosen := [line for line in ruled if line.setting.unseen is unseen]:
                overall.append(_mean(name, selection, chosen))
    kinds = {line.setting.own for line in lines}
    return Summary(
        lines=lines,
        gaps=tuple(gaps),
        overall=tuple(overall),
        drops=tuple(_drops(lines)),
        wanted=tuple(setting for setting in catalog.settings.values() if setting.own in kinds),
    )


def distinct(values: Iterable[T]) -> tuple[T, ...]:
    """Each value once, in the order in which they come."""
    return tuple(dict.fromkeys(values))


def shared_metric(lines: Iterable[Line]) -> str:
    """What the primary scores of `lines` are: "IoU" where some are a mean over classes and some are not."""
    metrics = {line.metric for line in lines}
    return metrics.pop() if len(metrics) == 1 else "IoU"


def facts(line: Line) -> dict[str, Any]:
    """A setting's scores as plain values, fractions 0..1."""
    return {
        **named(line.setting),
        "recipe": line.recipe.recipe,
        "class_set": line.recipe.class_set,
        "selection": line.selection,
        "seeds": " ".join("none" if seed is None else str(seed) for seed in line.seeds),
        "metric": line.metric,
        "score": line.score,
        "low": line.low,
        "high": line.high,
        "deviation": line.deviation,
        "tiles": line.runs[0][1].tiles,
        "provenance": line.provenance,
        "evidence": line.setting.evidence,
    }


def setting_columns(summary: Summary) -> dict[str, list[str]]:
    """A table's first columns, by heading: a cell per line."""
    rows = [named(line.setting) for line in summary.lines]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _line(runs: list[SeedResult], replicates: int) -> Line:
    runs = sorted(runs, key=lambda run: (run[0].seed is not None, run[0].seed or 0))
    recipe, first = runs[0]
    for (one, _), (other, _) in pairwise(runs):
        if one.seed == other.seed:
            raise InputError(
                f"two results for {first.setting.abbr} with selection {recipe.selection} and seed {one.seed}",
                where=f"{one.folder} and {other.folder}",
                next_step="report one of them, or set them side by side with `crossearth compare`",
            )
    if len({each.manifest_digest for _, each in runs}) > 1:
        raise InputError(
            f"the seeds of {first.setting.abbr} were scored on different tiles of {first.setting.target}",
            where=", ".join(str(each.folder) for each, _ in runs),
            next_step="evaluate all of them on one ingested domain",
        )
    scores = [result.scores(each) for result, each in runs]
    primary_scores = np.array([each.primary_metric for each in scores])
    provenance = weakest(each.provenance for _, each in runs)
    low, high = float("nan"), float("nan")
    if replicates:
        tile_sets = [result.tile_counts(each) for result, each in runs]
        # the tiles decide the draws: the interval does not hang on which other settings are in the report
        rng = np.random.default_rng(int(first.manifest_digest[:16], 16))
        draws = bootstrap(tile_sets, recipe.primary_metric, replicates, rng)
        low, high = interval(draws.mean(axis=0))
    return Line(
        setting=first.setting,
        selection=recipe.selection,
        provenance=provenance,
        runs=tuple(runs),
        score=nan_to_none(primary_scores.mean()),
        deviation=nan_to_none(primary_scores.std(ddof=1)) if len(runs) > 1 else None,
        low=nan_to_none(low),
        high=nan_to_none(high),
        iou=tuple(nan_to_none(value) for value in np.mean([each.iou for each in scores], axis=0)),
        published=first.published if provenance == "publisher" else None,
    )


def _mean(name: str, selection: str, lines: Sequence[Line]) -> Mean:
    values = [line.score for line in lines if line.score is not None]
    mean = float(np.mean(values)) if values else None
    return Mean(name, selection, shared_metric(lines), len(values), mean)


def _drops(lines: Sequence[Line]) -> Iterable[Drop]:
    def model(line: Line) -> tuple[str, str, str]:
        return line.setting.source, line.recipe.class_set, line.selection

    for seen in lines:
        if seen.setting.unseen or seen.score is None:
            continue
        unseen = [
            line.score
            for line in lines
            if line.setting.unseen and line.score is not None and model(line) == model(seen)
        ]
        if unseen:
            yield Drop(*model(seen), seen.score, float(np.mean(unseen)), len(unseen))
