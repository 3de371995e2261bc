"""`tune`: what is refused before DVC is asked, what is queued, and what is chosen by."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from training_folder import NUMBERS, RECIPE

from crossearth.components.cli.extras import extra_of
from crossearth.components.runtime.params import DvcConfig, Params
from crossearth.components.tune import experiments, step
from crossearth.components.tune.experiments import expect_repository
from crossearth.components.tune.step import Tuning, failures, read_trials, run, view
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.errors import InputError

GRID: dict[str, Any] = {
    "grid": {"lr": [0.001, 0.01], "adapter": ["rein"]},
    "train": {"held_out_share": 0.25},
}


@pytest.fixture
def params() -> Params:
    return Params("own", {"own": {"train": NUMBERS}}, dvc=DvcConfig(recipes=(RECIPE,)))


def write_grid(folder: Path, **changes: Any) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(GRID | changes))
    return path


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("loveda-urbn", {}, "'loveda-urban'?"),
        (RECIPE, {"grid": {"lrr": [0.1]}}, "'lr'?"),
        (RECIPE, {"grid": {"lr": ["high"]}}, "lr"),
        (RECIPE, {"train": {}}, "held_out_share is 0"),
        (RECIPE, {"grid": {"held_out_share": [0.0, 0.2]}}, "held_out_share is 0"),
        (RECIPE, {"seeds": [0, 1]}, "crossearth ablate"),
        (RECIPE, {"seeds": [7]}, "crossearth ablate"),
        (RECIPE, {"recipes": ["deepglobe"]}, f"{RECIPE} among them"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    recipe: str, changes: dict[str, Any], message: str, tmp_path: Path, params: Params, catalog: Catalog
) -> None:
    with pytest.raises(InputError) as error:
        read_trials(write_grid(tmp_path, **changes), recipe, params, catalog)
    assert message in str(error.value)


def test_a_grid_of_ablate_is_a_grid_of_tune(tmp_path: Path, params: Params, catalog: Catalog) -> None:
    found = read_trials(write_grid(tmp_path, recipes=["deepglobe", RECIPE]), RECIPE, params, catalog)
    assert [each.values for each in found] == [
        {"held_out_share": 0.25, "adapter": "rein", "lr": lr} for lr in (0.001, 0.01)
    ]
    assert [each.config.lr for each in found] == [0.001, 0.01]


def git(*words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run(["git", *who, *words], check=True, capture_output=True)


def test_a_folder_that_dvc_has_no_experiments_in_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def refused(*files: Path) -> str:
        with pytest.raises(InputError) as error:
            expect_repository(files)
        return str(error.value)

    assert "crossearth init --benchmark" in refused()
    for name in experiments.FILES:
        Path(name).write_text("")
    assert "git init && dvc init" in refused()
    git("init", "--quiet")
    assert "next: dvc init" in refused()
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    no_scm = true\n")
    assert "dvc config --unset core.no_scm" in refused()
    Path(".dvc/config").write_text("")
    assert "no commit yet" in refused()
    git("add", ".dvc", "dvc.yaml")
    git("commit", "--quiet", "-m", "start")
    assert "git add -f params.yaml" in refused()
    git("add", ".")
    assert "git add -f own.yaml" in refused(Path("own.yaml"))
    expect_repository([Path("params.yaml"), Path("/elsewhere/catalog.yaml")])


def test_without_dvc_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dvc.exceptions", None)
    with pytest.raises(ModuleNotFoundError) as error:
        expect_repository([])
    assert extra_of(error.value.name or "") == "pipelines"  # as `main` says


class Dvc:
    """What DVC was asked for; each experiment that it runs gets the next score, None = it fails."""

    def __init__(self, *scores: float | None) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.states: dict[str, str] = {}
        self.scores = list(scores)
        self.models: dict[str, dict[str, Any]] = {}

    def __call__(self, *words: str, threads: int | None = None) -> int:
        self.asked.append(words)
        if "--queue" in words:
            self.states[words[words.index("--name") + 1]] = "Queued"
        if "--run-all" in words:
            for name in [each for each, state in self.states.items() if state == "Queued"]:
                score = self.scores.pop(0)
                self.states[name] = "Failed" if score is None else "Success"
                self.models[name] = {"held_out_score": score}
        return 0

    @property
    def queued(self) -> list[tuple[str, ...]]:
        return [words for words in self.asked if "--queue" in words]


@pytest.fixture
def tuned(
    tmp_path: Path, params: Params, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Dvc], Tuning]:
    monkeypatch.chdir(tmp_path)
    for made in (Path("artifacts/validation/sources") / f"{RECIPE}.json", step.EARTH_STYLES):
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text("1")
    grid = write_grid(tmp_path)
    trials = {each.config.lr: each for each in read_trials(grid, RECIPE, params, catalog)}

    def tune(dvc: Dvc) -> Tuning:
        monkeypatch.setattr(experiments, "dvc", dvc)
        monkeypatch.setattr(step, "states", lambda: dict(dvc.states))
        monkeypatch.setattr(step, "expect_repository", lambda _: None)

        def model(_: str, name: str) -> dict[str, Any]:
            (words,) = [each for each in dvc.queued if name in each][-1:]
            (lr,) = [float(word.split("=")[1]) for word in words if ".lr=" in word]
            return {"train": trials[lr].parameters, **dvc.models[name]}

        monkeypatch.setattr(step, "read_model", model)
        return run(params, catalog, RECIPE, grid)

    return tune


def printed(tuning: Tuning) -> str:
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(view(tuning).text)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_every_combination_is_queued_once_and_the_best_is_chosen_by_the_source(
    tuned: Callable[[Dvc], Tuning],
) -> None:
    dvc = Dvc(0.25, 0.5)
    found = tuned(dvc)
    assert [each.score for each in found.trials] == [0.25, 0.5]
    assert found.best == found.trials[1] and not failures(found)
    first, second = dvc.queued
    settings = [word for word in first if word.startswith("++")]
    prefix = f"++presets.own.recipes.{RECIPE}"
    assert settings == [f"{prefix}.held_out_share=0.25", f'{prefix}.adapter="rein"', f"{prefix}.lr=0.001"]
    assert first[-1] == second[-1] == f"train@{RECIPE}", "no target is scored"
    assert dvc.asked[0] == ("repro", "validate", "styles")
    assert dvc.asked[-1] == ("exp", "run", "--run-all", "--jobs", "1")
    lines = printed(found).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "50.00" in lines[-1] and found.trials[1].name in lines[-1]
    assert json.loads(json.dumps(view(found).data))[1]["held_out_score"] == 0.5

    asked = len(dvc.asked)
    assert tuned(dvc) == found
    assert dvc.asked[asked:] == [("repro", "validate", "styles")], "all is done"
    step.EARTH_STYLES.write_text("2")
    assert not {each.name for each in tuned(Dvc(0.1, 0.2)).trials} & {each.name for each in found.trials}


def test_what_failed_is_named_and_tried_again(tuned: Callable[[Dvc], Tuning]) -> None:
    dvc = Dvc(None, 0.5, 0.75)
    found = tuned(dvc)
    (error,) = failures(found)
    name = found.trials[0].name
    assert f"dvc queue logs {name}" in str(error) and "lr 0.001" in str(error)
    assert f"{name} (failed)" in printed(found)
    again = tuned(dvc)
    assert ("queue", "remove", "--quiet", name) in dvc.asked
    assert len(dvc.queued) == 3 and [each.score for each in again.trials] == [0.75, 0.5]


def test_a_stopped_tuning_goes_on_and_queues_nothing_twice(tuned: Callable[[Dvc], Tuning]) -> None:
    dvc = Dvc(0.1, 0.2)
    names = [each.name for each in tuned(dvc).trials]
    dvc.states = dict.fromkeys(names, "Queued")
    dvc.scores = [0.3, 0.4]
    assert [each.score for each in tuned(dvc).trials] == [0.3, 0.4]
    assert len(dvc.queued) == 2


def test_an_experiment_that_trained_with_other_numbers_is_no_result(
    tuned: Callable[[Dvc], Tuning], monkeypatch: pytest.MonkeyPatch
) -> None:
    dvc = Dvc(0.1, 0.2)
    found = tuned(dvc)
    other = {**found.trials[0].trial.parameters, "lr": 0.5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "read_model", lambda *_: {"train": other, "held_out_score": 0.9})
        with pytest.raises(InputError, match=r"other parameters: lr(.|\n)*dvc exp remove"):
            step._scored(found.trials[0].trial, found.trials[0].name, RECIPE, "Success")
