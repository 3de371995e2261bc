"""The rule of promotion, and the registry: versions, aliases and their story, models that run elsewhere."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from mlflow import pyfunc
from mlflow.tracking import MlflowClient
from registering import OLD, Workshop, scored
from results_factory import write_fake_results
from safetensors.torch import load_file, save_file

from crossearth.components.evaluate.results import RecipeResult, read_results, write_results
from crossearth.components.predict.step import predict
from crossearth.components.register.model_card import model_card
from crossearth.components.register.promotion import Check, RegisterConfig, decide
from crossearth.components.register.registry import (
    CHALLENGER,
    CHAMPION,
    Move,
    Registry,
    champion_before,
    open_model,
)
from crossearth.components.register.step import register, rollback
from crossearth.components.runtime import tracking
from crossearth.components.runtime.tracking import start_run, tracking_uri
from crossearth.data.catalog.domains import Catalog, Recipe
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import sha256_file, write_checksummed
from crossearth.model.weights import checkpoint


@pytest.fixture(scope="module")
def recipe(catalog: Catalog) -> Recipe:
    return catalog.recipe("vaihingen-irrg")


@pytest.fixture
def base(tmp_path: Path, catalog: Catalog, recipe: Recipe) -> RecipeResult:
    """Vaihingen: two unseen targets and its own domain."""
    return write_fake_results(tmp_path / "base", catalog, recipe)


def names(recipe: Recipe) -> tuple[str, ...]:
    return tuple(setting.abbr for setting in recipe.settings)


def all_hold(checks: list[Check]) -> bool:
    return all(check.holds for check in checks)


@pytest.mark.parametrize(
    ("new", "promoted"),
    [
        ({"potsdam_irrg": 0.52, "potsdam_rgb": 0.40}, True),
        ({"potsdam_irrg": 0.504, "potsdam_rgb": 0.404}, False),  # gains 0.4 points, the margin is 0.5
        ({"potsdam_irrg": 0.506, "potsdam_rgb": 0.406}, True),
        ({"potsdam_irrg": 0.60, "potsdam_rgb": 0.385}, False),  # the worst falls by 1.5 points
        ({"potsdam_irrg": 0.60, "potsdam_rgb": 0.395}, True),
        (
            {"potsdam_irrg": 0.395, "potsdam_rgb": 0.55},
            True,
        ),  # another target is the worst now, and it is allowed
        (
            {"potsdam_irrg": 0.50, "potsdam_rgb": 0.40, "vaihingen_irrg": 0.95},
            False,
        ),  # in-domain does not count
    ],
)
def test_the_rule(base: RecipeResult, recipe: Recipe, new: dict[str, float], promoted: bool) -> None:
    champion, challenger = scored(base, **OLD), scored(base, **{**OLD, **new})
    checks = decide(champion, challenger, names(recipe), RegisterConfig(), has_champion=True)
    assert all_hold(checks) is promoted


def test_the_first_champion_needs_scores_for_everything(base: RecipeResult, recipe: Recipe) -> None:
    assert all_hold(decide(None, base, names(recipe), RegisterConfig(), has_champion=False))
    partial = replace(base, settings=base.settings[:1])
    checks = decide(None, partial, names(recipe), RegisterConfig(), has_champion=False)
    assert not checks[0].holds and checks[0].challenger == f"1 of {len(recipe.settings)}"


@pytest.mark.parametrize("has_champion", [False, True])
@pytest.mark.parametrize("same_weights", [False, True])
def test_scores_that_are_no_numbers_never_promote(
    base: RecipeResult, recipe: Recipe, has_champion: bool, same_weights: bool
) -> None:
    good = scored(base, **OLD)
    first, *others = scored(base, potsdam_irrg=0.9, potsdam_rgb=0.9, vaihingen_irrg=0.9).settings
    nothing = replace(first, confusion=tuple((0,) * len(base.classes) for _ in base.classes))
    blind = replace(good, settings=(nothing, *others))
    for champion, challenger in ((good, blind), (blind, good)):
        if challenger is good and (same_weights or not has_champion):
            continue
        checks = decide(
            champion if has_champion else None,
            challenger,
            names(recipe),
            RegisterConfig(),
            has_champion=has_champion,
            same_weights=same_weights,
        )
        refused = [check for check in checks if not check.holds]
        assert [check.question for check in refused] == ["all of these scores are numbers"]
        assert f"{nothing.setting.abbr}: nan" in (refused[0].champion, refused[0].challenger)


def test_other_tiles_and_other_rules_are_not_compared(base: RecipeResult, recipe: Recipe) -> None:
    champion = scored(base, **OLD)
    better = scored(base, potsdam_irrg=0.9, potsdam_rgb=0.9, vaihingen_irrg=0.9)
    moved = replace(
        better, settings=tuple(replace(each, manifest_digest="f" * 64) for each in better.settings)
    )
    for challenger in (moved, replace(better, selection="best-source")):
        assert not all_hold(decide(champion, challenger, names(recipe), RegisterConfig(), has_champion=True))


def test_a_champion_without_scores_is_said(base: RecipeResult, recipe: Recipe) -> None:
    checks = decide(None, base, names(recipe), RegisterConfig(), has_champion=True)
    assert [check.question for check in checks if not check.holds] == [
        "the champion has scores to compare with"
    ]


def test_the_champion_scored_anew_stays_champion(base: RecipeResult, recipe: Recipe) -> None:
    champion, worse = scored(base, **OLD), scored(base, **{**OLD, "potsdam_rgb": 0.1})
    for known in (champion, None):
        checks = decide(known, worse, names(recipe), RegisterConfig(), has_champion=True, same_weights=True)
        assert all_hold(checks)
    partial = replace(worse, settings=worse.settings[:1])
    checks = decide(champion, partial, names(recipe), RegisterConfig(), has_champion=True, same_weights=True)
    assert not all_hold(checks)


def moves(*pairs: tuple[str, str, str]) -> list[Move]:
    return [Move(CHAMPION, old, new, "me", "now", "", why) for old, new, why in pairs]


def test_rollbacks_walk_back_along_the_champions() -> None:
    line = [("", "1", "rule"), ("1", "2", "rule"), ("2", "4", "rule")]
    assert champion_before(moves(*line)) == "2"
    assert champion_before(moves(*line, ("4", "2", "rollback"))) == "1"
    assert champion_before(moves(*line, ("4", "2", "rollback"), ("2", "1", "rollback"))) is None
    assert champion_before(moves(*line, ("4", "2", "rollback"), ("2", "5", "rule"))) == "2"
    assert champion_before([]) is None


def test_the_card_says_what_a_reader_must_know(base: RecipeResult, recipe: Recipe, catalog: Catalog) -> None:
    meta = {"provenance": "synthetic", "classes": base.classes}
    card = model_card(recipe.name, meta, catalog, catalog.domain(recipe.source), base)
    for needle in (
        "synthetic miniatures",
        "ISPRS Vaihingen",
        "research only",
        "V2P(i)",
        "Selection rule: last",
    ):
        assert needle in card


@pytest.fixture
def workshop(tmp_path: Path, catalog: Catalog, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    return Workshop(tmp_path, catalog, recipe)


def test_champions_come_by_the_rule_and_go_by_rollback(
    workshop: Workshop, recipe: Recipe, typed: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    workshop.train(1)
    first = workshop.register()
    assert f"WARNING: the champion of {first.name}: this model was trained on synthetic" in caplog.text
    client = Registry().client
    made = client.get_model_version(first.name, "1")
    assert made.tags["mIoU potsdam-irrg"] == "50.0 % (unseen)"
    trained = client.get_run(made.run_id).info
    assert [model.name for model in client.search_logged_models([trained.experiment_id])] == [recipe.name]
    assert trained.status == "FINISHED"
    with (
        pytest.raises(InputError, match="expected: 'crossearth-vaihingen-irrg'"),
        open_model("models:/crossearth-vaihingen-irg@champion"),
    ):
        pass
    assert (first.version, first.champion, first.promoted) == ("1", "1", True)
    assert workshop.register() == replace(first, checks=()), "the same model is not registered twice"

    workshop.train(2, potsdam_irrg=0.501)
    refused = workshop.register()
    assert (refused.version, refused.champion, refused.promoted) == ("2", "1", False)
    assert any("rises by" in check.question and not check.holds for check in refused.checks)
    registry, name = Registry(), refused.name
    assert registry.aliased(name, CHALLENGER).version == 2

    workshop.train(3, potsdam_irrg=0.6)
    better = workshop.register()
    assert (better.version, better.champion, better.promoted) == ("3", "3", True)
    assert registry.aliased(name, CHALLENGER) is None
    assert json.loads((workshop.folder / "registry" / f"{recipe.name}.json").read_text())["promoted"]

    assert "version 1 is champion again, instead of 3" in typed(f"crossearth rollback {recipe.name}")
    again = workshop.register()
    assert not again.promoted and again.champion == "1"
    assert any("not rolled back" in check.question for check in again.checks)
    with pytest.raises(InputError, match="no earlier champion"):
        rollback(recipe)

    story = registry.moves(name)
    assert [(move.alias, move.old, move.new) for move in story if move.alias == CHAMPION] == [
        ("champion", "", "1"),
        ("champion", "1", "3"),
        ("champion", "3", "1"),
    ]
    assert all(move.who and move.when.endswith("+00:00") for move in story)
    assert all(move.run for move in story if move.new)
    assert str(story[0]).startswith("champion: none -> 1, ") and Move.parse(str(story[0])) == story[0]


def test_a_model_whose_weights_are_not_finite_is_not_registered(workshop: Workshop, recipe: Recipe) -> None:
    workshop.train(1)
    folder = workshop.folder / "models" / recipe.name
    state = load_file(folder / "model.safetensors")
    next(iter(state.values())).view(-1)[0] = float("nan")
    save_file(state, folder / "model.safetensors")
    sha256 = sha256_file(folder / "model.safetensors")
    write_checksummed(folder / "model.json", {**checkpoint.read_meta(folder), "sha256": sha256})
    write_results(replace(read_results(workshop.folder / "scores" / recipe.name), model_sha256=sha256))
    with pytest.raises(InputError, match=r"model\.safetensors: weights that are not finite"):
        workshop.register()
    assert not Registry().client.search_registered_models()


def test_the_champion_runs_in_another_folder(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/pipeline/test_serving.py runs it in another process."""
    workshop.train(1)
    outcome = workshop.register()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    uri = f"models:/{outcome.name}@champion"
    model = pyfunc.load_model(uri)
    signature = str(model.metadata.signature)
    assert "scene" in signature and "class_map" in signature
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    ids = model.predict(pd.DataFrame({"scene": [image]}))[0]
    assert ids.shape == (40, 50) and ids.dtype == np.uint8 and ids.max() < 6
    with rasterio.open(
        tmp_path / "scene.tif", "w", driver="GTiff", width=50, height=40, count=3, dtype="uint8"
    ) as file:
        file.write(image.transpose(2, 0, 1))
    with open_model(uri) as (folder, backbone):
        assert backbone is None
        [written] = predict([tmp_path / "scene.tif"], folder, tmp_path / "map.tif")
    with rasterio.open(written) as file:
        assert np.array_equal(ids, file.read(1)), "an array is mapped as a file of its pixels"


def test_an_unknown_model_is_named(workshop: Workshop) -> None:
    uri = "models:/crossearth-nowhere@champion"
    with pytest.raises(InputError, match=f"no model at {uri}"), open_model(uri):
        pass


def test_looking_for_a_model_makes_no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match="there is no registry here"), open_model("models:/a@champion"):
        pass
    assert not list(tmp_path.iterdir())


def test_an_unreachable_registry_is_named(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop.train(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="the model registry does not answer"):
        workshop.register()


def test_a_registry_that_goes_away_is_no_champion_without_scores(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.train(1)
    workshop.register()

    def away(*_: object, **__: object) -> None:
        raise ConnectionError("away")

    registry = Registry()
    champion = registry.aliased(f"crossearth-{workshop.recipe.name}", "champion")
    assert champion and registry.scores(champion)
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", away)
    assert registry.scores(champion) is None
    monkeypatch.setattr(registry.client, "search_registered_models", away)
    with pytest.raises(InputError, match="does not answer: away"):
        registry.scores(champion)


def test_an_experiment_that_was_deleted_is_said(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 1.0)
    workshop.train(1)
    with start_run("r", key="k"):
        pass
    client = MlflowClient(tracking_uri())
    client.delete_experiment(client.get_experiment_by_name("crossearth").experiment_id)
    with pytest.warns(RuntimeWarning), pytest.raises(InputError, match=r"MLflow made no run for"):
        workshop.register()


@pytest.mark.parametrize("lost", ["gone", "of an older format"])
def test_a_champion_that_lost_its_scores_gets_new_ones(lost: str, workshop: Workshop) -> None:
    workshop.train(1)
    first = workshop.register()
    (kept,) = (workshop.folder / "mlflow" / "artifacts").rglob("artifacts/details.json")
    if lost == "gone":
        kept.unlink()
    else:
        write_checksummed(kept, {"recipe": workshop.recipe.name, "miou": 0.4})
    workshop.train(2, potsdam_irrg=0.9)
    refused = workshop.register()
    assert not refused.promoted
    assert [check.question for check in refused.checks if not check.holds] == [
        "the champion has scores to compare with"
    ]
    workshop.train(1, potsdam_irrg=0.45)
    folder = workshop.folder / "scores" / workshop.recipe.name
    result = read_results(folder)
    anew = tuple(replace(each, key=f"{each.key[:-4]}anew") for each in result.settings)
    write_results(replace(result, settings=anew))
    again = workshop.register()
    assert again.promoted and again.version != first.version
    workshop.train(2, potsdam_irrg=0.9)
    assert workshop.register().promoted


def test_a_model_from_elsewhere_is_registered_with_its_scores(workshop: Workshop, recipe: Recipe) -> None:
    workshop.train(1)
    elsewhere = workshop.folder / "converted"
    shutil.move(workshop.folder / "models" / recipe.name, elsewhere)
    (outcome,) = register([recipe], workshop.catalog, workshop.folder, model_dir=elsewhere)
    assert outcome.promoted
    assert "# crossearth" in (workshop.folder / "registry" / f"{recipe.name}.md").read_text()


def test_scores_of_other_weights_are_refused(workshop: Workshop, recipe: Recipe) -> None:
    workshop.train(1)
    folder = workshop.folder / "scores" / recipe.name
    write_results(replace(read_results(folder), model_sha256="0" * 64))
    with pytest.raises(InputError, match="not those of the model in"):
        workshop.register()
