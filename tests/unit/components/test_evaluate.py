"""Scoring a model on real files: the counts of NumPy, resume, changed tiles, predictions."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from domain_factory import write_domain
from rasterio.crs import CRS

from crossearth.components.cli import model_commands
from crossearth.components.evaluate import scoring, step
from crossearth.components.evaluate.predictions import prediction_writer
from crossearth.components.evaluate.results import read_results, tile_file, write_tiles
from crossearth.components.evaluate.step import EvaluateConfig, evaluate
from crossearth.data.catalog.domains import Catalog, Recipe
from crossearth.data.common import files
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import file_lock
from crossearth.data.tiles.manifest import read_image, read_label, read_manifest
from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.inference import predict_labels
from crossearth.model.weights import checkpoint


@pytest.fixture(scope="module")
def recipe(catalog: Catalog) -> Recipe:
    return catalog.recipe("loveda-urban")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog, recipe: Recipe) -> Path:
    """A model of random weights and its target, LoveDA Rural."""
    folder = tmp_path_factory.mktemp("work")
    class_set = catalog.class_sets["loveda"]
    write_domain(catalog.domain_dir(folder / "domains", "loveda-rural"), "loveda-rural", "loveda")
    torch.manual_seed(0)
    model = crossearth_tiny(7)
    meta = {
        "classes": class_set.classes,
        "palette": class_set.palette,
        "provenance": "synthetic",
        "input_hash": "0" * 64,
        "seed": 3,
        "selection": "last",
    }
    checkpoint.save(model, folder / "model", meta)
    return folder


@pytest.fixture(autouse=True)
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def test_two_evaluations_do_not_write_into_one_folder(
    score: "Score", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PATIENCE_S", 0.0)
    running = rf"scores: an evaluation of loveda-urban is running already: process {os.getpid()} on "
    with file_lock(tmp_path / "scores", "this"), pytest.raises(InputError, match=running):
        score()
    assert not (tmp_path / "scores").exists()


@pytest.fixture
def no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_track", lambda *_: None)


Score = Callable[..., Path]


@pytest.fixture
def score(work: Path, catalog: Catalog, recipe: Recipe, tmp_path: Path, no_tracking: None) -> Score:
    def run(out: str = "scores", domains: Path | None = None, **config: object) -> Path:
        return evaluate(
            recipe,
            catalog,
            domains or work / "domains",
            work / "model",
            tmp_path / out,
            EvaluateConfig(**config),
        )

    return run


def counted(work: Path, catalog: Catalog) -> np.ndarray:
    manifest = read_manifest(catalog.domain_dir(work / "domains", "loveda-rural"), "test")
    model = checkpoint.load(work / "model")
    table = np.zeros((7, 7), dtype=np.int64)
    for index in range(len(manifest)):
        predicted = predict_labels(model, torch.from_numpy(read_image(manifest, index))[None])[0].numpy()
        label = read_label(manifest, index)
        np.add.at(table, (label[label != 255], predicted[label != 255].astype(np.int64)), 1)
    return table


def test_the_numbers_are_those_of_numpy(score: Score, work: Path, catalog: Catalog) -> None:
    result = read_results(score())
    setting = result.settings[0]
    expected = counted(work, catalog)
    assert np.array_equal(setting.confusion, expected)
    assert np.array_equal(result.tile_counts(setting)[:, 0].sum(0), np.diagonal(expected))
    assert np.array_equal(result.tile_counts(setting)[:, 2].sum(0), expected.sum(1))
    assert (setting.tiles, setting.scenes) == (7, 7)
    assert setting.ignored_pixels == 6 * 64 * 64 + 48 * 64 - expected.sum()
    assert (result.seed, result.selection, result.recipe_hash) == (3, "last", "0" * 64)


def test_the_table_has_a_row_per_class_and_one_for_the_primary_metric(score: Score) -> None:
    folder = score()
    with (folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    result = read_results(folder)
    scores = result.scores(result.settings[0])
    assert [row["class"] for row in rows] == ["mean", *result.classes]
    assert float(rows[0]["iou"]) == scores.primary_metric
    assert [float(row["iou"]) for row in rows[1:]] == scores.iou.tolist()
    assert {row["published"] for row in rows} == {""}, "synthetic numbers never stand beside published ones"
    assert {row["provenance"] for row in rows} == {"synthetic"}


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_and_readers_change_nothing(score: Score, batch_size: int) -> None:
    one = read_results(score("one"))
    other = read_results(score("other", batch_size=batch_size, readers=3))
    assert one.settings[0].confusion == other.settings[0].confusion
    assert one.tile_table(one.settings[0]).equals(other.tile_table(other.settings[0]))


def test_a_pass_holds_tiles_of_one_size_wherever_they_stand(work: Path, catalog: Catalog) -> None:
    manifest = read_manifest(catalog.domain_dir(work / "domains", "loveda-rural"), "test")
    sizes = [(row["height"], row["width"]) for row in manifest.rows]
    odd = sizes.index((48, 64))
    batches = scoring._batches(manifest, 100, checkpoint.load(work / "model"))
    assert sorted(map(len, batches)) == [1, 6] and [odd] in batches


def test_tta_scores_the_mean_of_the_flips_and_turns(score: Score, work: Path, catalog: Catalog) -> None:
    result = read_results(score(tta="d4", predictions="png"))
    manifest = read_manifest(catalog.domain_dir(work / "domains", "loveda-rural"), "test")
    model = checkpoint.load(work / "model")
    wanted = predict_labels(model, torch.from_numpy(read_image(manifest, 0))[None], 1, "d4")[0].numpy()
    tile = f"{manifest.rows[0]['tile_id']}.png"
    with rasterio.open(result.folder / "predictions" / "loveda-rural" / tile) as file:
        assert np.array_equal(file.read(1), wanted)
    assert result.settings[0].key != read_results(score("plain")).settings[0].key


def test_equal_inputs_are_not_scored_twice(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_results(score())
    monkeypatch.setattr(step, "score_target", None)
    monkeypatch.setattr(step, "load", None)
    assert read_results(score()) == first
    with pytest.raises(TypeError):
        score(panels=1)


def test_counts_that_were_swapped_are_scored_again(score: Score) -> None:
    first, other = read_results(score()), read_results(score("other", panels=1))
    tiles = first.folder / tile_file(first.settings[0].setting.target)
    rows = first.tile_table(first.settings[0]).to_pylist()
    write_tiles(tiles, [*rows[1:], rows[0]])
    again = read_results(score())
    assert again.tile_table(again.settings[0]).to_pylist() == rows
    tiles.unlink()
    again = read_results(score())
    assert again.tile_table(again.settings[0]).equals(other.tile_table(other.settings[0]))


def test_pictures_that_are_gone_or_cut_are_made_again(score: Score) -> None:
    folder = score(predictions="png")
    whole = {path: path.read_bytes() for path in folder.rglob("*.png")}
    panel = folder / "panels/loveda-rural/best-1.png"
    prediction = folder / "predictions/loveda-rural/scene2_0_0.png"
    for spoil in (
        lambda: panel.unlink(),
        lambda: panel.write_bytes(whole[panel][:50]),
        lambda: prediction.unlink(),
        lambda: shutil.rmtree(prediction.parent),
    ):
        spoil()
        score(predictions="png")
        assert {path: path.read_bytes() for path in folder.rglob("*.png")} == whole


@pytest.mark.parametrize("change", [{"primary_metric": "foreground"}, {"palette": ("#123456",) * 7}])
def test_another_primary_metric_or_palette_is_another_score(
    change: dict[str, Any], work: Path, catalog: Catalog, recipe: Recipe, tmp_path: Path, no_tracking: None
) -> None:
    class_set = catalog.class_sets[recipe.class_set]
    changed = replace(catalog, class_sets={**catalog.class_sets, "loveda": replace(class_set, **change)})
    (before,), (after,) = (
        read_results(evaluate(recipe, each, work / "domains", work / "model", tmp_path)).settings
        for each in (catalog, changed)
    )
    assert before.key != after.key


def test_panels_are_worst_and_best_and_disjoint(score: Score) -> None:
    folder = score(panels=2)
    setting = read_results(folder).settings[0]
    ious = [panel.iou for panel in (*setting.worst, *reversed(setting.best))]
    assert ious == sorted(ious)
    assert len({panel.tile_id for panel in (*setting.worst, *setting.best)}) == 4
    assert all((folder / panel.file).is_file() for panel in (*setting.worst, *setting.best))


def test_predictions_are_raw_ids(score: Score, work: Path, catalog: Catalog) -> None:
    """LoveDA's server takes PNG files of one band with ids 0..6, 0 = background."""
    folder = score(predictions="png") / "predictions" / "loveda-rural"
    manifest = read_manifest(catalog.domain_dir(work / "domains", "loveda-rural"), "test")
    model = checkpoint.load(work / "model")
    with rasterio.open(folder / "scene2_0_0.png") as file:
        assert (file.count, file.dtypes[0], file.driver) == (1, "uint8", "PNG")
        ids = file.read(1)
    assert np.array_equal(
        ids, predict_labels(model, torch.from_numpy(read_image(manifest, 2))[None])[0].numpy()
    )
    assert ids.max() <= 6
    assert len(list(folder.iterdir())) == 7


def test_a_manifest_does_not_say_where_predictions_go(
    work: Path, catalog: Catalog, recipe: Recipe, tmp_path: Path
) -> None:
    manifest = read_manifest(catalog.domain_dir(work / "domains", "loveda-rural"), "test")
    class_set = catalog.class_sets[recipe.class_set]
    forged = replace(manifest, domain="../../pwned")
    write = prediction_writer(tmp_path / "scores" / "predictions", forged, class_set, "png")
    assert write is not None
    write(0, np.zeros((64, 64), np.uint8))
    assert [path.name for path in tmp_path.rglob("*.png")] == ["scene0_0_0.png"]
    assert list((tmp_path / "scores" / "predictions").glob("*.png"))


def test_geotiff_predictions_lie_where_the_tile_lies(score: Score) -> None:
    with rasterio.open(score(predictions="geotiff") / "predictions/loveda-rural/scene2_0_0.tif") as file:
        assert file.crs.to_epsg() == 32632
        assert file.transform.c == 5e5 + 64
        assert file.colormap(1)[1][:3] == (213, 94, 0)


def test_predictions_keep_a_crs_that_geotiff_cannot_tell(
    work: Path, catalog: Catalog, recipe: Recipe, tmp_path: Path
) -> None:
    manifest = read_manifest(catalog.domain_dir(work / "domains", "loveda-rural"), "test")
    turned = CRS.from_string("+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=40 +lon_0=10")
    moved: Any = SimpleNamespace(rows=[{**row, "crs": turned.to_string()} for row in manifest.rows])
    write = prediction_writer(tmp_path, moved, catalog.class_sets[recipe.class_set], "geotiff")
    assert write is not None
    write(2, np.zeros((64, 64), np.uint8))
    with rasterio.open(tmp_path / "scene2_0_0.tif") as file:
        assert (file.crs, file.transform.c) == (turned, 5e5 + 64)
    assert {path.name for path in tmp_path.iterdir()} == {"scene2_0_0.tif", "scene2_0_0.tif.aux.xml"}


@pytest.fixture
def domains(work: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(work / "domains", tmp_path / "domains"))


def test_tiles_that_changed_or_went_are_listed(score: Score, domains: Path) -> None:
    folder = domains / "loveda" / "loveda-rural" / "test"
    (folder / "image1.tif").unlink()
    with rasterio.open(folder / "label4.tif", "r+") as file:
        label = file.read(1)
        label[0, 0] = (label[0, 0] + 1) % 7
        file.write(label, 1)
    with pytest.raises(InputError, match="2 tiles are not as they were ingested") as caught:
        score(domains=domains)
    assert "scene1_0_0" in str(caught.value) and "scene4_0_0: its label was changed" in str(caught.value)


def test_out_of_memory_names_the_field_to_change(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    def predict_labels(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(scoring, "predict_labels", predict_labels)
    with pytest.raises(
        InputError, match=r"(?s)loveda-urban: out of memory on cpu: batch_size 3.*batch_size of `eval"
    ):
        score(batch_size=3)


def test_a_target_without_a_manifest_is_named(score: Score, domains: Path, tmp_path: Path) -> None:
    (domains / "loveda" / "loveda-rural" / "test.parquet").unlink()
    with pytest.raises(InputError, match="no test split"):
        score(domains=domains)
    assert not (tmp_path / "scores").exists()


def test_a_target_without_labelled_pixels_is_refused(score: Score, domains: Path, tmp_path: Path) -> None:
    write_domain(domains / "loveda" / "loveda-rural", "loveda-rural", "loveda", ignore=True)
    with pytest.raises(InputError, match="nothing to score"):
        score(domains=domains)
    assert not (tmp_path / "scores" / "scores.csv").exists()


def test_a_model_of_other_classes_is_refused(
    work: Path, catalog: Catalog, tmp_path: Path, no_tracking: None
) -> None:
    with pytest.raises(InputError, match="expected: class set casid"):
        evaluate(catalog.recipe("casid-sub"), catalog, work / "domains", work / "model", tmp_path / "scores")


def test_labels_of_another_class_set_are_refused(score: Score, domains: Path) -> None:
    write_domain(domains / "loveda" / "loveda-rural", "loveda-rural", "casid")
    with pytest.raises(InputError, match="ingested with the classes background, building, forest"):
        score(domains=domains)


def test_labels_are_remapped_to_the_recipes_classes(
    catalog: Catalog, tmp_path: Path, no_tracking: None
) -> None:
    class_set = catalog.class_sets["rescue"]
    meta = {"classes": class_set.classes, "palette": class_set.palette, "provenance": "synthetic"}
    checkpoint.save(crossearth_tiny(5), tmp_path / "model", meta)
    recipe = catalog.recipe("potsdam-rgb-rescue")
    target = "potsdam-rgb"
    setting = replace(recipe.settings[0], target=target)
    write_domain(catalog.domain_dir(tmp_path / "domains", target), target, "isprs")
    folder = evaluate(
        replace(recipe, settings=(setting,)),
        catalog,
        tmp_path / "domains",
        tmp_path / "model",
        tmp_path / "scores",
    )
    manifest = read_manifest(catalog.domain_dir(tmp_path / "domains", target), "test")
    native = np.array([row["class_pixels"] for row in manifest.rows]).sum(0)
    labelled = np.array(read_results(folder).settings[0].confusion).sum(1)
    assert labelled.tolist() == [native[0], native[1], native[2] + native[3], native[4], native[5]]


def test_the_training_run_gets_the_same_numbers(
    work: Path, catalog: Catalog, recipe: Recipe, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    folder = evaluate(recipe, catalog, work / "domains", work / "model", tmp_path / "scores")
    result = read_results(folder)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs(["1"], filter_string=f"tags.input_hash = '{'0' * 64}'")
    assert len(runs) == 1
    metrics = runs[0].data.metrics
    scores = result.scores(result.settings[0])
    assert metrics["miou/loveda-rural"] == scores.primary_metric == metrics["all/unseen-mean"]
    for name, iou in zip(result.classes, scores.iou, strict=True):
        assert metrics[f"iou/loveda-rural/{name}"] == iou
    assert {item.path for item in client.list_artifacts(runs[0].info.run_id)} == {"scores", "panels"}


def test_the_machine_is_that_of_the_device(
    work: Path, catalog: Catalog, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "choose_device", lambda device: device)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"the GPU {device}")
    meta, class_set = checkpoint.read_meta(work / "model"), catalog.class_sets[recipe.class_set]
    result = step._describe(recipe, class_set, meta, EvaluateConfig(device="cuda:1"), Path("model"), Path())
    assert result.lineage["machine"].endswith("the GPU cuda:1")


@pytest.mark.parametrize(("rank", "said"), [("0", "comes with"), ("1", "")])
def test_of_several_processes_one_says_that_it_is_done(
    rank: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(step, "evaluate", lambda *_: Path("nowhere"))
    model_commands.evaluate(["loveda-urban"])
    printed = capsys.readouterr().out
    assert said in printed and bool(printed) == bool(said)


def test_details_are_plain_json(score: Score) -> None:
    details = json.loads((score() / "details.json").read_text())
    assert details["lineage"]["model"]["input_hash"] == "0" * 64
    assert "folder" not in details


def test_the_scores_of_seeds_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(
        step, "evaluate", lambda *given: asked.append((given[3].name, given[4].name)) or given[4]
    )
    model_commands.evaluate(["loveda-urban"], seeds="0,2")
    assert asked == [("loveda-urban",) * 2, ("loveda-urban@seed2",) * 2]
    with pytest.raises(InputError, match="--model and --seeds"):
        model_commands.evaluate(["loveda-urban"], model=tmp_path, seeds="2")


def test_curves_and_time_of_the_training_come_along(score: Score, work: Path) -> None:
    (work / "model" / "curves.csv").write_text("iteration,loss\n10,1.5\n")
    (work / "model.timing.json").write_text('{"seconds": 7.5}')
    folder = score()
    assert (folder / "curves.csv").read_text() == "iteration,loss\n10,1.5\n"
    assert read_results(folder).lineage["timing"] == {"seconds": 7.5}
    (work / "model" / "curves.csv").unlink()
    assert not (score() / "curves.csv").exists()
    (work / "model.timing.json").unlink()
