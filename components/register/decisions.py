"""Registers a pipeline's models and tells what the rule decided."""

import os
from collections.abc import Sequence

from crossearth.components.register.publish import publish
from crossearth.components.register.step import run
from crossearth.components.runtime.params import Params
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.files import markdown_table

MLFLOW_RETRIES = "5"  # of a request to the registry, half a minute in all
HUB_PAUSES_S = (1, 2, 4, 8, 15)  # as long
AGAIN = "submit the pipeline with the same parameters: what is made comes from Kubeflow's cache"


def decide_all(params: Params, catalog: Catalog, names: Sequence[str]) -> tuple[list[str], str]:
    """Registers the models of recipes, and tells Kubeflow Hub of them where there is one to tell.

    Returns:
        The recipes whose model was promoted, and a table of the decisions, as Markdown.

    Raises:
        InputError: as `step.run`.
        PartlyDoneError: Kubeflow Hub was not told of all of them.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", MLFLOW_RETRIES)
    outcomes = run(params, catalog, names)
    publish({each.name: each.version for each in outcomes}, AGAIN, HUB_PAUSES_S)
    rows = []
    for each in outcomes:
        refused = "; ".join(check.question for check in each.checks if not check.holds)
        rows.append([each.recipe, each.version, "yes" if each.promoted else "no", each.champion, refused])
    columns = ["recipe", "version", "promoted", "champion", "refused by"]
    return [each.recipe for each in outcomes if each.promoted], markdown_table(columns, rows) + "\n"
