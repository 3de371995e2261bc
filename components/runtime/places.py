"""Where inputs and results of a run lie, and what its inputs say: params.yaml and the catalogs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossearth.components.runtime.params import Params
    from crossearth.data.catalog.domains import Catalog

ARTIFACTS = Path("artifacts")
ABLATIONS = ARTIFACTS / "ablations"
COVERAGE = ARTIFACTS / "coverage"
DOMAINS = ARTIFACTS / "domains"
EXPORT = ARTIFACTS / "export"
MODELS = ARTIFACTS / "models"
PLAN = ARTIFACTS / "plan"
PREVIEWS = ARTIFACTS / "previews"
REGISTRY = ARTIFACTS / "registry"
REPORT = ARTIFACTS / "report"
SCORES = ARTIFACTS / "scores"
STYLES = ARTIFACTS / "styles"
EARTH_STYLES = STYLES / "earth.safetensors"
STYLIZED = ARTIFACTS / "stylized"
TRIALS = ARTIFACTS / "trials"
VALIDATION = ARTIFACTS / "validation"
WATCH = ARTIFACTS / "watch"


def data_dir() -> Path:
    """$CROSSEARTH_DATA, by default ./datasets."""
    from crossearth.data.common.config import home_path

    return home_path(Path(os.environ.get("CROSSEARTH_DATA", "datasets")))


def inputs(params_file: Path | None, catalogs: list[Path] | None) -> tuple[Params, Catalog]:
    """The parameters, and the catalog with the files that they and the command name; InputError if wrong."""
    from crossearth.components.runtime.params import load_params
    from crossearth.data.catalog.loader import load_catalog

    params = load_params(params_file)
    catalog = load_catalog([*params.catalogs, *(catalogs or [])], data_dir())
    params.check(catalog)
    return params, catalog
