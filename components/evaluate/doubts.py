"""Why a model should not be trusted with real scenes, as warnings."""

from collections.abc import Mapping
from typing import Any

from crossearth.components.evaluate.results import RecipeResult, per_cent

LEAST_SCORE = 0.1  # a primary score below that on every domain: nothing was learned


def doubts(meta: Mapping[str, Any], result: RecipeResult | None) -> list[str]:
    """What a user must know before the model maps anything, or becomes champion; empty where all is well.

    Args:
        meta: the model's description (`checkpoint.read_meta`).
        result: its scores, where they are known.
    """
    found = []
    if meta["provenance"] == "synthetic":
        found.append("this model was trained on synthetic miniatures: its maps of real scenes mean nothing")
    if result is not None and result.settings:
        best = max(result.settings, key=lambda each: result.scores(each).primary_metric)
        score = result.scores(best).primary_metric
        if not score >= LEAST_SCORE:
            found.append(
                f"this model has learned next to nothing: its best {result.metric} is {per_cent(score)} %, "
                f"on {best.setting.target}"
            )
    return found
