"""dvc.yaml lists what the catalog knows: nothing more, nothing less."""

import ast
from inspect import getfile, isclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from crossearth.components.cli.app import app
from crossearth.components.plan.configs import CONFIGS
from crossearth.components.runtime.params import STEPS, load_params
from crossearth.data.catalog.domains import Catalog
from crossearth.data.style import earth as style

ROOT = Path(__file__).parents[2]
# the others have the stage's name
STEP_FILES = {"styles": "fit_styles", "coverage": "style_coverage", "ingest-own": "ingest"}
# these change no file that a stage writes: what is told to MLflow and to people, how a step is stopped, what
# is refused, and the numbers, which stand in the plan
APART = {"interrupts", "memory", "params", "preview", "step_configs", "tracking", "training_panel", "version"}


@pytest.fixture(scope="module")
def graph() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())


def test_recipes_are_those_that_the_settings_need(catalog: Catalog, graph: dict[str, Any]) -> None:
    recipes = load_params(ROOT / "params.yaml").dvc.recipes
    assert recipes == {name: recipe.source for name, recipe in catalog.recipes().items()}
    assert len(recipes) == 14
    assert graph["stages"]["train"]["foreach"] == graph["stages"]["evaluate"]["foreach"] == "${dvc.recipes}"


def test_the_loss_of_every_recipe_is_plotted(catalog: Catalog, graph: dict[str, Any]) -> None:
    curves = {path for plot in graph["plots"] for each in plot.values() for path in each["y"]}
    assert {f"artifacts/models/{name}/curves.csv" for name in catalog.recipes()} <= curves


def test_every_labelled_dataset_is_ingested_once(catalog: Catalog, graph: dict[str, Any]) -> None:
    labelled = {domain.dataset for domain in catalog.domains.values() if domain.labels is not None}
    assert graph["stages"]["ingest"]["foreach"] == "${dvc.datasets}"
    assert sorted(load_params(ROOT / "params.yaml").dvc.datasets) == sorted(labelled)


def test_an_edit_of_a_style_engine_repeats_what_uses_it(graph: dict[str, Any]) -> None:
    engines = [kind for kind in vars(style).values() if isclass(kind) and hasattr(kind, "transfer")]
    files = {Path(getfile(kind)).name for kind in engines}
    assert len(files) >= 3, "the protocol's and two engines'"
    for name in ("styles", "coverage", "train"):
        stage = graph["stages"][name]
        assert {f"data/{file}" for file in files} <= {*(stage.get("do") or stage)["deps"]}, name


def test_every_step_has_its_command_and_its_config(graph: dict[str, Any]) -> None:
    assert {*CONFIGS} == {*STEPS}
    for name, stage in graph["stages"].items():
        program, *words = (stage.get("do") or stage)["cmd"].split()
        assert program == "crossearth"
        command: Any = get_command(app)
        while hasattr(command, "commands"):
            assert words[0] in command.commands, name
            command = command.commands[words.pop(0)]


def steps_code(name: str) -> set[str]:
    """The files of components/ that one of them is made of."""
    found = {f"components/{name}.py"}
    for node in ast.walk(ast.parse((ROOT / f"components/{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("crossearth.components"):
            module = str(node.module).split(".")[2:] or [alias.name for alias in node.names]
            found = found.union(*(steps_code(each) for each in {*module} - APART))
    return found


def test_an_edit_of_a_steps_code_repeats_the_step(graph: dict[str, Any]) -> None:
    for name, stage in graph["stages"].items():
        code = steps_code(STEP_FILES.get(name, name))
        assert code <= {*(stage.get("do") or stage)["deps"]}, name


def test_declared_code_exists(graph: dict[str, Any]) -> None:
    for name, stage in graph["stages"].items():
        for dep in (stage.get("do") or stage)["deps"]:
            if dep.endswith((".py", ".yaml")):
                assert (ROOT / dep).is_file(), f"{name}: {dep}"
