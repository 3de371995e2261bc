"""`convert`: released file + backbone -> a model that gives the authors' numbers."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from domain_factory import write_domain
from released import write_released
from sizes import config_from_meta

from crossearth.components.convert import step
from crossearth.components.convert.step import ConvertConfig, convert
from crossearth.components.evaluate.results import read_results
from crossearth.components.evaluate.step import evaluate
from crossearth.components.register.registry import open_model
from crossearth.components.register.step import register
from crossearth.data.catalog.domains import ClassSet
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import sha256_file
from crossearth.model.crossearth import NetworkConfig
from crossearth.model.inference import slide_logits
from crossearth.model.weights.checkpoint import load, read_meta
from crossearth.model.weights.pickles import read_torch_file

CLASSES = ("impervious", "building", "low vegetation", "tree", "car", "clutter")
TRAINING = {"backbone.reins.high_extractor.conv1.weight": torch.ones(4), "auxiliary_head.w": torch.ones(3)}


@pytest.fixture
def recorded(parity_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recorded network as a released pair of files; its sizes stand in for the paper's."""
    meta = json.loads((parity_dir / "meta.json").read_text())
    state = {name: torch.from_numpy(value) for name, value in np.load(parity_dir / "state.npz").items()}
    config = config_from_meta(meta, {name: tensor.shape for name, tensor in state.items()})
    windows = {name: meta["build_kwargs"][name][0] for name in ("crop", "stride")}
    config = replace(config, crop_px=windows["crop"], stride_px=windows["stride"])

    def sized(num_classes: int, image_px: int) -> NetworkConfig:
        return replace(config, num_classes=num_classes, image_px=image_px)

    monkeypatch.setattr(step, "large_config", sized)
    trained = {name: state[name] for name in state if name.startswith(("backbone.reins.", "decode_head."))}
    write_released(tmp_path / "potsdam-source.pth", trained | TRAINING, CLASSES)
    frozen = {name.removeprefix("backbone."): state[name] for name in state if name not in trained}
    torch.save(frozen, tmp_path / "dinov2_converted.pth")
    return tmp_path


def settings(folder: Path, **changes: object) -> ConvertConfig:
    return replace(ConvertConfig(backbone=str(folder / "dinov2_converted.pth")), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [False, True])
def test_a_converted_model_gives_the_recorded_scores(recorded: Path, parity_dir: Path, shared: bool) -> None:
    config = settings(recorded, backbones_dir=recorded / "backbones" if shared else None)
    out = convert(recorded / "potsdam-source.pth", recorded / "model", config)
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.safetensors"]
    model = load(out)
    tensors = np.load(parity_dir / "io.npz")
    sizes = (model.config.crop_px, model.config.stride_px)
    with torch.inference_mode():
        for case in ("slide0", "slide1"):
            ours = slide_logits(model.segment, torch.from_numpy(tensors[f"{case}_inputs"]), *sizes)
            np.testing.assert_allclose(ours, tensors[f"{case}_logits"], atol=2e-4, rtol=1e-4)
        raw_rgb = torch.from_numpy(tensors["raw_bgr_u8"]).flip(1)
        np.testing.assert_allclose(model(raw_rgb), tensors["seg_logits"], atol=2e-4, rtol=1e-4)


def test_a_converted_model_is_scored_registered_and_fetched(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of users with the real data: the commands of a trained model, without the training."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{recorded}/mlflow/mlflow.db")
    catalog = load_catalog()
    recipe = catalog.recipe("potsdam-rgb")
    config = settings(recorded, backbones_dir=recorded / "backbones")
    model = convert(recorded / "potsdam-source.pth", recorded / "model", config, catalog.class_sets["isprs"])
    for target in {setting.target for setting in recipe.settings}:
        write_domain(catalog.domain_dir(recorded / "domains", target), target, "isprs", tiles=2)
    scores = evaluate(recipe, catalog, recorded / "domains", model, recorded / "scores" / recipe.name)
    result = read_results(scores)
    assert (result.selection, result.seed, len(result.settings)) == ("released", None, 3)
    (outcome,) = register([recipe], catalog, recorded, model_dir=model)
    assert outcome.promoted
    image_13HW = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    with open_model(f"models:/{outcome.name}@champion") as (folder, backbone):
        fetched = load(folder, backbone=backbone)
        assert torch.equal(fetched(image_13HW), load(model)(image_13HW))


def test_the_description_says_where_all_of_it_comes_from(recorded: Path) -> None:
    released, backbone = recorded / "potsdam-source.pth", recorded / "dinov2_converted.pth"
    meta = read_meta(convert(released, recorded / "model", settings(recorded)))
    assert tuple(meta["classes"]) == CLASSES
    assert meta["palette"][2] == "#14141e"
    assert meta["provenance"] == "publisher"
    origin = meta["released"]
    assert origin["sha256"] == sha256_file(released)
    assert origin["under"] == "state_dict"
    assert origin["backbone"]["sha256"] == sha256_file(backbone)
    assert origin["training_only"] == sorted(TRAINING)
    assert origin["says"]["iter"] == 30000
    assert meta["network"]["image_px"] == 64
    assert meta["normalisation"]["std"] == pytest.approx([58.395, 57.12, 57.375])


def test_a_backbone_of_another_grid_is_resampled(recorded: Path) -> None:
    out = convert(recorded / "potsdam-source.pth", recorded / "model", settings(recorded, image_px=96))
    assert load(out).backbone.vit.pos_embed.shape[1] == 1 + 6 * 6


def test_names_and_colours_of_a_class_set_win(recorded: Path) -> None:
    own = ClassSet("own", tuple("abcdef"), ("#010203",) * 6)
    meta = read_meta(convert(recorded / "potsdam-source.pth", recorded / "model", settings(recorded), own))
    assert meta["classes"] == list("abcdef")
    few = ClassSet("few", ("a", "b"), ("#000000", "#ffffff"))
    with pytest.raises(InputError, match="its head has 6 classes; class set few has 2 names"):
        convert(recorded / "potsdam-source.pth", recorded / "other", settings(recorded), few)
    assert not (recorded / "other").exists()


def test_without_words_of_its_own_the_class_set_must_be_given(recorded: Path, tmp_path: Path) -> None:
    state = read_torch_file(recorded / "potsdam-source.pth")["state_dict"]
    for meta in ({}, [1], {"dataset_meta": {"classes": list("abcdef"), "palette": [[999]] * 6}}):
        torch.save({"state_dict": state, "meta": meta}, recorded / "bare.pth")
        with pytest.raises(InputError, match="--class-set"):
            convert(recorded / "bare.pth", recorded / "model", settings(recorded))


class Command:
    """Runs a command where it is unpickled freely."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("place", ["released", "backbone"])
def test_a_hostile_file_runs_nothing_and_leaves_nothing(recorded: Path, place: str) -> None:
    files = {"released": recorded / "potsdam-source.pth", "backbone": recorded / "dinov2_converted.pth"}
    torch.save({"state_dict": {"w": torch.ones(2)}, "message_hub": Command(recorded / "ran")}, files[place])
    with pytest.raises(InputError, match=r"the pickle asks for 'posix\.system'"):
        convert(files["released"], recorded / "model", settings(recorded))
    assert not (recorded / "ran").exists()
    assert not (recorded / "model").exists()


@pytest.mark.parametrize("place", ["released", "backbone"])
def test_weights_that_are_not_finite_are_refused(recorded: Path, place: str) -> None:
    files = {"released": recorded / "potsdam-source.pth", "backbone": recorded / "dinov2_converted.pth"}
    content = read_torch_file(files[place])
    state = content["state_dict"] if place == "released" else content
    state[next(iter(state))].view(-1)[-1] = float("nan")
    if place == "released":
        write_released(files[place], state, CLASSES)
    else:
        torch.save(state, files[place])
    with pytest.raises(InputError, match=rf"{files[place].name}: weights that are not finite"):
        convert(files["released"], recorded / "model", settings(recorded))
    assert not (recorded / "model").exists()


def test_a_trained_models_folder_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"recipe": "town"}')
    with pytest.raises(InputError, match=r"(?s)another origin.*--out"):
        convert(tmp_path / "a.pth", tmp_path, ConvertConfig(backbone="b"))
