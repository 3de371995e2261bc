"""Is A better than B? Setting by setting on the same tiles, with paired bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossearth.components.evaluate.results import find_results, nan_to_none
from crossearth.components.report.summary import Line, summarise
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.errors import InputError
from crossearth.model.scores import Shares, bootstrap, interval, paired_p_value


@dataclass(frozen=True)
class Difference:
    """B minus A on one target, as fractions; None where a score is undefined.

    Attributes:
        low, high: 95 % interval of the difference over resampled tiles, the same draws for both.
        p_value: two-sided, of no difference; not adjusted for the number of settings.
    """

    setting: str
    source: str
    target: str
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


def compare(a: Sequence[Path], b: Sequence[Path], catalog: Catalog, replicates: int = 10_000) -> Comparison:
    """Compares the results in folders `a` and `b`; several seeds of a setting count as their mean.

    Args:
        a, b: folders of results, or folders of such folders.
        catalog: gives the order of the settings.
        replicates: bootstrap replicates; the smallest p-value is about 2 / replicates.

    Raises:
        InputError: no results; no setting in common; a setting scored on different tiles; a side that has a
            setting under two selection rules.
    """
    sides = [_by_setting(folders, catalog) for folders in (a, b)]
    shared = [setting for setting in sides[0] if setting in sides[1]]
    if not shared:
        raise InputError(
            "the two sides have no setting in common",
            expected=f"results for one of {', '.join(sides[0])}",
            next_step="evaluate both on the same targets",
        )
    differences, replicates_of = [], []
    for setting in shared:
        difference, draws = _difference(sides[0][setting], sides[1][setting], replicates)
        differences.append(difference)
        replicates_of.append(draws)
    return Comparison(
        differences=tuple(differences),
        mean=_mean(differences, np.mean(replicates_of, axis=0)),
        only_a=tuple(setting for setting in sides[0] if setting not in sides[1]),
        only_b=tuple(setting for setting in sides[1] if setting not in sides[0]),
    )


def _by_setting(folders: Sequence[Path], catalog: Catalog) -> dict[str, Line]:
    lines: dict[str, Line] = {}
    for line in summarise(find_results(folders), catalog, replicates=0).lines:
        if line.setting in lines:
            raise InputError(
                f"{line.setting} has results under the selection rules {lines[line.setting].selection} and"
                f" {line.selection}",
                where=", ".join(map(str, folders)),
                next_step="name the folders of one of them",
            )
        lines[line.setting] = line
    return lines


def _difference(a: Line, b: Line, replicates: int) -> tuple[Difference, Shares]:
    digests = {result.manifest_digest for line in (a, b) for _, result in line.runs}
    if len(digests) > 1:
        raise InputError(
            f"A and B were scored on different tiles of {a.target}: manifests "
            + ", ".join(sorted(digest[:16] for digest in digests)),
            where=a.setting,
            next_step="evaluate both on one ingested domain",
        )
    if (a.class_set, a.runs[0][0].classes) != (b.class_set, b.runs[0][0].classes):
        raise InputError(f"A scores the classes of {a.class_set}, B those of {b.class_set}", where=a.setting)
    tiles = [result.tile_counts(each) for line in (a, b) for result, each in line.runs]
    rng = np.random.default_rng(int(digests.pop()[:16], 16))
    values = bootstrap(tiles, a.runs[0][0].primary_metric, replicates, rng)
    draws = values[len(a.runs) :].mean(0) - values[: len(a.runs)].mean(0)
    low, high = interval(draws)
    known = a.miou is not None and b.miou is not None
    difference = Difference(
        setting=a.setting,
        source=a.source,
        target=a.target,
        a=a.miou,
        b=b.miou,
        difference=b.miou - a.miou if a.miou is not None and b.miou is not None else None,
        low=nan_to_none(low),
        high=nan_to_none(high),
        p_value=paired_p_value(draws) if known else None,
        tiles=len(tiles[0]),
    )
    return difference, draws


def _mean(differences: Sequence[Difference], draws: Shares) -> Difference:
    def mean(name: str) -> float | None:
        values = [getattr(each, name) for each in differences]
        return None if None in values else float(np.mean(values))

    low, high = interval(draws)
    known = mean("difference") is not None
    return Difference(
        setting=f"mean of {len(differences)}",
        source="",
        target="",
        a=mean("a"),
        b=mean("b"),
        difference=mean("difference"),
        low=nan_to_none(low) if known else None,
        high=nan_to_none(high) if known else None,
        p_value=paired_p_value(draws) if known else None,
        tiles=sum(each.tiles for each in differences),
    )
