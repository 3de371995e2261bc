"""The network at small sizes: shapes, sizes it takes and refuses, adapters, injection, names."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from crossearth.data.common.errors import InputError
from crossearth.model.crossearth import CrossEarth, NetworkConfig, crossearth_tiny, large_config, tiny_config
from crossearth.model.layers.backbone import fit_state
from crossearth.model.layers.mask_decoder import semantic_logits
from crossearth.model.layers.pixel_decoder import MAP_SCALES, convolve_rescaled, rescale, sample_levels
from crossearth.model.layers.rein import Rein
from crossearth.model.weights.names import to_ours, to_released

NUM_CLASSES = 5


def network(seed: int = 0, **changes: Any) -> CrossEarth:
    torch.manual_seed(seed)
    return crossearth_tiny(NUM_CLASSES, 64, **changes)


def images(batch: int = 2, height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator).to(torch.uint8)


@torch.no_grad()
def test_plain_vit_when_the_adapters_scale_is_zero() -> None:
    model = network(taps=(0, 1, 2, 3)).eval()
    model.rein.scale.zero_()
    x_B3HW = model.normalise(images(1))
    maps = model.extract(x_B3HW).maps
    vit = model.backbone.vit
    plain = vit.forward_intermediates(x_B3HW, indices=4, norm=False, intermediates_only=True)
    for ours_BChw, theirs_BChw in zip(maps, plain, strict=True):
        torch.testing.assert_close(ours_BChw, theirs_BChw)


@torch.no_grad()
def test_an_adapter_adds_what_each_patch_finds_among_the_learned_tokens_but_the_first() -> None:
    """The first token takes its share of the attention and gives nothing for it."""
    torch.manual_seed(0)
    rein = Rein(depth=3, num_tokens=4, rank=2, embed=6, query_dim=5).double()
    rein.scale.fill_(0.5)
    tokens_BTC, layer = torch.randn(2, 1 + 3, 6, dtype=torch.float64), 1
    learned_MC = rein.tokens_a_LMR[layer] @ rein.tokens_b_LRC[layer]
    expected_BTC = tokens_BTC.clone()
    for image in range(2):
        for patch in range(1, 4):
            feat_C = tokens_BTC[image, patch]
            attention = [math.exp(float(feat_C @ token_C) / math.sqrt(6)) for token_C in learned_MC]
            delta_C = feat_C.clone()
            for token in range(1, 4):
                value_C = rein.token_to_feature.weight @ learned_MC[token] + rein.token_to_feature.bias
                delta_C += attention[token] / sum(attention) * value_C
            expected_BTC[image, patch] += 0.5 * (rein.delta.weight @ delta_C + rein.delta.bias)
    torch.testing.assert_close(rein(tokens_BTC, layer), expected_BTC)


@torch.no_grad()
def test_queries_come_from_the_largest_the_mean_and_the_last_of_the_learned_tokens() -> None:
    torch.manual_seed(0)
    rein = Rein(depth=3, num_tokens=4, rank=2, embed=6, query_dim=5).double()
    torch.nn.init.normal_(rein.merge.bias)
    for token, query_D in enumerate(rein.queries()):
        blocks = [
            rein.to_query.weight @ (rein.tokens_b_LRC[block].T @ rein.tokens_a_LMR[block, token])
            + rein.to_query.bias
            for block in range(3)
        ]
        three = torch.stack(
            [
                torch.stack(blocks).max(0).values,
                (blocks[0] + blocks[1] + blocks[2]) / 3,
                blocks[2],
            ]
        )
        # released order: the three numbers of a channel side by side
        torch.testing.assert_close(query_D, rein.merge.weight @ three.T.flatten() + rein.merge.bias)


@torch.no_grad()
def test_ten_predictions_are_supervised_the_initial_and_nine_of_the_decoder() -> None:
    assert large_config(6).decoder_layers == 9
    model = network(decoder_layers=9)
    assert len(model.decode(model.extract(model.normalise(images(1))))) == 10


@torch.no_grad()
def test_training_modules_do_not_touch_inference() -> None:
    plain = network()
    full = network(1, geospatial=True, masked_modelling=True)
    missing, extra = full.load_state_dict(plain.state_dict(), strict=False)
    assert not extra
    assert all(name.startswith(("gse.", "reconstruction.", "image_token")) for name in missing)
    assert torch.equal(plain(images()), full(images()))


def test_an_inference_network_has_no_training_modules() -> None:
    model = network()
    assert model.gse is None and model.injector is None
    assert model.image_token is None and model.reconstruction is None
    features = model.extract(model.normalise(images()))
    with pytest.raises(InputError, match="reconstruction"):
        model.reconstruct(features)
    with pytest.raises(InputError, match="geospatial"):
        model.extract(model.normalise(images()), torch.tensor([True, False]))


@torch.no_grad()
@pytest.mark.parametrize("injector", ["shared", "own"])
def test_injection_touches_the_chosen_samples_only(injector: str) -> None:
    model = network(geospatial=True, injector=injector)
    if model.injector is not None and model.injector.linear is not None:
        assert not model.injector.linear.weight.any(), "starts as nothing"
        torch.nn.init.normal_(model.injector.linear.weight)
    x_B3HW = model.normalise(images(3))
    plain = model.extract(x_B3HW)
    injected = model.extract(x_B3HW, torch.tensor([False, True, False]))
    for plain_BChw, injected_BChw in zip(plain.maps, injected.maps, strict=True):
        torch.testing.assert_close(plain_BChw[[0, 2]], injected_BChw[[0, 2]])
        assert not torch.allclose(plain_BChw[1], injected_BChw[1])
    none = model.extract(x_B3HW, torch.zeros(3, dtype=torch.bool))
    assert torch.equal(none.maps[-1], plain.maps[-1])


@torch.no_grad()
def test_the_injection_can_stay_on_at_inference() -> None:
    model = network(geospatial=True, inject_at_inference=True)
    features = model.extract(model.normalise(images()), torch.ones(len(images()), dtype=torch.bool))
    expected = semantic_logits(model.decode(features)[-1], (images().shape[2], images().shape[3]))
    assert torch.equal(model(images()), expected)
    off = network(geospatial=True)
    off.load_state_dict(model.state_dict())
    assert not torch.allclose(off(images()), expected)


def test_a_frozen_backbone_stays_in_eval_mode_and_all_else_is_trained() -> None:
    model = network(frozen_backbone=True, geospatial=True, masked_modelling=True).train()
    assert not model.backbone.training and model.pixel_decoder.training
    trained = {*model.trained_parameters()}
    parts = {"rein", "pixel_decoder", "mask_decoder", "gse", "image_token", "reconstruction"}
    assert {name.split(".")[0] for name in trained} == parts
    assert all(name.startswith("backbone.") for name, _ in model.named_parameters() if name not in trained)
    assert any(name.startswith("backbone.") for name in network().trained_parameters())


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (48, 80), (16, 64), (96, 24), (104, 40)])
def test_sizes_of_whole_patches(size: tuple[int, int]) -> None:
    logits_BKHW = network()(images(1, *size))
    assert logits_BKHW.shape == (1, NUM_CLASSES, *size)
    assert logits_BKHW.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("side", range(16, 1001, 41))
def test_any_other_size_is_refused_with_the_nearest_valid_one(side: int) -> None:
    model = network()
    if side % 8:
        nearest = max(16, round(side / 8) * 8)
        with pytest.raises(InputError, match=f"{nearest} x 64"):
            model(images(1, side, 64))
    else:
        assert model(images(1, side, 64)).shape[2:] == (side, 64)


def test_one_row_of_patches_is_refused() -> None:
    with pytest.raises(InputError, match="16 x 64"):
        network()(images(1, 8, 64))


@torch.no_grad()
def test_raw_bytes_and_floats_give_the_same() -> None:
    model, image_B3HW = network(), images()
    assert torch.equal(model(image_B3HW), model(image_B3HW.float()))


@torch.no_grad()
def test_bfloat16_keeps_the_normalisation_exact() -> None:
    model = network().bfloat16()
    assert model.mean_3.dtype == torch.float32 and model.mean_3[0].item() == pytest.approx(123.675)
    exact = network()(images())
    rounded = model(images())
    assert rounded.dtype == torch.float32
    assert (rounded.argmax(1) == exact.argmax(1)).float().mean() > 0.8


@torch.no_grad()
def test_normalisation_is_not_in_the_state() -> None:
    assert not any("mean" in name or "std" in name for name in network().state_dict())


@torch.no_grad()
@pytest.mark.parametrize("scale", MAP_SCALES)
def test_convolving_before_enlarging_is_the_same(scale: float) -> None:
    map_BCHW, conv = torch.randn(2, 6, 5, 7, dtype=torch.float64), torch.nn.Conv2d(6, 4, 1).double()
    torch.testing.assert_close(convolve_rescaled(map_BCHW, conv, scale), conv(rescale(map_BCHW, scale)))


def test_both_ways_to_sample_the_levels_agree() -> None:
    """`grid_sample` where gradients are wanted, sums of rows elsewhere; places beyond the border count 0."""
    torch.manual_seed(0)
    sizes = [(2, 3), (4, 5), (7, 9)]
    num_positions = sum(rows * columns for rows, columns in sizes)
    value = torch.randn(2, num_positions, 4, 6)
    x, y = (torch.rand(2, num_positions, 4, 3, 5) * 13 - 2 for _ in range(2))
    weights = torch.rand(2, num_positions, 4, 3, 5)
    with torch.no_grad():
        summed = sample_levels(value, x, y, weights, sizes)
    torch.testing.assert_close(summed, sample_levels(value, x, y, weights, sizes), atol=1e-5, rtol=1e-5)


def test_places_are_not_rounded_with_the_values() -> None:
    """On a wide map a place in bfloat16 would be off by up to half a cell: in training, as at inference."""
    torch.manual_seed(0)
    sizes = [(1, 1), (1, 1), (8, 128)]
    num_positions = sum(rows * columns for rows, columns in sizes)
    value = torch.randn(1, num_positions, 2, 4).bfloat16()
    x, y = torch.rand(1, num_positions, 2, 3, 4) * 127, torch.rand(1, num_positions, 2, 3, 4) * 7
    weights = torch.rand(1, num_positions, 2, 3, 4)
    exact = sample_levels(value.float(), x, y, weights, sizes)
    reduced = sample_levels(value, x, y, weights, sizes)
    assert reduced.dtype == torch.bfloat16
    torch.testing.assert_close(reduced.float(), exact, atol=0.01, rtol=0.01)


@torch.no_grad()
def test_semantic_scores_are_sums_of_class_times_mask() -> None:
    model = network()
    prediction = model.decode(model.extract(model.normalise(images(1))))[-1]
    masks_BQHW = F.interpolate(prediction.mask_logits, (64, 64), mode="bilinear").sigmoid()
    classes_BQK = prediction.class_logits.softmax(-1)[..., :-1]
    expected_BKHW = torch.einsum("bqk,bqhw->bkhw", classes_BQK, masks_BQHW)
    torch.testing.assert_close(semantic_logits(prediction, (64, 64)), expected_BKHW)


@torch.no_grad()
def test_semantic_scores_are_not_rounded_under_autocast() -> None:
    model = network()
    with torch.autocast("cpu", torch.bfloat16):
        prediction = model.decode(model.extract(model.normalise(images(1))))[-1]
        scores_BKHW = semantic_logits(prediction, (64, 64))
    assert prediction.mask_logits.dtype == torch.bfloat16
    assert scores_BKHW.dtype == torch.float32
    assert torch.equal(scores_BKHW, semantic_logits(prediction, (64, 64)))


def test_names_are_one_to_one() -> None:
    ours = CrossEarth(tiny_config(3)).state_dict()
    released = {to_released(name) for name in ours}
    assert None not in released and len(released) == len(ours)
    assert all(to_ours(str(to_released(name))) == name for name in ours)
    assert to_ours("backbone.reins.high_extractor.conv1.weight") is None
    assert to_released("gse.layers.0.weight") is None


def test_the_released_networks_size() -> None:
    with torch.device("meta"):
        model = CrossEarth(large_config(6))
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 327_766_216
    assert sum(value.numel() for value in model.trained_parameters().values()) == 23_566_536


def test_windows_of_the_large_network_advance_by_two_thirds() -> None:
    assert [large_config(6, side).stride_px for side in (512, 1024)] == [341, 683]


def test_adapters_start_near_nothing_and_the_image_token_at_the_mean() -> None:
    model = network(masked_modelling=True)
    assert model.rein.scale.item() == pytest.approx(0.001)
    assert model.image_token is not None and not model.image_token.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed": 100}, "heads"),
        ({"channels": 50}, "head_heads"),
        ({"taps": (0, 2, 1, 3)}, "taps"),
        ({"taps": (0, 1, 2, 4)}, "taps"),
        ({"taps": (1, 2, 3)}, "taps"),
        ({"crop_px": 60}, "crop"),
        ({"stride_px": 0}, "stride"),
        ({"stride_px": 129}, "stride"),
        ({"image_px": 100}, "patch_px"),
        ({"inject_at_inference": True}, "without an injector"),
        ({"geospatial": True, "patch_px": 12, "image_px": 120, "crop_px": 120}, "power of two"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny_config(3, **changes)


def pretrained(**changes: Any) -> dict[str, torch.Tensor]:
    """Weights of a backbone under timm's names."""
    backbone = network(7, **changes).backbone
    return {name: tensor.clone() for name, tensor in backbone.vit.state_dict().items()}


def test_pretrained_weights_are_resampled_to_the_networks_sizes() -> None:
    backbone = CrossEarth(tiny_config(NUM_CLASSES, 96, patch_px=16)).backbone
    state = fit_state(pretrained(), backbone, "file")
    backbone.load_state_dict(state)
    assert state["vit.pos_embed"].shape == (1, 1 + 36, 96)
    assert state["vit.patch_embed.proj.weight"].shape[2:] == (16, 16)


def test_pretrained_weights_of_the_same_sizes_stay_as_they_are() -> None:
    weights = pretrained()
    state = fit_state(weights | {"head.weight": torch.zeros(3)}, network().backbone, "file")
    assert all(torch.equal(state[f"vit.{name}"], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("blocks.1.ls1.gamma"), r"missing \(1\): blocks\.1\.ls1\.gamma"),
        (lambda state: state.update(surplus=torch.zeros(1)), "surplus"),
        (lambda state: state.update({"cls_token": torch.zeros(1, 1, 7)}), "cls_token"),
    ],
)
def test_weights_that_do_not_fit_are_named(spoil: Any, message: str) -> None:
    weights = pretrained()
    spoil(weights)
    with pytest.raises(InputError, match=message):
        fit_state(weights, network().backbone, "file")


def test_a_config_of_odd_sizes_builds_and_runs() -> None:
    config = NetworkConfig(
        7, 48, 16, 60, 5, 5, 3.0, (0, 2, 3, 4), 13, 3, 24, 20, 6, 3, 2, 30, 4, 40, 6, crop_px=48, stride_px=20
    )
    assert CrossEarth(config)(images(2, 48, 80)).shape == (2, 7, 48, 80)
