"""Is A better than B? Setting by setting on the same tiles, with paired bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossearth.components.evaluate.results import find_results, nan_to_none
from crossearth.components.report.summary import Line, shared_metric, summarise
from crossearth.data.catalog.domains import Catalog, Setting
from crossearth.data.common.errors import InputError
from crossearth.model.scores import Fractions, bootstrap, interval, paired_p_value

REPLICATES = 10_000  # the smallest p-value is about 2 / REPLICATES


@dataclass(frozen=True)
class Difference:
    """B minus A on one target, as fractions; None where a score is undefined.

    Attributes:
        setting: None = the mean over several.
        low, high: 95 % interval of the difference over resampled tiles, the same draws for both.
        p_value: two-sided, of no difference; not adjusted for the number of settings.
    """

    setting: Setting | None
    metric: str
    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    tiles: int


@dataclass(frozen=True)
class Comparison:
    """Two sets of results, where both have one.

    Attributes:
        mean: over the settings, their tiles resampled independently of each other.
        only_a, only_b: settings without a counterpart.
    """

    differences: tuple[Difference, ...]
    mean: Difference
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    @property
    def all(self) -> tuple[Difference, ...]:
        """The settings, then their mean."""
        return (*self.differences, self.mean)

    def name(self, difference: Difference) -> str:
        """What a row of it is called."""
        return difference.setting.abbr if difference.setting else f"mean of {len(self.differences)}"


def compare(a: Sequence[Path], b: Sequence[Path], catalog: Catalog) -> Comparison:
    """Compares the results in folders `a` and `b`; several seeds of a setting count as their mean.

    Args:
        a, b: folders of results, or folders of such folders.
        catalog: gives the order of the settings.

    Raises:
        InputError: no results; no setting in common; a setting scored on different tiles; a side that has a
            setting under two selection rules.
    """
    ours, theirs = (_by_setting(folders, catalog) for folders in (a, b))
    shared = [setting for setting in ours if setting in theirs]
    if not shared:
        raise InputError(
            "the two sides have no setting in common",
            expected=f"results for one of {', '.join(ours)}",
            next_step="evaluate both on the same targets",
        )
    differences, draws = zip(*(_difference(ours[name], theirs[name]) for name in shared), strict=True)
    metric = shared_metric(ours[name] for name in shared)
    return Comparison(
        differences=differences,
        mean=_mean(metric, differences, np.mean(draws, axis=0)),
        only_a=tuple(setting for setting in ours if setting not in theirs),
        only_b=tuple(setting for setting in theirs if setting not in ours),
    )


def _by_setting(folders: Sequence[Path], catalog: Catalog) -> dict[str, Line]:
    lines: dict[str, Line] = {}
    for line in summarise(find_results(folders), catalog, replicates=0).lines:
        name = line.setting.abbr
        if name in lines:
            raise InputError(
                f"{name} has results under the selection rules {lines[name].selection} and {line.selection}",
                where=", ".join(map(str, folders)),
                next_step="name the folders of one of them",
            )
        lines[name] = line
    return lines


def _difference(a: Line, b: Line) -> tuple[Difference, Fractions]:
    digests = {result.manifest_digest for line in (a, b) for _, result in line.runs}
    if len(digests) > 1:
        raise InputError(
            f"A and B were scored on different tiles of {a.setting.target}: manifests "
            + ", ".join(sorted(digest[:16] for digest in digests)),
            where=a.setting.abbr,
            next_step="evaluate both on one ingested domain",
        )
    if (a.recipe.class_set, a.recipe.classes) != (b.recipe.class_set, b.recipe.classes):
        raise InputError(
            f"A scores the classes of {a.recipe.class_set}, B those of {b.recipe.class_set}",
            where=a.setting.abbr,
        )
    tiles = [result.tile_counts(each) for line in (a, b) for result, each in line.runs]
    rng = np.random.default_rng(int(digests.pop()[:16], 16))
    values = bootstrap(tiles, a.recipe.primary_metric, REPLICATES, rng)
    draws = values[len(a.runs) :].mean(0) - values[: len(a.runs)].mean(0)
    change = b.score - a.score if a.score is not None and b.score is not None else None
    tested = _tested(change, draws)
    return Difference(a.setting, a.metric, a.score, b.score, *tested, len(tiles[0])), draws


def _mean(metric: str, differences: Sequence[Difference], draws: Fractions) -> Difference:
    def mean(name: str) -> float | None:
        values = [getattr(each, name) for each in differences]
        return None if None in values else float(np.mean(values))

    tiles = sum(each.tiles for each in differences)
    tested = _tested(mean("difference"), draws)
    return Difference(None, metric, mean("a"), mean("b"), *tested, tiles)


def _tested(
    change: float | None, draws: Fractions
) -> tuple[float | None, float | None, float | None, float | None]:
    """A difference, its interval and its p-value, of what it is in each draw."""
    if change is None:
        return None, None, None, None
    low, high = map(nan_to_none, interval(draws))
    return change, low, high, paired_p_value(draws)
