"""The sections of params.yaml held against the steps' configs before the first step starts."""

from crossearth.components.evaluate import EvaluateConfig
from crossearth.components.fit_styles import StylesConfig
from crossearth.components.ingest import IngestConfig
from crossearth.components.params import Params
from crossearth.components.promotion import RegisterConfig
from crossearth.components.report import ReportConfig
from crossearth.components.stylize import StylizeConfig
from crossearth.components.synthesize import SynthesizeConfig
from crossearth.components.training_setup import TrainConfig
from crossearth.data.config import nearest
from crossearth.data.domains import Catalog
from crossearth.data.errors import InputError
from crossearth.data.validation import ValidateConfig

CONFIGS = {
    "synthesize": SynthesizeConfig,
    "ingest": IngestConfig,
    "validate": ValidateConfig,
    "styles": StylesConfig,
    "stylize": StylizeConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "register": RegisterConfig,
}


def check(params: Params, catalog: Catalog) -> None:
    """Looks at all numbers of the preset in force.

    Raises:
        InputError: a wrong key or value of any step; a dataset, domain or recipe that is not in the catalog.
    """
    params.dvc.check(catalog)
    for step, kind in CONFIGS.items():
        params.config(kind, step)
    recipes = catalog.recipes()
    for recipe in params.presets[params.preset].get("recipes", {}):
        if recipe not in recipes:
            raise InputError(
                f"unknown recipe {recipe!r}",
                where=f"params: presets.{params.preset}.recipes",
                expected=nearest(recipe, recipes),
            )
        params.config(TrainConfig, "train", recipe)
