"""Puts scored models into the registry and promotes those that generalize better."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crossearth.components.evaluate.doubts import doubts
from crossearth.components.evaluate.results import RecipeResult, read_results
from crossearth.components.register.listing import describe
from crossearth.components.register.model_card import model_card
from crossearth.components.register.promotion import Check, RegisterConfig, decide
from crossearth.components.register.registry import (
    CHALLENGER,
    CHAMPION,
    ROLLBACK,
    Registry,
    champion_before,
    registry_exists,
)
from crossearth.components.runtime.hub import address
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.places import ARTIFACTS, MODELS, REGISTRY, SCORES
from crossearth.components.runtime.tracking import start_run, tracking_uri
from crossearth.data.catalog.domains import Catalog, Recipe
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import digest, write_json, write_text
from crossearth.model.weights.checkpoint import load, read_meta

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one recipe's model.

    Attributes:
        version: of this model in the registry.
        champion: version that is champion now, "" if none.
        promoted: whether this model is that champion.
        checks: the rule, line by line.
    """

    recipe: str
    name: str
    version: str
    champion: str
    promoted: bool
    checks: tuple[Check, ...]


def run(
    params: Params,
    catalog: Catalog,
    names: Sequence[str] = (),
    model: Path | None = None,
    seed: int | None = None,
) -> list[Outcome]:
    """Registers recipes of the working folder, by default all that are scored.

    Raises:
        InputError: as `register`; none is scored.
    """
    suffix = params.seed_suffix(seed)
    scored = [name for name in catalog.recipes() if (SCORES / f"{name}{suffix}").is_dir()]
    recipes = [catalog.recipe(name) for name in names or scored]
    if not recipes:
        raise InputError("no scored recipes here", where=SCORES, next_step="crossearth evaluate")
    config = params.config(RegisterConfig, "register")
    return register(recipes, catalog, ARTIFACTS, config, model, suffix)


def register(
    recipes: Sequence[Recipe],
    catalog: Catalog,
    work: Path,
    config: RegisterConfig | None = None,
    model_dir: Path | None = None,
    suffix: str = "",
) -> list[Outcome]:
    """Registers each recipe's model as a version and lets it challenge the champion.

    Equal weights with equal scores are one version, however often this runs. A version that was rolled back
    is not promoted again.

    Args:
        recipes: whose models.
        work: has `models/<recipe>` and `scores/<recipe>` of each, and gets in `registry` `<recipe>.json`, the
            outcome, and `<recipe>.md`, the model card.
        model_dir: a model that stands elsewhere, e.g. a converted one, for all `recipes`.
        suffix: of these folders' names, where the models are those of another seed.

    Raises:
        InputError: the registry does not answer; a model that `checkpoint.load` refuses; its scores are
            missing, or those of other weights; $CROSSEARTH_HUB_URL is no address.
    """
    config = config or RegisterConfig()
    address()  # who cannot be told afterwards is said before anything is registered
    inputs = []
    for recipe in recipes:
        folder = model_dir or work / MODELS.name / f"{recipe.name}{suffix}"
        scores = work / SCORES.name / f"{recipe.name}{suffix}"
        load(folder)  # nothing is registered that nobody could load
        meta, result = read_meta(folder), read_results(scores)
        if meta["sha256"] != result.model_sha256:
            raise InputError(
                f"the scores of {recipe.name} are not those of the model in {folder}",
                where=scores,
                next_step=f"crossearth evaluate {recipe.name}, or give --model the one that was scored",
            )
        inputs.append((recipe, folder, meta, result))
    registry = Registry()
    outcomes = []
    for recipe, folder, meta, result in inputs:
        name = f"{config.prefix}-{recipe.name}"
        card = model_card(recipe.name, meta, catalog, catalog.domain(recipe.source), result)
        about = describe({"source": recipe.source, **meta}, folder, catalog, result)
        identity = digest([result.model_sha256, [each.key for each in result.settings]])
        made = registry.find(name, identity)
        if made is None:
            run_id = registry.run_of(result.recipe_hash)
            if run_id is None:
                with start_run(recipe.name, key=result.recipe_hash, tags={"recipe": recipe.name}, adds=True):
                    pass
                run_id = registry.run_of(result.recipe_hash)
            if run_id is None:
                raise InputError(
                    f"MLflow made no run for {recipe.name}",
                    where=tracking_uri(),
                    next_step="look at the warning above; restore the experiment if it was deleted",
                )
            backbone = meta["backbone"] and folder / meta["backbone"]["file"]
            made = registry.add(name, run_id, folder, backbone, result, card, identity, about)
        outcome = _challenge(registry, recipe, name, made, result, config)
        if outcome.promoted:
            for doubt in doubts(meta, result):
                log.warning("WARNING: the champion of %s: %s", name, doubt)
        write_json(work / REGISTRY.name / f"{recipe.name}.json", asdict(outcome))
        write_text(work / REGISTRY.name / f"{recipe.name}.md", card)
        outcomes.append(outcome)
    return outcomes


def _challenge(
    registry: Registry,
    recipe: Recipe,
    name: str,
    made: "ModelVersion",
    result: RecipeResult,
    config: RegisterConfig,
) -> Outcome:
    champion = registry.aliased(name, CHAMPION)
    checks: list[Check] = []
    if champion is None or champion.version != made.version:
        checks = decide(
            registry.scores(champion) if champion else None,
            result,
            tuple(setting.abbr for setting in recipe.settings),
            config,
            has_champion=champion is not None,
            same_weights=champion is not None and champion.tags.get("weights") == result.model_sha256,
        )
        back = [move for move in registry.moves(name) if move.why == ROLLBACK]
        retired = [move for move in back if move.old == str(made.version)]
        if retired:
            checks.append(Check("was not rolled back", "", f"rolled back at {retired[-1].when}", False))
        if refused := [check.question for check in checks if not check.holds]:
            registry.move(name, CHALLENGER, made, "refused: " + "; ".join(refused))
        else:
            registry.move(name, CHAMPION, made, "; ".join(check.question for check in checks))
            registry.move(name, CHALLENGER, None, "became champion")
    champion = registry.aliased(name, CHAMPION)
    return Outcome(
        recipe=recipe.name,
        name=name,
        version=str(made.version),
        champion=str(champion.version) if champion else "",
        promoted=champion is not None and champion.version == made.version,
        checks=tuple(checks),
    )


def rollback(recipe: Recipe, config: RegisterConfig | None = None) -> tuple[str, str]:
    """Makes the champion before the present one champion again.

    Returns:
        (version that was champion, version that is).

    Raises:
        InputError: no such model, or it never had another champion; the registry does not answer;
            $CROSSEARTH_HUB_URL is no address.
    """
    address()
    name = f"{(config or RegisterConfig()).prefix}-{recipe.name}"
    registry = Registry() if registry_exists() else None
    present = registry.aliased(name, CHAMPION) if registry else None
    before = champion_before(registry.moves(name)) if registry and present else None
    if registry is None or present is None or before is None:
        raise InputError(
            f"{name} has no earlier champion to go back to",
            expected="a model that was promoted at least twice",
            next_step="crossearth register",
        )
    registry.move(name, CHAMPION, registry.version(name, before), ROLLBACK)
    return str(present.version), before
