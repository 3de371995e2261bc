"""A grid of trainings: every combination of some values, recipes and seeds."""

import re
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path, PurePath
from typing import Any

from pydantic_core import to_jsonable_python

from crossearth.components.runtime.params import Params, nested
from crossearth.components.train.setup import TrainConfig, flat
from crossearth.components.train.step import config_of
from crossearth.data.catalog.domains import Catalog, known_entry
from crossearth.data.common.config import checked, load_config, read_yaml
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import digest

Value = bool | int | float | str | None
LONGEST_LABEL = 80


@checked
class GridConfig:
    """What a grid's file says.

    Attributes:
        recipes: that `ablate` trains; each is scored on its own targets.
        seeds: of the trainings; none = that of params.yaml.
        grid: parameter of `train`, dotted where it is nested -> the values that it takes. A row of the
            table is one combination.
        train: parameters of all trainings, over those of params.yaml.
    """

    grid: dict[str, tuple[Value, ...]]
    recipes: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    train: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = {"recipes": self.recipes, "seeds": self.seeds}
        for name, values in {**{key: each for key, each in given.items() if each}, **self.grid}.items():
            if not values or len({*map(repr, values)}) < len(values):
                raise InputError(f"{name}: {list(values)}", expected="one value or more, none of them twice")
        if "seed" in {*self.grid, *self.train}:
            raise InputError("seed: stands among the parameters of `train`", expected="seeds: [0, 1, ...]")


@dataclass(frozen=True)
class Cell:
    """One combination: a row of the table."""

    values: dict[str, Value]

    @property
    def label(self) -> str:
        """For people: "ablation +style, adapter lora"."""
        return ", ".join(f"{name} {shown(value)}" for name, value in self.values.items())

    @property
    def folder(self) -> str:
        """A folder's name, of this combination alone."""
        plain = "-".join(f"{name}={shown(value)}" for name, value in self.values.items())
        kept = re.sub(r"[^\w.+=-]", "_", plain)[:LONGEST_LABEL]
        return f"{kept}-{digest(self.values)[:8]}"


def shown(value: Value) -> str:
    """A value in a table: of a path the file's name."""
    return PurePath(value).stem if isinstance(value, str) and "/" in value else str(value)


@dataclass(frozen=True)
class Job:
    """One training and its scores.

    Attributes:
        values: what the grid changes of the recipe's parameters, by (dotted) name.
        config: all of them.
    """

    cell: Cell
    recipe: str
    seed: int
    values: dict[str, Any]
    config: TrainConfig
    folder: Path

    @property
    def parameters(self) -> dict[str, Any]:
        """All of its parameters, as a model's description has them."""
        found: dict[str, Any] = to_jsonable_python(self.config)
        return found

    @property
    def model(self) -> Path:
        return self.folder / "models" / self.recipe

    @property
    def scores(self) -> Path:
        return self.folder / "scores" / self.recipe

    @property
    def label(self) -> str:
        return f"{self.cell.label}, seed {self.seed}, {self.recipe}"


def read_grid(path: Path) -> GridConfig:
    """Reads a grid's file; `InputError` where it is none."""
    return load_config(GridConfig, read_yaml(path), path)


def cells(config: GridConfig) -> list[Cell]:
    """The combinations, the last parameter running fastest."""
    return [Cell(dict(zip(config.grid, values, strict=True))) for values in product(*config.grid.values())]


def jobs(config: GridConfig, params: Params, catalog: Catalog, out_dir: Path, where: object) -> list[Job]:
    """All trainings: first one seed of everything, then the others.

    Raises:
        InputError: an unknown recipe, or a combination that is no configuration of a training.
    """
    recipes = [known_entry(catalog.recipes(), name, "recipe", f"{where}: recipes") for name in config.recipes]
    found = []
    for seed, cell, recipe in product(config.seeds or (params.seed,), cells(config), recipes):
        values = {**flat(config.train), **cell.values}
        try:
            own = config_of(params.with_values(recipe.name, nested(values)), recipe, seed)
        except InputError as error:
            raise InputError(f"{cell.label}: {error}", where=where) from error
        found.append(Job(cell, recipe.name, seed, values, own, out_dir / cell.folder / f"seed-{seed}"))
    return found
