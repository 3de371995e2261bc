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


@dataclass(frozen=True)
class Check:
    question: str
    champion: str
    challenger: str
    holds: bool


@dataclass(frozen=True)
class Decision:
    """Whether the challenger is promoted, and why."""

    promoted: bool
    checks: tuple[Check, ...]


def decide(
    champion: RecipeResult | None,
    challenger: RecipeResult,
    settings: tuple[str, ...],
    config: RegisterConfig,
    *,
    has_champion: bool,
    same_weights: bool = False,
) -> Decision:
    """Applies the rule.

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
    checks = [_complete(champion, challenger, settings), _finite(champion, challenger, settings)]
    if same_weights:
        checks.append(Check("it is the champion, scored anew", "", "", True))
    elif has_champion and champion is None:
        checks.append(Check("the champion has scores to compare with", "none", "", False))
    elif champion is not None and all(check.holds for check in checks):
        checks += _comparable(champion, challenger, settings)
        if all(check.holds for check in checks):
            checks += _rule(champion, challenger, settings, config)
    return Decision(all(check.holds for check in checks), tuple(checks))


def _complete(champion: RecipeResult | None, challenger: RecipeResult, settings: tuple[str, ...]) -> Check:
    whole = f"{len(settings)} of {len(settings)}"
    old, new = (
        f"{len(_chosen(result, settings))} of {len(settings)}" if result else ""
        for result in (champion, challenger)
    )
    return Check("scored on all settings of the recipe", old, new, old in ("", whole) and new == whole)


def _finite(champion: RecipeResult | None, challenger: RecipeResult, settings: tuple[str, ...]) -> Check:
    old, new = (
        ", ".join(
            f"{name}: nan"
            for name, each in _chosen(result, settings).items()
            if np.isnan(result.scores(each).primary_metric)
        )
        if result
        else ""
        for result in (champion, challenger)
    )
    return Check("all of these scores are numbers", old, new, not old and not new)


def _comparable(champion: RecipeResult, challenger: RecipeResult, settings: tuple[str, ...]) -> list[Check]:
    olds, news = _chosen(champion, settings), _chosen(challenger, settings)
    same_tiles = [
        Check(
            f"{setting}: scored on the same tiles",
            olds[setting].manifest_digest[:12],
            news[setting].manifest_digest[:12],
            olds[setting].manifest_digest == news[setting].manifest_digest,
        )
        for setting in settings
    ]
    same_rule = champion.selection == challenger.selection
    return [
        Check("the same selection rule", champion.selection, challenger.selection, same_rule),
        *same_tiles,
    ]


def _rule(
    champion: RecipeResult, challenger: RecipeResult, settings: tuple[str, ...], config: RegisterConfig
) -> list[Check]:
    unseen = [name for name, each in _chosen(challenger, settings).items() if each.setting.unseen]
    judged = unseen or list(settings)
    kind = "unseen targets" if unseen else "its own domain"
    olds, news = (
        [result.scores(_chosen(result, settings)[setting]).primary_metric for setting in judged]
        for result in (champion, challenger)
    )
    gain = float(np.mean(news) - np.mean(olds))
    loss = float(np.min(olds) - np.min(news))
    return [
        Check(
            f"the mean over {len(judged)} {kind} rises by {100 * config.margin:.1f} points or more",
            f"{100 * np.mean(olds):.2f}",
            f"{100 * np.mean(news):.2f} ({100 * gain:+.2f})",
            gain >= config.margin,
        ),
        Check(
            f"the worst of them falls by {100 * config.worst_margin:.1f} points at most",
            f"{100 * np.min(olds):.2f} ({judged[int(np.argmin(olds))]})",
            f"{100 * np.min(news):.2f} ({judged[int(np.argmin(news))]}, {-100 * loss:+.2f})",
            loss <= config.worst_margin,
        ),
    ]


def _chosen(result: RecipeResult, settings: tuple[str, ...]) -> dict[str, SettingResult]:
    return {each.setting.abbr: each for each in result.settings if each.setting.abbr in settings}
