"""Any plain ViT as backbone, its adapters and heads: small random models of each family."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crossearth.data.common.errors import InputError
from crossearth.model.crossearth import CrossEarth, crossearth_tiny, taps_of
from crossearth.model.inference import predict_labels
from crossearth.model.layers.backbone import fit_state, plain_vit, published_names
from crossearth.model.layers.lora import LoraConfig
from crossearth.model.training.multitask import (
    BRANCHES,
    LossDenominators,
    MultiTaskLoss,
    TaskConfig,
    annealed_decay,
    parameter_groups,
)
from crossearth.model.weights.checkpoint import load, save
from crossearth.model.weights.pretrained import UNKNOWN_LICENCE, describe
from crossearth.model.weights.release import fetch_backbone, read_backbone

DINOV2, DINOV2_REG, DINOV3 = (
    "vit_large_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
)
FAMILIES = [
    (DINOV2, 1),
    (DINOV2_REG, 5),
    ("vit_giant_patch14_reg4_dinov2", 5),  # SwiGLU
    (DINOV3, 5),
    ("vit_base_patch16_dinov3_qkvb", 5),  # biases apart from the map
    ("vit_huge_plus_patch16_dinov3", 5),  # gate and value apart
    ("vit_base_patch16_224", 1),  # no LayerScale
    ("vit_base_patch16_siglip_224", 0),  # no class token
    ("vit_base_patch16_rope_mixed_224", 1),  # other rotations in each block
    ("eva02_base_patch14_224", 1),  # rotations that are computed from bands
]
META = {"classes": ["a", "b", "c"], "palette": ["#000000"] * 3, "provenance": "own"}


def network(architecture: str = DINOV2, **changes: Any) -> CrossEarth:
    """Small, frozen, every block of weight, its adapter far from its beginning."""
    torch.manual_seed(0)
    values = {"frozen_backbone": True, "embed": 48, "channels": 16, "mask_channels": 16, "decoder_layers": 1}
    model = crossearth_tiny(3, 64, architecture=architecture, **values | changes).eval()
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if "gamma" in name:
                parameter.fill_(1)
        if model.rein is not None:
            model.rein.scale.fill_(0.5)
        if model.lora is not None:
            for branch in model.lora.values():
                torch.nn.init.normal_(branch.b_OR, std=0.05)
    return model


def images(height: int = 64, width: int = 64, batch: int = 1) -> Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), generator=torch.Generator().manual_seed(1))


def timm_maps(model: CrossEarth, x_B3HW: Tensor) -> list[Tensor]:
    return model.backbone.vit.forward_intermediates(x_B3HW, indices=4, norm=False, intermediates_only=True)


@torch.no_grad()
@pytest.mark.parametrize(("architecture", "num_prefix"), FAMILIES)
def test_without_adapters_the_features_are_timms_to_the_last_digit(
    architecture: str, num_prefix: int
) -> None:
    model = network(architecture, adapter="none", head="linear")
    assert model.backbone.num_prefix == num_prefix
    # DINOv2 without registers resamples positions as the released weights need it, not as timm does
    for size in [(64, 64)] if architecture == DINOV2 else [(64, 64), (48, 80)]:
        x_B3HW = model.normalise(images(*size))
        for ours, theirs in zip(model.extract(x_B3HW).maps, timm_maps(model, x_B3HW), strict=True):
            assert torch.equal(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize(("architecture", "num_prefix"), FAMILIES)
def test_rein_leaves_all_tokens_before_the_patches(architecture: str, num_prefix: int) -> None:
    model = network(architecture)
    tokens_BTC = model.backbone.embed(model.normalise(images()))
    refined_BTC = model.rein(tokens_BTC, 0)
    assert torch.equal(refined_BTC[:, :num_prefix], tokens_BTC[:, :num_prefix])
    assert not torch.isclose(refined_BTC[:, num_prefix:], tokens_BTC[:, num_prefix:]).all(-1).any()


@torch.no_grad()
@pytest.mark.parametrize("adapter", ["rein", "lora", "none"])
@pytest.mark.parametrize("architecture", [DINOV2_REG, DINOV3, "vit_base_patch16_dinov3_qkvb"])
def test_saved_models_come_back_and_lora_is_one_with_the_weights(
    architecture: str, adapter: str, tmp_path: Path
) -> None:
    model = network(architecture, adapter=adapter, mean=(1.0, 2.0, 3.0))
    expected = model(images())
    folder = save(model, tmp_path / "model", META, tmp_path / "backbones")
    stored = load_file(folder / "model.safetensors")
    assert not [name for name in stored if name.startswith("backbone.")]
    assert any(name.startswith("lora.") for name in stored) == (adapter == "lora")
    loaded = load(folder)
    assert loaded.lora is None and loaded.config.mean == (1.0, 2.0, 3.0)
    assert not [module for module in loaded.modules() if module._forward_hooks]
    torch.testing.assert_close(loaded(images()), expected, atol=1e-5, rtol=0)
    assert predict_labels(loaded, images(50, 90)).shape == (1, 50, 90)
    # the branches change no weight of the backbone: all adapters of it share one file
    assert len(list((tmp_path / "backbones").iterdir())) == 1
    save(network(architecture, adapter="none"), tmp_path / "other", META, tmp_path / "backbones")
    assert len(list((tmp_path / "backbones").iterdir())) == 1


@torch.no_grad()
def test_lora_adds_its_branches_to_every_map_from_its_first_block_on() -> None:
    model = network(DINOV3, adapter="lora", lora=LoraConfig(rank=4, alpha=8, first_block=2))
    names = {f"{block}_{map}" for block in (2, 3) for map in ("attn_qkv", "attn_proj", "mlp_fc1", "mlp_fc2")}
    assert {*model.lora} == names
    x_B3HW = model.normalise(images())
    plain, seen = timm_maps(network(DINOV3, adapter="none"), x_B3HW), model.extract(x_B3HW).maps
    assert [torch.equal(*pair) for pair in zip(plain, seen, strict=True)] == [True, True, False, False]
    branch, linear = model.lora["2_mlp_fc1"], model.backbone.blocks[2].mlp.fc1
    x_TI = torch.randn(7, 48)
    expected = x_TI @ (linear.weight + 8 / 4 * branch.b_OR @ branch.a_RI).T + linear.bias
    torch.testing.assert_close(linear(x_TI), expected)
    trained = {name.split(".")[0] for name in model.trained_parameters()}
    assert trained == {"lora", "queries", "pixel_decoder", "mask_decoder"}


@torch.no_grad()
def test_lora_starts_as_nothing() -> None:
    torch.manual_seed(0)
    model = crossearth_tiny(3, 64, frozen_backbone=True, adapter="lora").eval()
    x_B3HW = model.normalise(images())
    for ours, theirs in zip(model.extract(x_B3HW).maps, timm_maps(model, x_B3HW), strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_soma_starts_from_the_minor_components_and_from_the_pretrained_features() -> None:
    model = network(DINOV3, adapter="lora", lora=LoraConfig(rank=4, alpha=2, init="soma", first_block=0))
    model.start_adapter()
    linear, branch = model.backbone.blocks[1].attn.qkv, model.lora["1_attn_qkv"]
    singular = torch.linalg.svdvals(linear.weight)
    minor_OI = branch.scale * branch.b_OR @ branch.a_RI
    torch.testing.assert_close(torch.linalg.svdvals(minor_OI)[:4], singular[-4:], atol=1e-5, rtol=1e-4)
    rest = torch.linalg.svdvals(linear.weight - minor_OI)
    torch.testing.assert_close(rest[: len(singular) - 4], singular[:-4], atol=1e-5, rtol=1e-4)
    assert float(rest[-4:].max()) < 1e-5
    x_B3HW = model.normalise(images())
    plain = network(DINOV3, adapter="none").extract(x_B3HW).maps
    for ours, theirs in zip(model.extract(x_B3HW).maps, plain, strict=True):
        assert torch.equal(ours, theirs)
    branch.b_OR.mul_(2)  # what is trained is the minor part itself
    torch.testing.assert_close(branch.delta(), minor_OI, atol=1e-6, rtol=1e-4)


def test_soma_leaves_a_third_of_the_blocks_and_anneals_the_weight_decay() -> None:
    soma = LoraConfig(init="soma")
    assert (soma.start(24), soma.start(12), LoraConfig().start(24)) == (8, 4, 0)
    decay = [annealed_decay(iteration, 0.05, 40_000) for iteration in (0, 20_000, 40_000, 50_000)]
    assert decay == pytest.approx([0.05, (0.05 + 1e-5) / 2, 1e-5, 1e-5])


def test_dropout_depends_on_the_sample_alone() -> None:
    model = network(DINOV3, adapter="lora", lora=LoraConfig(rank=4, dropout=0.5)).train()
    x_B3HW = model.normalise(images(batch=3))
    together = model.extract(x_B3HW, keys=[5, 6, 7]).maps[-1]
    torch.testing.assert_close(model.extract(x_B3HW[1:2], keys=[6]).maps[-1], together[1:2])
    assert not torch.allclose(model.extract(x_B3HW[1:2], keys=[5]).maps[-1], together[1:2])
    model.activation_checkpointing = True
    again = model.extract(x_B3HW, keys=[5, 6, 7]).maps[-1]
    torch.testing.assert_close(again, together)
    (one,) = torch.autograd.grad(together.sum(), model.lora["0_attn_qkv"].a_RI)
    model.extract(x_B3HW, keys=[8, 9, 10])  # as another pass of the same step does, before the backward one
    (other,) = torch.autograd.grad(again.sum(), model.lora["0_attn_qkv"].a_RI)
    torch.testing.assert_close(one, other)


@torch.no_grad()
def test_a_copy_has_branches_of_its_own() -> None:
    model = network(adapter="lora")
    other, expected = copy.deepcopy(model), model(images())
    for branch in other.lora.values():
        branch.b_OR.zero_()
    assert torch.equal(model(images()), expected)
    assert not torch.allclose(other(images()), expected)


@pytest.mark.parametrize("adapter", ["rein", "lora", "none"])
@pytest.mark.parametrize("head", ["mask2former", "linear"])
def test_every_trained_parameter_gets_a_gradient(adapter: str, head: str) -> None:
    changes = {"geospatial": True, "injector": "own", "masked_modelling": True}
    model = network(DINOV3, adapter=adapter, head=head, patch_px=16, **changes).train()
    torch.nn.init.normal_(model.injector.linear.weight)
    task = MultiTaskLoss(model, BRANCHES["full"], TaskConfig(mask_block_px=16), None, seed=0)
    label = torch.randint(0, 3, (2, 64, 64), dtype=torch.uint8)
    terms = task(images(batch=2), label, [0, 1], LossDenominators.of(label, 20, 0.1))
    sum(terms.values()).backward()
    without = [name for name, value in model.trained_parameters().items() if value.grad is None]
    assert without == []
    assert not [name for name, value in model.backbone.named_parameters() if value.grad is not None]
    found = {id(value) for group in parameter_groups(model, 0.05) for value in group["params"]}
    assert len(found) == len(model.trained_parameters())


def test_a_linear_heads_loss_is_the_mean_over_labelled_pixels_of_the_whole_batch() -> None:
    model = network(head="linear", adapter="none")
    task = MultiTaskLoss(model, BRANCHES["rein"], TaskConfig(weight_seg=2.0), None, seed=0)
    label = torch.randint(0, 3, (3, 64, 64), dtype=torch.uint8)
    label[0, :40] = 255
    whole = LossDenominators.of(label, 20, 0.1)
    x_B3HW = images(batch=3)
    logits = model.pixel_logits(model.extract(model.normalise(x_B3HW)), (64, 64))
    expected = 2 * torch.nn.functional.cross_entropy(logits, label.long(), ignore_index=255)
    torch.testing.assert_close(task(x_B3HW, label, [0, 1, 2], whole)["class"], expected)
    parts = [task(x_B3HW[part], label[part], [0], whole)["class"] for part in ([0], [1], [2])]
    torch.testing.assert_close(sum(parts), expected)
    scores = model(x_B3HW)
    torch.testing.assert_close(scores, logits.softmax(1))
    unlabelled = torch.full_like(label, 255)
    assert task(x_B3HW, unlabelled, [0, 1, 2], LossDenominators.of(unlabelled, 20, 0.1))["class"] == 0


@torch.no_grad()
@pytest.mark.parametrize(("plain", "styled"), [(True, True), (True, False), (False, True), (False, False)])
def test_the_geospatial_injection_has_a_switch_for_plain_and_for_styled_images(
    plain: bool, styled: bool
) -> None:
    config = TaskConfig(inject_plain=plain, inject_styled=styled)
    task = MultiTaskLoss(network(geospatial=True), BRANCHES["full"], config, None, seed=0)
    assert task._injected(torch.tensor([False, True])).tolist() == [plain, styled]
    task.branches = BRANCHES["+style"]
    assert not task._injected(torch.tensor([False, True])).any()


def test_processes_without_an_injected_sample_exchange_gradients_too() -> None:
    model = network(geospatial=True, masked_modelling=True).train()
    task = MultiTaskLoss(
        model, BRANCHES["full"], TaskConfig(mask_block_px=16, inject_plain=False), None, seed=0
    )
    label = torch.zeros(1, 64, 64, dtype=torch.uint8)
    sum(task(images(), label, [0], LossDenominators.of(label, 20, 0.1)).values()).backward()
    assert all(parameter.grad is not None for parameter in model.gse.parameters())
    assert not any(parameter.grad.any() for parameter in model.gse.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": "lora", "frozen_backbone": False}, "frozen_backbone"),
        ({"adapter": "lora", "lora": LoraConfig(first_block=4)}, "first_block"),
        ({"adapter": "lora", "depth": 5}, "leave blocks behind"),
        ({"adapter": "none", "geospatial": True}, "injector: own"),
        ({"adapter": "lora", "lora": LoraConfig(rank=49)}, "at most 48"),
        ({"architecture": "vit_smal_patch16_dinov3"}, "vit_small_patch16_dinov3"),
        ({"architecture": "convnext_tiny"}, "no plain ViT"),
        ({"architecture": "swin_tiny_patch4_window7_224"}, "no plain ViT"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        network(**changes)


def test_taps_lie_as_the_papers_in_a_vit_of_any_depth() -> None:
    assert taps_of(24) == (7, 11, 15, 23)
    assert taps_of(12) == (3, 5, 7, 11)
    assert all(len({*taps_of(depth)}) == 4 and taps_of(depth)[-1] == depth - 1 for depth in range(4, 64))


def published_weights(folder: Path, architecture: str, name: str, **sizes: Any) -> Path:
    """Weights as timm publishes them, with a classifier."""
    torch.manual_seed(3)
    vit = plain_vit(architecture, **{"img_size": 112, "embed_dim": 128, "depth": 5, "num_heads": 2} | sizes)
    state = {**vit.state_dict(), "head.weight": torch.zeros(10, 128), "head.bias": torch.zeros(10)}
    folder.mkdir(exist_ok=True)
    save_file(state, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def described(path: Path, source: str = "") -> Any:
    return describe(read_backbone(path, shapes_only=True), path, source or str(path))


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("vit_large_patch14_dinov2", {}),
        ("vit_large_patch14_reg4_dinov2", {}),
        ("vit_giant_patch14_dinov2", {"mlp_ratio": 5.3}),
    ],
)
def test_sizes_of_an_unnamed_file_are_taken_from_its_parameters(
    tmp_path: Path, architecture: str, sizes: dict[str, Any]
) -> None:
    path = published_weights(tmp_path, architecture, "ours", **sizes)
    found = described(path)
    assert found.licence == UNKNOWN_LICENCE
    assert found.sizes.pop("mlp_ratio") == pytest.approx(sizes.get("mlp_ratio", 4), abs=0.01)
    assert found.sizes == {
        "architecture": architecture,
        "patch_px": 16,  # 14 is no power of two
        "embed": 128,
        "depth": 5,
        "heads": 2,
        "taps": (0, 1, 3, 4),
    }


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "architecture", "mean", "licence"),
    [
        ("vit_large_patch16_dinov3.sat493m", "vit_large_patch16_dinov3", 109.65, "dinov3-license"),
        ("vit_small_patch16_dinov3.lvd1689m", "vit_small_patch16_dinov3", 123.675, "dinov3-license"),
        ("vit_base_patch14_reg4_dinov2.lvd142m", "vit_base_patch14_reg4_dinov2", 123.675, "apache-2.0"),
        ("vit_base_patch16_224.augreg_in21k", "vit_base_patch16_224", 127.5, "apache-2.0"),
        ("eva02_tiny_patch14_224.mim_in22k", "eva02_tiny_patch14_224", 122.771, "mit"),
    ],
)
def test_named_weights_bring_their_normalisation_and_licence(
    tmp_path: Path, name: str, architecture: str, mean: float, licence: str
) -> None:
    path = published_weights(tmp_path, architecture, name)
    found = described(path)
    assert (found.sizes["architecture"], found.licence) == (architecture, licence)
    assert found.sizes["mean"][0] == pytest.approx(mean, abs=0.02)
    sizes = {**found.sizes, "adapter": "none", "head": "linear"}
    model = crossearth_tiny(3, 128, frozen_backbone=True, **sizes).eval()
    model.backbone.load_state_dict(fit_state(read_backbone(path), model.backbone, path))
    assert model.mean_3[0] == pytest.approx(mean, abs=0.02)
    assert model(images(128, 128)).isfinite().all()
    if model.backbone.vit.pos_embed is not None and "reg4" not in name:
        assert model.backbone.vit.pos_embed.shape[1] == 1 + 8 * 8


def test_rotary_weights_of_unknown_normalisation_are_refused(tmp_path: Path) -> None:
    path = published_weights(tmp_path, DINOV3, "weights")
    with pytest.raises(InputError, match="which mean and deviation") as error:
        described(path)
    assert "vit_large_patch16_dinov3.sat493m.safetensors" in str(error.value)


def write_hub_config(folder: Path, **changes: Any) -> None:
    of_weights = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "license": "mine"}
    config = {"architecture": DINOV3, "pretrained_cfg": of_weights | changes}
    (folder / "config.json").write_text(json.dumps(config))


def test_the_config_beside_the_weights_goes_before_all(tmp_path: Path) -> None:
    path = published_weights(tmp_path, DINOV3, "model")
    write_hub_config(tmp_path)
    found = described(path, "vit_small_patch16_dinov3.lvd1689m")
    assert found.sizes["mean"] == (25.5, 51.0, 76.5) and found.licence == "mine"
    assert found.name == "vit_small_patch16_dinov3.lvd1689m"


@pytest.mark.parametrize("changes", [{"mean": [0.1]}, {"std": [0, 1, 1]}, {"mean": "red"}, {"mean": None}])
def test_a_config_that_is_none_is_refused(tmp_path: Path, changes: Mapping[str, Any]) -> None:
    path = published_weights(tmp_path, DINOV3, "model")
    write_hub_config(tmp_path, **changes)
    with pytest.raises(InputError, match=r"config\.json"):
        described(path)


def test_weights_that_are_not_what_their_name_says_are_refused(tmp_path: Path) -> None:
    path = published_weights(tmp_path, DINOV2_REG, "vit_small_patch16_dinov3.lvd1689m")
    with pytest.raises(InputError, match="not those of vit_small_patch16_dinov3"):
        described(path)


def test_a_name_that_timm_does_not_publish_is_refused_before_any_network(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"vit_small_patch16_dinov3\.lvd1689m"):
        fetch_backbone("vit_small_patch16_dinov3.lvd1689", tmp_path)


def test_the_weights_that_are_offered_are_of_plain_vits() -> None:
    architectures = {name.partition(".")[0] for name in published_names()}
    assert {DINOV2, DINOV3, "eva02_large_patch14_448", "vit_base_patch16_siglip_224"} <= architectures
    others = ("mobilevit_s", "levit_128", "vit_base_r50_s16_224", "vitamin_base_224", "davit_base")
    assert not architectures & {*others}
