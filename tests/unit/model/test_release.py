"""Released checkpoints and backbones: names, resampling, sources, refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from released import write_released
from safetensors.torch import save_file
from torch import Tensor

from crossearth.data.common.errors import InputError
from crossearth.data.common.files import sha256_file
from crossearth.data.tiles import store
from crossearth.model.crossearth import CrossEarth, large_config, tiny_config
from crossearth.model.layers.backbone import fit_state
from crossearth.model.weights import release
from crossearth.model.weights.checkpoint import save, state_digest
from crossearth.model.weights.names import to_ours, to_released
from crossearth.model.weights.release import (
    fetch_backbone,
    image_px_of,
    load_released,
    read_backbone,
    read_released,
)

SIZES = replace(tiny_config(3, 64), patch_px=16, frozen_backbone=True)


def network(seed: int = 0) -> CrossEarth:
    torch.manual_seed(seed)
    return CrossEarth(SIZES).eval()


def released_names(model: CrossEarth, trained: bool) -> dict[str, Tensor]:
    """The trained or the frozen part of `model`, as the authors' files name it."""
    return {
        str(to_released(name)): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("backbone.") != trained
    }


def vit(model: CrossEarth) -> dict[str, Tensor]:
    """The backbone of `model` under DINOv2's names."""
    return {
        name.removeprefix("backbone."): value for name, value in released_names(model, trained=False).items()
    }


def test_every_name_of_the_released_model_has_one_of_ours_and_back(parity_dir: Path) -> None:
    keys = json.loads((parity_dir / "vitl_keys.json").read_text())["keys"]
    with torch.device("meta"):
        expected = {
            name: list(tensor.shape) for name, tensor in CrossEarth(large_config(6)).state_dict().items()
        }
    assert {to_ours(name): entry["shape"] for name, entry in keys.items()} == expected
    assert all(to_released(str(to_ours(name))) == name for name in keys)
    trained = [name for name, entry in keys.items() if entry["in_official_state_dict"]]
    frozen = [name for name in keys if name not in trained]
    assert (len(trained), len(frozen)) == (303, 343)
    assert all(str(to_ours(name)).startswith("backbone.") for name in frozen)
    assert not any(str(to_ours(name)).startswith("backbone.") for name in trained)


def test_a_released_file_and_a_backbone_make_the_network(tmp_path: Path) -> None:
    model = network()
    training = {
        "backbone.reins.high_extractor.conv1.weight": torch.ones(4),
        "style_augmentor.mean": torch.ones(2),
        "auxiliary_head.conv.weight": torch.ones(3),
    }
    write_released(tmp_path / "x-source.pth", released_names(model, trained=True) | training, ("a", "b", "c"))
    torch.save(vit(model), tmp_path / "dinov2_converted.pth")
    checkpoint = read_released(tmp_path / "x-source.pth")
    assert checkpoint.training.keys() == training.keys()
    assert checkpoint.num_classes == 3
    assert checkpoint.meta["iter"] == 30000
    assert json.loads(json.dumps(checkpoint.meta)) == checkpoint.meta
    assert checkpoint.sha256 == sha256_file(tmp_path / "x-source.pth")
    other = network(1)
    backbone = read_backbone(tmp_path / "dinov2_converted.pth")
    load_released(other, checkpoint, backbone, "x")
    assert state_digest(other.state_dict()) == state_digest(model.state_dict())


@pytest.mark.parametrize(
    ("key", "prefix", "beside", "under"),
    [
        ("state_dict", "module.", {}, "state_dict: module."),
        ("state_dict", "model.", {"steps": torch.tensor(3)}, "state_dict: model."),
        ("model", "_orig_mod.module.", {}, "model: _orig_mod.module."),
        ("ema_state_dict", "module.", {"module.steps": torch.tensor(3)}, "ema_state_dict: module."),
        ("state_dict_ema", "", {}, "state_dict_ema"),
    ],
)
def test_names_that_wrappers_put_before_are_taken_away(
    key: str, prefix: str, beside: dict[str, Tensor], under: str, tmp_path: Path
) -> None:
    state = released_names(network(), trained=True)
    named = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    torch.save({key: named | beside, "epoch": 3}, tmp_path / "x.pth")
    checkpoint = read_released(tmp_path / "x.pth")
    assert state_digest(checkpoint.state) == state_digest(state)
    assert checkpoint.under == under
    assert checkpoint.training.keys() == {name.removeprefix(prefix) for name in beside}
    whole = {f"{prefix}backbone.{name}": tensor for name, tensor in vit(network()).items()}
    torch.save({key: named | whole}, tmp_path / "whole.pth")
    assert state_digest(read_backbone(tmp_path / "whole.pth")) == state_digest(vit(network()))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            lambda x: {
                "state_dict": {f"student.{n}": t for n, t in x.items()}
                | {f"teacher.{n}": t for n, t in x.items()}
            },
            "several networks, under state_dict: student., state_dict: teacher.",
        ),
        (lambda x: {"ema": x, "model_ema": x}, "several networks, under ema, model_ema"),
    ],
)
def test_several_networks_of_equal_rank_are_named(named, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    torch.save(named(released_names(network(), trained=True)), tmp_path / "x.pth")
    with pytest.raises(InputError, match=message):
        read_released(tmp_path / "x.pth")


def test_the_average_gives_way_to_what_was_trained(tmp_path: Path) -> None:
    state, average = (released_names(network(seed), trained=True) for seed in (0, 1))
    file = {
        "ema_state_dict": {f"module.{name}": tensor for name, tensor in average.items()},
        "state_dict": state,
    }
    torch.save(file, tmp_path / "x.pth")
    checkpoint = read_released(tmp_path / "x.pth")
    assert (state_digest(checkpoint.state), checkpoint.under) == (state_digest(state), "state_dict")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("backbone.reins.scale"), "missing .*rein.scale"),
        (
            lambda state: state.update({"decode_head.surprise": torch.ones(1)}),
            "does not know .*decode_head.surprise",
        ),
        (
            lambda state: state.update({"backbone.reins.new": torch.ones(1)}),
            "does not know .*backbone.reins.new",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    state = released_names(network(), trained=True)
    change(state)
    write_released(tmp_path / "x.pth", state)
    with pytest.raises(InputError, match=message):
        load_released(network(1), read_released(tmp_path / "x.pth"), vit(network()), "x")


def test_a_backbone_is_no_released_checkpoint(tmp_path: Path) -> None:
    torch.save(vit(network()), tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"no decode_head\.cls_embed\.weight among its"):
        read_released(tmp_path / "b.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="no parameters in it"):
        read_released(tmp_path / "list.pth")


def test_positions_and_kernels_are_resampled_as_recorded(parity_dir: Path) -> None:
    recorded = np.load(parity_dir / "convert.npz")
    sizes = replace(SIZES, embed=12, heads=1, image_px=512, geospatial=False)
    model = CrossEarth(sizes)
    state = {name.removeprefix("vit."): tensor for name, tensor in model.backbone.state_dict().items()}
    for name in ("pos_embed", "patch_embed.proj.weight"):
        state[name] = torch.from_numpy(recorded[f"in/{name}"])
    model.backbone.load_state_dict(fit_state(state, model.backbone, "x"))
    for name in ("pos_embed", "patch_embed.proj.weight"):
        ours = model.backbone.state_dict()[f"vit.{name}"]
        np.testing.assert_allclose(ours, recorded[f"out/{name}"], atol=1e-6)


@pytest.mark.parametrize("form", ["converted", "original", "timm", "prefixed", "whole", "shared"])
def test_every_form_of_backbone_is_read(tmp_path: Path, form: str) -> None:
    model = network()
    state, path = vit(model), tmp_path / "backbone.pth"
    if form == "original":
        torch.save({"model": state}, path)
    elif form == "prefixed":
        torch.save({f"backbone.{name}": value for name, value in state.items()}, path)
    elif form == "whole":
        write_released(path, released_names(model, trained=True) | released_names(model, trained=False))
    elif form == "timm":
        path = tmp_path / "model.safetensors"
        save_file({name: value for name, value in state.items() if name != "mask_token"}, path)
        state["mask_token"] = torch.zeros_like(state["mask_token"])
    elif form == "shared":
        meta = {"classes": ["a"] * 3, "palette": ["#000000"] * 3, "provenance": "own"}
        save(model, tmp_path / "m", meta, tmp_path / "backbones")
        [path] = (tmp_path / "backbones").iterdir()
    else:
        torch.save(state, path)
    other = network(1)
    other.backbone.load_state_dict(fit_state(read_backbone(path), other.backbone, path))
    assert state_digest(vit(other)) == state_digest(state)


def test_the_size_of_a_patch_16_backbone_is_in_its_positions() -> None:
    state = {
        "pos_embed": torch.zeros(1, 1 + 64 * 64, 4),
        "patch_embed.proj.weight": torch.zeros(4, 3, 16, 16),
    }
    assert image_px_of(state, 16) == 1024
    assert image_px_of({**state, "patch_embed.proj.weight": torch.zeros(4, 3, 14, 14)}, 16) is None


def test_a_backbone_of_other_depth_is_named(tmp_path: Path) -> None:
    torch.save(vit(CrossEarth(replace(SIZES, depth=5))), tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"not of this network \(14\): blocks\.4"):
        fit_state(read_backbone(tmp_path / "b.pth"), network().backbone, "b.pth")
    save_file({"conv1.weight": torch.ones(1)}, tmp_path / "resnet.safetensors")
    with pytest.raises(InputError, match="no vision transformer in it"):
        read_backbone(tmp_path / "resnet.safetensors")


def test_an_absent_backbone_names_the_choices(tmp_path: Path) -> None:
    for source in ("absent.pth", str(tmp_path / "absent"), "weights/absent"):
        with pytest.raises(InputError, match="s3://bucket/key, or a name of timm's hub"):
            fetch_backbone(source, tmp_path)


def test_without_a_network_the_message_names_the_file_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(repository: str, file: str) -> str:
        raise LocalEntryNotFoundError("cannot find the file in the cache and there is no network")

    monkeypatch.setattr(release, "hf_hub_download", offline)
    with pytest.raises(InputError) as error:
        fetch_backbone("vit_large_patch14_dinov2.lvd142m", tmp_path)
    address = "https://huggingface.co/timm/vit_large_patch14_dinov2.lvd142m/resolve/main/model.safetensors"
    assert address in str(error.value)
    assert "--backbone" in str(error.value)


def test_an_s3_backbone_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def download(url: str, path: Path) -> None:
        fetched.append(url)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"weights")

    monkeypatch.setattr(store, "download", download)
    for _ in range(2):
        path = fetch_backbone("s3://bucket/dinov2/converted.pth", tmp_path / "cache")
        assert path.read_bytes() == b"weights"
    assert fetched == ["s3://bucket/dinov2/converted.pth"]
