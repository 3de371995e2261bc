"""CrossEarth from Python: `import crossearth` gives what most programs need, and loads it when it is used.

- `load_model(folder)`: the network with its weights, see `crossearth.model.weights.checkpoint.load`.
- `predict(scenes, model, out)`: maps of rasters, see `crossearth.components.predict.step.predict`.
- `load_catalog(files)`: the benchmark's catalog and yours, see `crossearth.data.catalog.loader.load_catalog`.
- `__version__`: the installed version.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossearth.components.predict.step import predict
    from crossearth.data.catalog.loader import load_catalog
    from crossearth.model.weights.checkpoint import load as load_model

    __version__: str

__all__ = ["__version__", "load_catalog", "load_model", "predict"]

_HOMES = {
    "load_catalog": ("data.catalog.loader", "load_catalog"),
    "load_model": ("model.weights.checkpoint", "load"),
    "predict": ("components.predict.step", "predict"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("crossearth")
    if name not in _HOMES:
        raise AttributeError(f"module 'crossearth' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(f"crossearth.{module}"), attribute)


def __dir__() -> list[str]:
    return __all__
