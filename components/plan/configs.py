"""The sections of params.yaml held against the steps' configs before the first step starts."""

from crossearth.components.runtime.params import Params
from crossearth.components.steps import STEPS, load
from crossearth.data.catalog.domains import Catalog


def check(params: Params, catalog: Catalog) -> None:
    """Looks at all parameters of the preset in force.

    Raises:
        InputError: a wrong key or value of any step; a dataset, domain or recipe that is not in the catalog.
    """
    params.check(catalog)
    kinds = {step.name: load(step.config) for step in STEPS.values() if step.config}
    for step, kind in kinds.items():
        params.config(kind, step)
    for recipe in params.presets[params.preset].get("recipes", {}):
        params.config(kinds["train"], "train", recipe)
