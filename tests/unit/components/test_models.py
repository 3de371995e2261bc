"""The list of models, here and in the registry, and their cards."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from results_factory import write_fake_results

from crossearth.components.evaluate.results import write_results
from crossearth.components.register.step import register
from crossearth.data.catalog.domains import Catalog, Recipe
from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.weights import checkpoint

Typed = Callable[[str], str]


@pytest.fixture
def recipe(catalog: Catalog) -> Recipe:
    return catalog.recipe("vaihingen-irrg")


@pytest.fixture
def home(tmp_path: Path, catalog: Catalog, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a trained and scored model, and one that was converted; no registry."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    class_set = catalog.class_sets[recipe.class_set]
    meta = {"classes": class_set.classes, "palette": class_set.palette, "provenance": "publisher"}
    torch.manual_seed(0)
    network = crossearth_tiny(len(class_set.classes), 32)
    trained = tmp_path / "artifacts/models" / recipe.name
    checkpoint.save(network, trained, {**meta, "recipe": recipe.name, "source": recipe.source})
    with torch.no_grad():
        next(network.parameters()).add_(1)  # two models, not one under two names
    checkpoint.save(network, tmp_path / "models/released", {**meta, "released": {}})
    scores = write_fake_results(tmp_path / "artifacts/scores" / recipe.name, catalog, recipe)
    write_results(replace(scores, model_sha256=checkpoint.read_meta(trained)["sha256"]))
    return tmp_path


def test_models_are_listed_with_what_is_known_of_them(home: Path, typed: Typed) -> None:
    trained, released = json.loads(typed("crossearth models --json"))
    assert trained["name"] == "artifacts/models/vaihingen-irrg"
    about = trained["about"]
    assert about["bands"] == ["near infrared", "red", "green"] and about["gsd_m"] == 0.09
    assert "research" in about["licence"]
    assert set(about["scores"]) == {"all/unseen-mean", "all/unseen-worst", "all/in-domain"}
    assert about["size_bytes"] == (home / trained["name"] / "model.safetensors").stat().st_size
    assert released["about"]["scores"] == {} and released["about"]["licence"] == ""
    printed = typed("crossearth models")
    assert "next: crossearth models show artifacts/models/vaihingen-irrg" in printed


def test_a_damaged_model_does_not_hide_the_others(home: Path, typed: Typed) -> None:
    (home / "models/released/model.json").write_text("{")
    sound, damaged = json.loads(typed("crossearth models --json"))
    assert sound["about"] and damaged["about"] is None and "not JSON" in damaged["problem"]
    assert "not JSON" in typed("crossearth models")


def test_registered_models_are_listed_by_alias_and_last_version(
    home: Path, catalog: Catalog, recipe: Recipe, typed: Typed
) -> None:
    register([recipe], catalog, home / "artifacts")
    name = "models:/crossearth-vaihingen-irrg@champion"
    listed = {each["name"]: each["about"] for each in json.loads(typed("crossearth models --json"))}
    assert set(listed) == {"artifacts/models/vaihingen-irrg", "models/released", name}
    assert listed[name] == listed["artifacts/models/vaihingen-irrg"]
    card = typed(f"crossearth models show {name}")
    assert card.startswith("# crossearth: vaihingen-irrg\n")
    assert f"next: mlflow models serve -m {name}" in card
    with pytest.raises(AssertionError, match="no model at models:/crossearth-other/1"):
        typed("crossearth models show models:/crossearth-other/1")


def test_a_registry_that_does_not_answer_hides_no_model(
    home: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert len(json.loads(typed("crossearth models --json"))) == 2


def test_listing_makes_no_registry(home: Path, typed: Typed) -> None:
    typed("crossearth models")
    assert not (home / "mlflow").exists()


def test_no_models_at_all(typed: Typed) -> None:
    assert "next: crossearth train RECIPE" in typed("crossearth models")


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("vaihingen-irrg", ["ISPRS Vaihingen", "Selection rule: last", "crossearth register vaihingen-irrg"]),
        (
            "models/released",
            [
                "# crossearth: released",
                "It was not scored",
                "as that of the training",
                "--model models/released",
            ],
        ),
    ],
)
def test_a_models_card_and_next_commands(home: Path, typed: Typed, model: str, known: list[str]) -> None:
    card = typed(f"crossearth models show {model}")
    assert all(word in card for word in known), card
    assert "next: crossearth predict SCENE.tif --model" in card


def test_what_is_no_model_is_refused(home: Path, typed: Typed) -> None:
    shutil.rmtree(home / "models")
    with pytest.raises(AssertionError, match="no such model"):
        typed("crossearth models show models/released")
