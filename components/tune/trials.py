"""The trials of a tuning: the combinations of a grid, each a training of one recipe."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from crossearth.components.ablate.grid import Cell, jobs, read_grid
from crossearth.components.runtime.params import Params
from crossearth.components.train.setup import TrainConfig, flat
from crossearth.components.train.step import config_of, expect_score
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.errors import InputError


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        cell: its combination.
        fixed: what all trials of the grid have besides, by (dotted) name.
        config: all of its parameters.
    """

    cell: Cell
    fixed: dict[str, Any]
    config: TrainConfig

    @property
    def values(self) -> dict[str, Any]:
        """What it changes of the recipe's parameters, by (dotted) name."""
        return {**self.fixed, **self.cell.values}

    @property
    def parameters(self) -> dict[str, Any]:
        """All of its parameters, as a model's description has them."""
        found: dict[str, Any] = to_jsonable_python(self.config)
        return found


def read_trials(grid: Path, recipe: str, params: Params, catalog: Catalog) -> list[Trial]:
    """The trials of a grid's file, in its order.

    They all have the seed of params.yaml: `ablate` trains the best ones with others.

    Raises:
        InputError: no such recipe, or none of the file's; not a grid; a combination that is no configuration,
            or holds no tiles out.
    """
    tuned = catalog.recipe(recipe)
    name = tuned.name
    config = read_grid(grid)
    if config.recipes and name not in config.recipes:
        raise InputError(
            f"recipes: {', '.join(config.recipes)}",
            where=grid,
            expected=f"{name} among them, or no `recipes`",
        )
    if config.seeds not in {(), (params.seed,)}:
        raise InputError(
            f"seeds: {list(config.seeds)}",
            where=grid,
            expected=f"none: a tuning has the seed of params.yaml, {params.seed}",
            next_step="train the best few with several seeds: crossearth ablate GRID.yaml",
        )
    wanted = replace(config, recipes=(name,), seeds=())
    fixed = flat(config.train)
    found = [
        Trial(job.cell, fixed, config_of(job.params, tuned, job.seed))
        for job in jobs(wanted, params, catalog, Path(), grid)
    ]
    for each in found:
        expect_score(each.config, grid)
    return found
