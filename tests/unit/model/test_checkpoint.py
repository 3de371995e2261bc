"""Saving and loading models: strict, by name, with shared backbones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from crossearth.data.common.errors import InputError
from crossearth.data.common.files import sha256_file, write_checksummed
from crossearth.model.crossearth import CrossEarth, crossearth_tiny
from crossearth.model.weights.checkpoint import load, load_strictly, read_meta, save, state_digest

META = {
    "classes": ["a", "b", "c"],
    "palette": ["#000000", "#ff0000", "#00ff00"],
    "provenance": "own",
}


def tiny(seed: int = 0, **changes: Any) -> CrossEarth:
    torch.manual_seed(seed)
    return crossearth_tiny(num_classes=changes.pop("num_classes", 3), image_px=64, **changes).eval()


def edit(folder: Path, change: Any) -> None:
    """Changes the weights of a model and makes its description agree with them."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    meta = read_meta(folder)
    meta["sha256"] = sha256_file(folder / "model.safetensors")
    write_checksummed(folder / "model.json", meta)


@pytest.mark.parametrize("which", ["", "model.safetensors", "model.json"])
def test_a_loaded_model_gives_the_same_scores(tmp_path: Path, which: str) -> None:
    model = tiny(geospatial=True, injector="own", masked_modelling=True)
    folder = save(model, tmp_path / "m", {**META, "recipe": "potsdam-rgb"})
    loaded = load(folder / which if which else folder)
    assert loaded.config == model.config
    assert not loaded.training
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded(image), model(image))
    meta = read_meta(folder)
    assert meta["recipe"] == "potsdam-rgb"
    assert meta["classes"] == META["classes"]
    assert meta["normalisation"]["mean"] == pytest.approx([123.675, 116.28, 103.53])


def test_equal_models_give_equal_bytes_that_others_may_read(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(tiny(), tmp_path / name, META)
    for file in ("model.safetensors", "model.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    (tmp_path / "plain").touch()
    assert (tmp_path / "one" / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_models_of_one_backbone_share_its_file(tmp_path: Path) -> None:
    first, second = tiny(), tiny(1)
    second.backbone.load_state_dict(first.backbone.state_dict())
    for name, model in (("first", first), ("second", second)):
        save(model, tmp_path / name, META, tmp_path / "backbones")
    [shared] = (tmp_path / "backbones").iterdir()
    assert not any(
        name.startswith("backbone.") for name in load_file(tmp_path / "first" / "model.safetensors")
    )
    for name, model in (("first", first), ("second", second)):
        assert state_digest(load(tmp_path / name).state_dict()) == state_digest(model.state_dict())

    moved = shared.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(InputError, match="shared backbone is not there") as error:
        load(tmp_path / "first")
    assert shared.stem in str(error.value)
    assert state_digest(load(tmp_path / "first", backbone=moved).state_dict()) == state_digest(
        first.state_dict()
    )


def test_another_backbone_is_refused_by_its_hash(tmp_path: Path) -> None:
    save(tiny(), tmp_path / "first", META, tmp_path / "backbones")
    save(tiny(1), tmp_path / "second", META, tmp_path / "backbones")
    name = Path(read_meta(tmp_path / "second")["backbone"]["file"]).name
    with pytest.raises(InputError, match="another backbone: its digest is"):
        load(tmp_path / "first", backbone=tmp_path / "backbones" / name)


def test_a_digest_says_which_numbers_not_which_file() -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1, dtype=torch.bfloat16)}
    same = dict(reversed([(name, tensor.clone()) for name, tensor in state.items()]))
    assert state_digest(state) == state_digest(same)
    for change in ({"a": state["a"].T}, {"a": state["a"].double()}, {"b": state["b"] + 1}):
        assert state_digest(state) != state_digest({**state, **change})


def test_parts_of_training_may_be_missing_and_nothing_else(tmp_path: Path) -> None:
    folder = save(tiny(geospatial=True, injector="own", masked_modelling=True), tmp_path / "m", META)
    parts = ("image_token", "gse.", "injector.", "reconstruction.")
    edit(folder, lambda state: [state.pop(name) for name in list(state) if name.startswith(parts)])
    load(folder)
    edit(folder, lambda state: [state.pop(name) for name in ("rein.scale", "rein.merge.bias")])
    with pytest.raises(InputError, match=r"missing \(2\): rein.merge.bias, rein.scale"):
        load(folder)


def test_an_injection_at_inference_needs_its_weights(tmp_path: Path) -> None:
    folder = save(
        tiny(geospatial=True, inject_at_inference=True, masked_modelling=True), tmp_path / "m", META
    )
    parts = ("image_token", "reconstruction.", "gse.layers.0")
    edit(folder, lambda state: [state.pop(name) for name in list(state) if name.startswith(parts)])
    with pytest.raises(InputError, match=r"missing \(2\): gse.layers.0.bias, gse.layers.0.weight"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(extra=torch.ones(1)), r"not of this network \(1\): extra"),
        (
            lambda state: state.update({"rein.scale": torch.ones(2)}),
            r"rein.scale is \(2,\), the network's is \(\)",
        ),
        (
            lambda state: state.update({"mask_decoder.head.classes.weight": torch.ones(9, 48)}),
            "a head of 8 classes",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: Any, message: str) -> None:
    folder = save(tiny(), tmp_path / "m", META)
    edit(folder, change)
    with pytest.raises(InputError, match=message):
        load(folder)


def test_a_refused_state_leaves_the_network_as_it_was() -> None:
    model, other = tiny(), tiny(1)
    before = state_digest(model.state_dict())
    state = other.state_dict()
    del state["rein.scale"]
    with pytest.raises(InputError):
        load_strictly(model, state, "x")
    assert state_digest(model.state_dict()) == before


NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


def spoil(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """A copy with one number replaced, far from both ends."""
    spoiled = tensor.clone()
    spoiled.view(-1)[tensor.numel() * 2 // 3] = value
    return spoiled


@pytest.mark.parametrize("value", NOT_FINITE)
def test_weights_that_are_not_finite_are_neither_loaded_nor_saved(tmp_path: Path, value: float) -> None:
    model, name = tiny(), "backbone.vit.blocks.0.mlp.fc1.weight"
    folder = save(model, tmp_path / "m", META)
    edit(folder, lambda state: state.update({name: spoil(state[name], value)}))
    with pytest.raises(InputError, match=rf"(?s)model\.safetensors: weights that are not finite: {name}\n"):
        load(folder)
    weight = model.get_parameter(name)
    weight.data = spoil(weight.data, value)
    for shared in (None, tmp_path / "backbones"):
        with pytest.raises(InputError, match=f"not finite: {name}"):
            save(model, tmp_path / "spoilt", META, shared)
    assert not (tmp_path / "spoilt").exists() and not (tmp_path / "backbones").exists()


def test_a_shared_backbone_that_is_not_finite_is_named(tmp_path: Path) -> None:
    folder = save(tiny(frozen_backbone=True), tmp_path / "m", META, tmp_path / "backbones")
    (file,) = (tmp_path / "backbones").iterdir()
    state = load_file(file)
    state["backbone.mask_token"] = spoil(state["backbone.mask_token"], float("nan"))
    save_file(state, file)
    meta = read_meta(folder)
    meta["backbone"]["digest"] = state_digest(state)
    write_checksummed(folder / "model.json", meta)
    with pytest.raises(InputError, match=rf"{file.name}: weights that are not finite: backbone\.mask_token"):
        load(folder)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    folder = save(tiny(), tmp_path / "m", META)
    image = tmp_path / "image.png"
    image.write_bytes(b"\x89PNG")
    for path, message in (
        (tmp_path / "absent", "no such model"),
        (image, "crossearth convert"),
        (tmp_path, "model.safetensors is missing\n  next: train or convert"),
    ):
        with pytest.raises(InputError, match=message):
            load(path)
    with pytest.raises(InputError, match="no shared backbone"):
        load(folder, backbone=image)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"model\.json: not JSON"),
        ("[]", r"model\.json: JSON of a list"),
        ('{"format": 1}', "not the description"),
    ],
)
def test_a_broken_description_is_refused(tmp_path: Path, text: str, message: str) -> None:
    folder = save(tiny(), tmp_path / "m", META)
    (folder / "model.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"sha256": "0" * 64}, "its sha256 is not the one"),
        ({"network": {"num_classes": 3, "stirde_px": 5}}, "stride_px"),
        ({"network": [1]}, r"model\.json: network"),
        ({"backbone": "x"}, r"model\.json: backbone"),
        ({"backbone": {"digest": "x", "file": 1}}, r"backbone\.file: .*string"),
        ({"backbone": {"digest": "x"}}, r"backbone\.file: Field required"),
        ({"classes": [1, 2, 3]}, r"classes\.0: .*string, found 1"),
        ({"classes": 3}, r"model\.json: classes"),
        ({"classes": ["a", "b"]}, "one of each of the network's classes"),
        ({"palette": [1, 2, 3]}, r"palette\.0: .*string, found 1"),
        ({"palette": ["#000000", "red", "#00ff00"]}, "palette.1: .*found 'red'"),
        ({"provenance": 7}, r"provenance: .*'own', found 7"),
        ({"sha256": 7}, r"sha256: .*string, found 7"),
        ({"reading": {"bands": [1, 2], "dtype": "uint8"}}, r"reading\.bands\.2: Field required"),
        (
            {"reading": {"bands": [1, 2, 3], "dtype": "uint8", "value_range": [9, 1]}},
            r"value_range: .*found \[9",
        ),
        ({"reading": {"bands": [1, 2, 3]}}, r"reading\.dtype: Field required"),
    ],
)
def test_a_description_that_does_not_agree_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = save(tiny(), tmp_path / "m", META)
    meta = read_meta(folder)
    write_checksummed(folder / "model.json", {**meta, **change})
    with pytest.raises(InputError, match=message):
        load(folder)


def test_weights_of_other_sizes_and_cut_files_are_refused(tmp_path: Path) -> None:
    folder = save(tiny(), tmp_path / "m", META)
    other = crossearth_tiny(num_classes=3, image_px=64)
    other = CrossEarth(replace(other.config, rank=8))
    edit(folder, lambda state: state.update(other.state_dict()))
    with pytest.raises(InputError, match=r"rein\.tokens_a_LMR is"):
        load(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    write_checksummed(folder / "model.json", {**read_meta(folder), "sha256": sha256_file(weights)})
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load(folder)
