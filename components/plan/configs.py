"""The sections of params.yaml held against the steps' configs before the first step starts."""

from crossearth.components.evaluate.step import EvaluateConfig
from crossearth.components.ingest.step import IngestConfig
from crossearth.components.register.promotion import RegisterConfig
from crossearth.components.report.step import ReportConfig
from crossearth.components.runtime.params import Params
from crossearth.components.styles.step import StylesConfig
from crossearth.components.stylize.step import StylizeConfig
from crossearth.components.synthesize.step import SynthesizeConfig
from crossearth.components.train.setup import TrainConfig
from crossearth.components.validate.validation import ValidateConfig
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.config import nearest
from crossearth.data.common.errors import InputError

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
    """Looks at all parameters of the preset in force.

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
