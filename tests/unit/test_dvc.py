"""dvc.yaml lists what the catalog knows: nothing more, nothing less."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from results_factory import write_benchmark
from typer.main import get_command

from crossearth.components.cli.app import app
from crossearth.components.evaluate.results import CURVES, find_results
from crossearth.components.plan.step import plan
from crossearth.components.report.plots import losses, write_plots
from crossearth.components.report.summary import summarise
from crossearth.components.runtime.params import Params, load_params
from crossearth.components.steps import STEPS
from crossearth.components.train.setup import TrainConfig
from crossearth.data.catalog.domains import Catalog

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def graph() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())


def test_recipes_are_those_that_the_settings_need(catalog: Catalog, graph: dict[str, Any]) -> None:
    recipes = load_params(ROOT / "params.yaml").dvc.recipes
    assert sorted(recipes) == sorted(catalog.recipes())
    assert graph["stages"]["train"]["foreach"] == graph["stages"]["evaluate"]["foreach"] == "${dvc.recipes}"


def test_plots_are_the_reports_pictures(graph: dict[str, Any], catalog: Catalog, tmp_path: Path) -> None:
    write_benchmark(tmp_path, catalog, 2)
    results = find_results([tmp_path])
    write_plots(summarise(results, catalog, 0), results, tmp_path / "plots")
    drawn = [f"artifacts/report/plots/{path.name}" for path in sorted((tmp_path / "plots").iterdir())]
    assert graph["plots"] == drawn
    (results[0].folder / CURVES).write_text("iteration,loss\n1,2.5\n2,\n3,1.5\n")
    curve = losses(results).axes[0].lines[0]
    assert (curve.get_label(), list(curve.get_ydata())) == (results[0].recipe, [2.5, 1.5])


def test_a_loss_is_told_from_every_other(catalog: Catalog, tmp_path: Path) -> None:
    write_benchmark(tmp_path, catalog, 14)
    results = find_results([tmp_path])
    lines = losses(results).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines) == 14


@pytest.mark.parametrize("preset", ["mini", "paper"])
def test_a_number_of_one_recipe_is_set_for_that_one_alone(preset: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    apply_overrides(path, [f"preset={preset}", f"+presets.{preset}.recipes.loveda-urban.iterations=5"])
    params = load_params(path)
    configs = {name: params.config(TrainConfig, "train", name) for name in params.dvc.recipes}
    before = load_params(ROOT / "params.yaml").presets[preset]["train"].get("iterations", 30_000)
    assert {name for name, config in configs.items() if config.iterations == 5} == {"loveda-urban"}
    assert {config.iterations for config in configs.values()} == {5, before}


def test_every_dataset_of_a_setting_is_ingested_once(catalog: Catalog, graph: dict[str, Any]) -> None:
    domains = {name for setting in catalog.settings.values() for name in (setting.source, setting.target)}
    assert graph["stages"]["ingest"]["foreach"] == "${dvc.datasets}"
    assert sorted(load_params(ROOT / "params.yaml").dvc.datasets) == sorted(
        {catalog.domain(name).dataset for name in domains}
    )


def test_a_stage_is_a_row_of_the_steps_and_runs_its_command(graph: dict[str, Any]) -> None:
    for name, stage in graph["stages"].items():
        step = STEPS[name.removesuffix("-own").removesuffix("-seeds")]
        given = {"dataset": ["${item}"], "recipe": ["${item}"]}.get(step.planned, [])
        if name.endswith("-own"):
            given = ["${key}"]
        if name.endswith("-seeds"):
            given = ["${item.recipe}", "--seeds", "${item.seed}"]
        words = [*(step.command or step.name).split(), *given]
        assert (stage.get("do") or stage)["cmd"] == " ".join(["crossearth", *words])
        command: Any = get_command(app)
        while hasattr(command, "commands"):
            assert words[0] in command.commands, name
            command = command.commands[words.pop(0)]


def test_a_stage_hangs_on_its_plan_and_the_plan_on_all_code(graph: dict[str, Any]) -> None:
    stages = {name: stage.get("do") or stage for name, stage in graph["stages"].items()}
    assert stages.pop("plan")["deps"] == ["components", "data", "model"]
    for name, stage in stages.items():
        step = name.removesuffix("-own").removesuffix("-seeds")
        assert any(dep.startswith(f"artifacts/plan/{step}") for dep in stage["deps"]), name
        assert not [dep for dep in stage["deps"] if dep.endswith(".py")], "the plan knows what a step runs"
        assert stage.get("params", ["seed"]) == ["seed"], "a stage's numbers stand in its plan"


EDITS = {
    "synthesize": {"counts": "full"},
    "ingest": {"tile_px": 64},
    "validate": {"max_shared_ground": 0.2},
    "styles": {"image_px": 256},
    "train": {"iterations": 7},
    "evaluate": {"panels": 1},
    "report": {"worst_tiles": 5},
}


def test_a_number_of_a_step_changes_its_plan_alone(catalog: Catalog, tmp_path: Path) -> None:
    params = load_params(ROOT / "params.yaml")
    sections = params.presets[params.preset]

    def planned(step: str, values: dict[str, Any]) -> dict[Path, bytes]:
        edited = {**sections, step: {**sections[step], **values}}
        folder = plan(catalog, replace(params, presets={params.preset: edited}), tmp_path / step)
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.json")}

    before = planned("register", {})
    for step, values in EDITS.items():
        after = planned(step, values)
        changed = {path.parts[0].removesuffix(".json") for path in before if after[path] != before[path]}
        assert changed == {step}


def test_further_seeds_are_stages_beside_the_usual_one(graph: dict[str, Any]) -> None:
    matrix = {"recipe": "${dvc.recipes}", "seed": "${dvc.seeds}"}
    for name, folder in (("train", "models"), ("evaluate", "scores")):
        stage = graph["stages"][f"{name}-seeds"]
        assert stage["matrix"] == matrix
        assert list(stage["outs"][0]) == [
            f"artifacts/{folder}/${{item.recipe}}{Params('', {'': {}}).seed_suffix(5)}".replace(
                "5", "${item.seed}"
            )
        ]
