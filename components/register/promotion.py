"""Which of two models deserves to be the champion: the domain-generalization rule, without a registry."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from crossearth.components.evaluate.results import RecipeResult, SettingResult
from crossearth.data.catalog.loader import NAME
from crossearth.data.common.config import checked
from crossearth.data.common.errors import InputError


@checked
class RegisterConfig:
    """When a challenger becomes champion.

    Attributes:
        margin: least gain of the mean IoU over unseen targets, as a fraction 0..1.
        worst_margin: most that the worst unseen target may lose, as a fraction 0..1.
        prefix: of the registered models' names: <prefix>-<recipe>.
    """

    margin: Annotated[float, Field(ge=0, lt=1)] = 0.005
    worst_margin: Annotated[float, Field(ge=0, lt=1)] = 0.01
    prefix: str = "crossearth"

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.prefix):
            raise InputError(f"prefix: {self.prefix!r}", expected="letters, digits, and . _ - between them")


Scored = dict[str, tuple[SettingResult, float]]


@dataclass(frozen=True)
class Check:
    question: str
    champion: str
    challenger: str
    holds: bool


def decide(
    champion: RecipeResult | None,
    challenger: RecipeResult,
    settings: tuple[str, ...],
    config: RegisterConfig,
    *,
    has_champion: bool,
    same_weights: bool = False,
) -> list[Check]:
    """Applies the rule, line by line: the challenger is promoted where every check holds.

    A first champion needs results for all settings, all of them finite. Later ones must also have been scored
    on the champion's tiles under its selection rule, gain `margin` in the mean over unseen targets and lose
    at most `worst_margin` on the worst of them. A recipe without unseen targets is judged by its own domain.
    The champion's own weights, scored anew, take its place: so it gets scores on newly ingested tiles.

    Args:
        champion: results of the present champion, None where there is none or it has none.
        challenger: results of the model that wants its place.
        settings: all settings of the recipe.
        has_champion: whether there is a champion, with results or without.
        same_weights: whether champion and challenger are one model.
    """
    if same_weights:
        champion = None
    olds, news = None if champion is None else _chosen(champion, settings), _chosen(challenger, settings)
    checks = [_complete(olds, news, len(settings)), _finite(olds, news)]
    if same_weights:
        checks.append(Check("it is the champion, scored anew", "", "", True))
    elif has_champion and champion is None:
        checks.append(Check("the champion has scores to compare with", "none", "", False))
    elif champion is not None and olds is not None and all(check.holds for check in checks):
        rules = champion.selection, challenger.selection
        checks.append(Check("the same selection rule", *rules, rules[0] == rules[1]))
        checks += [_same_tiles(name, olds[name][0], news[name][0]) for name in settings]
        if all(check.holds for check in checks):
            checks += _rule(olds, news, settings, config)
    return checks


def _complete(olds: Scored | None, news: Scored, number: int) -> Check:
    whole = f"{number} of {number}"
    old, new = ("" if each is None else f"{len(each)} of {number}" for each in (olds, news))
    return Check("scored on all settings of the recipe", old, new, old in ("", whole) and new == whole)


def _finite(olds: Scored | None, news: Scored) -> Check:
    old, new = (
        ", ".join(f"{name}: nan" for name, (_, score) in each.items() if np.isnan(score))
        for each in (olds or {}, news)
    )
    return Check("all of these scores are numbers", old, new, not old and not new)


def _same_tiles(setting: str, old: SettingResult, new: SettingResult) -> Check:
    ours, theirs = old.manifest_digest, new.manifest_digest
    return Check(f"{setting}: scored on the same tiles", ours[:12], theirs[:12], ours == theirs)


def _rule(olds: Scored, news: Scored, settings: tuple[str, ...], config: RegisterConfig) -> list[Check]:
    unseen = [name for name, (each, _) in news.items() if each.setting.unseen]
    judged = unseen or list(settings)
    kind = "unseen targets" if unseen else "its own domain"
    old, new = ([scored[name][1] for name in judged] for scored in (olds, news))
    gain = float(np.mean(new) - np.mean(old))
    loss = float(np.min(old) - np.min(new))
    return [
        Check(
            f"the mean over {len(judged)} {kind} rises by {100 * config.margin:.1f} points or more",
            f"{100 * np.mean(old):.2f}",
            f"{100 * np.mean(new):.2f} ({100 * gain:+.2f})",
            gain >= config.margin,
        ),
        Check(
            f"the worst of them falls by {100 * config.worst_margin:.1f} points at most",
            f"{100 * np.min(old):.2f} ({judged[int(np.argmin(old))]})",
            f"{100 * np.min(new):.2f} ({judged[int(np.argmin(new))]}, {-100 * loss:+.2f})",
            loss <= config.worst_margin,
        ),
    ]


def _chosen(result: RecipeResult, settings: tuple[str, ...]) -> Scored:
    """Those of the settings that it has: name -> what was found and the primary score, 0..1."""
    return {
        each.setting.abbr: (each, result.scores(each).primary_metric)
        for each in result.settings
        if each.setting.abbr in settings
    }
