"""Tunes a recipe: trains every combination of a grid as an experiment of DVC, and says which is the best.

The score is that on tiles of the source that are held out. No target is looked at, so none can decide.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crossearth.components.ablate.grid import Job, jobs, read_grid, shown
from crossearth.components.runtime.code import code_digest
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.places import EARTH_STYLES, VALIDATION
from crossearth.components.runtime.tables import TextTable, View
from crossearth.components.runtime.trial import METRIC
from crossearth.components.train.step import expect_score
from crossearth.components.tune.experiments import (
    expect_repository,
    forget_failed,
    make_data,
    queue,
    read_model,
    run_queue,
    states,
)
from crossearth.data.catalog.domains import Catalog, known_entry
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import digest, sha256_file

SHORT = 8
GOES_ON = ("Queued", "Running")


@dataclass(frozen=True)
class Scored:
    """A trial and how it went.

    Attributes:
        name: of the experiment.
        state: as DVC calls it.
        score: of the weights that it keeps, on held-out tiles of the source, 0..1; None where it has none.
    """

    trial: Job
    name: str
    state: str
    score: float | None


@dataclass(frozen=True)
class Tuning:
    """All trials of a grid.

    Attributes:
        source: the domain whose held-out tiles gave the scores.
    """

    recipe: str
    source: str
    trials: tuple[Scored, ...]

    @property
    def best(self) -> Scored | None:
        """Of the highest score, the first one where several have it."""
        scored = [each for each in self.trials if each.score is not None]
        return max(scored, key=lambda each: each.score or 0.0) if scored else None


def run(params: Params, catalog: Catalog, recipe: str, grid: Path, jobs: int = 1) -> Tuning:
    """Trains what is not trained yet, `jobs` at a time; `params` are those of params.yaml in this folder.

    Raises:
        InputError: an unknown recipe, a wrong grid, no held-out tiles, or no DVC that has experiments here:
            nothing is queued.
    """
    trials = read_trials(grid, recipe, params, catalog)
    expect_repository(params.catalogs)
    known_entry({name: name for name in params.dvc.recipes}, recipe, "recipe", "params: dvc.recipes")
    _expect_backbones(trials, grid)
    make_data()
    named = {_name(trial, recipe): trial for trial in trials}
    there = states()
    forget_failed([name for name in named if there.get(name) == "Failed"])
    missing = {name: trial for name, trial in named.items() if there.get(name, "Failed") == "Failed"}
    for name, trial in missing.items():
        queue(name, recipe, params.preset, trial.values)
    if missing or any(there.get(name) in GOES_ON for name in named):
        run_queue(jobs)
        there = states()
    scored = [_scored(trial, name, recipe, there.get(name, "Gone")) for name, trial in named.items()]
    return Tuning(recipe, catalog.recipe(recipe).source, tuple(scored))


def read_trials(grid: Path, recipe: str, params: Params, catalog: Catalog) -> list[Job]:
    """The trials of a grid's file, in its order.

    They all have the seed of params.yaml: `ablate` trains the best ones with others.

    Raises:
        InputError: no such recipe, or none of the file's; not a grid; a combination that is no configuration,
            or holds no tiles out.
    """
    name = catalog.recipe(recipe).name
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
    found = jobs(replace(config, recipes=(name,), seeds=()), params, catalog, Path(), grid)
    for each in found:
        expect_score(each.config, grid)
    return found


def view(tuning: Tuning) -> View:
    names = list(tuning.trials[0].trial.cell.values)
    rows: list[dict[str, Any]] = []
    cells = []
    for each in tuning.trials:
        values = each.trial.cell.values
        rows.append({**values, METRIC: each.score, "experiment": each.name, "state": each.state})
        score, state = "", f" ({each.state.lower()})"
        if each.score is not None:
            score, state = f"{100 * each.score:.2f}", ""
        cells.append([*map(shown, values.values()), score, f"{each.name}{state}"])
    title = f"{tuning.recipe}: primary score on held-out tiles of {tuning.source}, per cent"
    columns = [*names, "held out", "experiment"]
    return View(TextTable(columns, cells, title=title, numbers=["held out"]), rows, rows)


def failures(tuning: Tuning) -> list[InputError]:
    """What was wrong with the trials that have no score."""
    return [
        InputError(
            f"{each.trial.cell.label}: {each.state.lower()}",
            where=f"experiment {each.name}",
            next_step=f"dvc queue logs {each.name}; the same command tries it again",
        )
        for each in tuning.trials
        if each.score is None
    ]


def _name(trial: Job, recipe: str) -> str:
    """A name of an experiment, of what it trains with: parameters, code, tiles and styles."""
    made = [VALIDATION / "sources" / f"{recipe}.json", EARTH_STYLES]
    inputs = [trial.parameters, code_digest("train"), *map(sha256_file, made)]
    return f"{recipe}-{digest(inputs)[:SHORT]}"


def _scored(trial: Job, name: str, recipe: str, state: str) -> Scored:
    if state != "Success":
        return Scored(trial, name, state, None)
    model = read_model(recipe, name)
    if model["train"] != trial.parameters:
        wrong = [key for key, value in trial.parameters.items() if model["train"].get(key) != value]
        raise InputError(
            f"was trained with other parameters: {', '.join(wrong)}",
            where=f"experiment {name}",
            next_step=f"dvc exp remove {name}; the same command trains it again",
        )
    return Scored(trial, name, state, model[METRIC])


def _expect_backbones(trials: list[Job], grid: Path) -> None:
    """Refuses files that no copy of the folder would have.

    Raises:
        InputError: a backbone that is a file below this folder.
    """
    for trial in trials:
        found = trial.config.backbone
        if found and Path(found).is_file() and not Path(found).is_absolute():
            raise InputError(
                f"backbone: {found} lies in this folder, and an experiment runs in a copy without it",
                where=grid,
                expected="a name of timm's hub, an address s3://..., or an absolute path",
                next_step=f"write {Path(found).resolve()}",
            )
