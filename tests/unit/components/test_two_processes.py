"""Two processes of one training and one evaluation: what they share, and what may not differ between them."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from domain_factory import write_domain
from services import free_port
from training_folder import RECIPE, write_folder
from two_processes import main

from crossearth.components.evaluate import step
from crossearth.components.evaluate.results import read_results
from crossearth.components.evaluate.step import EvaluateConfig, evaluate
from crossearth.components.train import step as train_step
from crossearth.data.catalog.domains import Catalog
from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.weights import checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Path:
    """A source to train on, and a model of random weights with its target, LoveDA Rural."""
    folder = tmp_path_factory.mktemp("two")
    write_folder(folder)
    class_set = catalog.class_sets["loveda"]
    write_domain(catalog.domain_dir(folder / "artifacts/domains", "loveda-rural"), "loveda-rural", "loveda")
    torch.manual_seed(0)
    meta = {"classes": class_set.classes, "palette": class_set.palette, "provenance": "synthetic"}
    checkpoint.save(crossearth_tiny(7), folder / "scored", meta)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each process says; both are forks of one that has imported what they need."""
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module.__name__ for module in (step, train_step)])
    with context.Pool(2) as pool:
        return pool.starmap_async(main, [(rank, group, folder) for rank in range(2)], 1).get(timeout=120)


def test_initial_weights_that_differ_are_refused(found: list[dict[str, Any]]) -> None:
    assert all("the initial weights differs between the processes" in each["weights"] for each in found)


def test_states_that_differ_are_refused_though_their_iterations_are_equal(
    found: list[dict[str, Any]],
) -> None:
    assert all("the state to resume from differs between the processes" in each["states"] for each in found)


def test_trained_parameters_are_shared_and_a_frozen_backbone_is_not(found: list[dict[str, Any]]) -> None:
    first, second = found
    (before, after), (other, taken) = first["trained"], second["trained"]
    assert other == pytest.approx(before + 1)
    assert (after, taken) == (before, before)
    assert (first["frozen"], second["frozen"]) == (0, 1)


def test_gradients_are_shared(found: list[dict[str, Any]]) -> None:
    assert found[0]["gradients"] == found[1]["gradients"]
    assert not any(each["without"] for each in found)


def test_their_scores_are_those_of_one(
    found: list[dict[str, Any]],
    folder: Path,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step, "_track", lambda *_: None)
    alone = read_results(
        evaluate(
            catalog.recipe(RECIPE),
            catalog,
            folder / "artifacts/domains",
            folder / "scored",
            tmp_path / "alone",
            EvaluateConfig(batch_size=2),
        )
    )
    together = read_results(folder / "together")
    assert together.settings[0].confusion == alone.settings[0].confusion
    assert together.tile_table(together.settings[0]).equals(alone.tile_table(alone.settings[0]))
    assert [panel.tile_id for panel in together.settings[0].worst] == [
        panel.tile_id for panel in alone.settings[0].worst
    ]
