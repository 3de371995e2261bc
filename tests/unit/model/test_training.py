"""The multi-task step against slow, obvious computations."""

import math
from dataclasses import asdict

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from crossearth.data.style.earth import EarthStyles, StyleConfig, keyed_generator, style_engine
from crossearth.model.crossearth import CrossEarth, crossearth_tiny
from crossearth.model.training.losses import SegmentationLossConfig, segmentation_loss
from crossearth.model.training.multitask import (
    BRANCHES,
    Ablation,
    LossDenominators,
    MultiTaskLoss,
    Styler,
    TaskConfig,
    learning_rate,
    parameter_groups,
)

SIDE = 64
NUM_CLASSES = 3
POINTS = SegmentationLossConfig(num_points=64)
SIZES = {
    "patch_px": 16,
    "embed": 32,
    "heads": 2,
    "num_tokens": 6,
    "channels": 16,
    "mask_channels": 16,
    "encoder_ffn": 16,
    "decoder_ffn": 16,
    "norm_groups": 4,
    "reconstruction_channels": 8,
    "reconstruction_px": 32,
}


def make_network(ablation: Ablation) -> CrossEarth:
    torch.manual_seed(0)
    branches = BRANCHES[ablation]
    network = crossearth_tiny(
        NUM_CLASSES, SIDE, geospatial=branches.geospatial, masked_modelling=branches.mim, **SIZES
    )
    if network.image_token is not None:
        torch.nn.init.normal_(network.image_token)  # zero would hide a token that is not used
    torch.nn.init.constant_(network.rein.scale, 0.1)
    return network.train()


def make_styler(probability: float) -> Styler:
    engine = style_engine("spectral")
    factor = 0.1 * torch.eye(engine.dim, dtype=torch.float64)
    mean = engine.embed(torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(9)) * 255)[0]
    earth = EarthStyles(mean.double(), factor @ factor.T, factor, engine.name, 100, "0" * 64)
    return Styler(engine, earth, StyleConfig(keep_ratio=0.5, block_px=16), probability)


def make_task(ablation: Ablation, probability: float = 0.0, **changes: object) -> MultiTaskLoss:
    config = TaskConfig(mask_block_px=16, segmentation=POINTS, **changes)
    styler = make_styler(probability) if BRANCHES[ablation].style else None
    return MultiTaskLoss(make_network(ablation), BRANCHES[ablation], config, styler, seed=7)


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor, list[int]]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    label = torch.randint(0, NUM_CLASSES, (3, 4, 4), generator=generator, dtype=torch.uint8)
    label = label.repeat_interleave(16, 1).repeat_interleave(16, 2)
    label[0, :8] = 255
    label[1] = 2  # one class only: another number of instances than its neighbours
    return image, label, [40, 41, 42]


def whole(label: Tensor) -> LossDenominators:
    return LossDenominators.of(label, SIZES["num_tokens"], POINTS.weight_no_object)


def slow_terms(task: MultiTaskLoss, image: Tensor, label: Tensor, positions: list[int]) -> dict[str, float]:
    """Every term from single images, each through the network alone, from the formulas of the method."""
    network, config = task.network, task.config
    terms = dict.fromkeys(("class", "mask", "dice", "reconstruction", "consistency"), 0.0)
    masks, class_weights = 0, 0.0
    for each, truth, position in zip(image, label, positions, strict=True):
        views = task.views(each[None], [position])
        injected = torch.tensor([task.branches.geospatial])
        seen = network.extract(views.input, injected)
        of_layers = segmentation_loss(
            network.decode(seen),
            truth[None],
            keyed_generator(task.seed, position, "points"),
            POINTS,
        )
        present = len(set(truth.unique().tolist()) - {255})
        weight = present + (SIZES["num_tokens"] - present) * 0.1
        masks, class_weights = masks + present, class_weights + weight
        for name, term_L in of_layers.items():
            terms[name] += float(term_L.sum()) * (weight if name == "class" else present)
        if not task.branches.mim:
            continue
        target = F.interpolate(views.x, (32, 32), mode="bilinear")
        restored = network.reconstruct(network.extract(views.masked))
        terms["reconstruction"] += float((restored - target).abs().mean()) / len(image)
        if views.styled[0]:
            restored_styled = network.reconstruct(seen)
            terms["reconstruction"] += float((restored_styled - target).abs().mean()) / len(image)
            terms["consistency"] += float((restored - restored_styled).abs().mean()) / len(image)
    terms["class"] /= class_weights
    terms["mask"] /= masks
    terms["dice"] /= masks
    if not task.branches.mim:
        del terms["reconstruction"]
    if not (task.branches.mim and task.branches.style):
        del terms["consistency"]
    return {name: value * config.weight_seg for name, value in terms.items()}


@pytest.mark.parametrize(
    ("ablation", "probability"),
    [
        ("rein", 0),
        ("+style", 1),
        ("+mim", 0),
        ("+style+mim", 0),
        ("+style+mim", 1),
        ("full", 0),
        ("full", 0.5),
    ],
)
def test_terms_of_every_branch(
    batch: tuple[Tensor, Tensor, list[int]], ablation: Ablation, probability: float
) -> None:
    image, label, positions = batch
    task = make_task(ablation, probability)
    if probability == 0.5:
        assert 0 < int(task.views(image, positions).styled.sum()) < len(positions)
    with torch.no_grad():
        found = task(image, label, positions, whole(label))
        expected = slow_terms(task, image, label, positions)
    assert found.keys() == expected.keys()
    for name in expected:
        assert float(found[name]) == pytest.approx(expected[name], rel=2e-4, abs=1e-6), name


def test_weights_and_mse(batch: tuple[Tensor, Tensor, list[int]]) -> None:
    image, label, positions = batch
    plain = make_task("full", 1.0)
    changed = make_task(
        "full", 1.0, weight_seg=2.0, weight_mim=3.0, weight_delta=5.0, reconstruction_loss="mse"
    )
    with torch.no_grad():
        one = plain(image, label, positions, whole(label))
        other = changed(image, label, positions, whole(label))
        views = plain.views(image, positions)
        flags = torch.ones(3, dtype=torch.bool)
        target = F.interpolate(views.x, (32, 32), mode="bilinear")
        squares = (plain.network.reconstruct(plain.network.extract(views.masked)) - target).square().mean()
        squares += (
            (plain.network.reconstruct(plain.network.extract(views.input, flags)) - target).square().mean()
        )
    for name in ("class", "mask", "dice"):
        assert float(other[name]) == pytest.approx(2 * float(one[name]), rel=1e-5)
    assert float(other["consistency"]) == pytest.approx(5 * float(one["consistency"]), rel=1e-5)
    assert float(other["reconstruction"]) == pytest.approx(3 * float(squares), rel=1e-4)


def gradients(task: MultiTaskLoss) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in task.network.named_parameters() if p.grad is not None}


def test_one_backbone_pass_equals_separate_passes(batch: tuple[Tensor, Tensor, list[int]]) -> None:
    image, label, positions = batch
    results = []
    for shared_pass in (True, False):
        task = make_task("full", 0.5, shared_pass=shared_pass)
        terms = task(image, label, positions, whole(label))
        sum(terms.values()).backward()
        results.append((terms, gradients(task)))
    (terms, grads), (apart_terms, apart_grads) = results
    for name in terms:
        assert float(terms[name]) == pytest.approx(float(apart_terms[name]), rel=1e-5)
    assert grads.keys() == apart_grads.keys()
    for name in grads:
        torch.testing.assert_close(grads[name], apart_grads[name], rtol=1e-3, atol=1e-5)


def test_parts_of_a_batch_sum_to_the_whole(batch: tuple[Tensor, Tensor, list[int]]) -> None:
    image, label, positions = batch
    together, apart = make_task("full", 0.5), make_task("full", 0.5)
    terms = together(image, label, positions, whole(label))
    sum(terms.values()).backward()
    sums = dict.fromkeys(terms, 0.0)
    for part in (slice(0, 1), slice(1, 3)):
        share = apart(image[part], label[part], positions[part], whole(label))
        sum(share.values()).backward()
        sums = {name: sums[name] + float(share[name]) for name in sums}
    for name in terms:
        assert sums[name] == pytest.approx(float(terms[name]), rel=1e-4)
    one, other = gradients(together), gradients(apart)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-5)


def test_activation_checkpointing_changes_nothing(batch: tuple[Tensor, Tensor, list[int]]) -> None:
    image, label, positions = batch
    found = []
    for active in (False, True):
        task = make_task("full", 0.5)
        task.network.activation_checkpointing = active
        sum(task(image, label, positions, whole(label)).values()).backward()
        found.append(gradients(task))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ablation", list(BRANCHES))
def test_all_trained_parameters_get_gradients(
    batch: tuple[Tensor, Tensor, list[int]], ablation: Ablation
) -> None:
    image, label, positions = batch
    task = make_task(ablation, 0.0)
    sum(task(image, label, positions, whole(label)).values()).backward()
    without = [name for name, p in task.network.trained_parameters().items() if p.grad is None]
    assert not without  # DistributedDataParallel waits for every one of them


def test_an_image_without_labels_gives_a_finite_loss(batch: tuple[Tensor, Tensor, list[int]]) -> None:
    image, label, positions = batch
    nothing = torch.full_like(label, 255)
    task = make_task("full", 1.0)
    terms = task(image, nothing, positions, whole(nothing))
    sum(terms.values()).backward()
    assert float(terms["mask"]) == float(terms["dice"]) == 0
    assert all(math.isfinite(float(term)) for term in terms.values())
    assert not [name for name, p in task.network.trained_parameters().items() if p.grad is None]


def test_masked_image() -> None:
    task = make_task("+mim")
    image = torch.full((1, 3, SIDE, SIDE), 200, dtype=torch.uint8)
    shares = []
    for position in range(300):
        views = task.views(image, [position])
        masked = (views.masked[0] != views.x[0]).any(0)
        cells = masked.unfold(0, 16, 16).unfold(1, 16, 16).flatten(2)
        assert (cells.all(-1) | ~cells.any(-1)).all()  # whole blocks
        expected = torch.where(masked, task.network.image_token[0], views.x[0])
        torch.testing.assert_close(views.masked[0], expected)
        shares.append(float(masked.float().mean()))
    assert sum(shares) / len(shares) == pytest.approx(0.7, abs=0.03)  # standard error 0.007
    assert len({round(share, 4) for share in shares}) > 3


def test_masked_images_are_not_injected(batch: tuple[Tensor, Tensor, list[int]]) -> None:
    image, _, positions = batch
    task = make_task("full", 1.0)
    with torch.no_grad():
        views = task.views(image, positions)
        seen, masked = task._features(views, positions)
        plain = task.network.extract(torch.cat([views.input, views.masked]))
    for with_injection, without in zip(masked.maps, plain.select(slice(3, None)).maps, strict=True):
        torch.testing.assert_close(with_injection, without, rtol=1e-4, atol=1e-5)
    differences = [
        float((a - b).abs().max()) for a, b in zip(seen.maps, plain.select(slice(3)).maps, strict=True)
    ]
    assert min(differences) > 1e-3


def test_share_of_styled_samples() -> None:
    task = make_task("+style", 0.1)
    styled = task._styled(range(4000))
    assert float(styled.float().mean()) == pytest.approx(0.1, abs=0.02)  # standard error 0.005
    assert not make_task("rein")._styled(range(100)).any()


def test_styled_images_are_a_mixture(batch: tuple[Tensor, Tensor, list[int]]) -> None:
    image, _, positions = batch
    task = make_task("+style", 1.0)
    views = task.views(image, positions)
    kept = (views.input == views.x).all(1)
    assert 0.3 < float(kept.float().mean()) < 0.7
    alone = torch.cat([task.views(image[i : i + 1], positions[i : i + 1]).input for i in range(3)])
    torch.testing.assert_close(views.input, alone, rtol=1e-4, atol=1e-4)


def test_a_step_is_a_function_of_its_positions(batch: tuple[Tensor, Tensor, list[int]]) -> None:
    image, label, positions = batch
    task = make_task("full", 0.5)
    with torch.no_grad():
        first = task(image, label, positions, whole(label))
        torch.manual_seed(123)
        second = task(image, label, positions, whole(label))
        other = task(image, label, [90, 91, 92], whole(label))
    assert {name: float(term) for name, term in first.items()} == {
        name: float(term) for name, term in second.items()
    }
    assert float(first["reconstruction"]) != float(other["reconstruction"])


def test_pictures() -> None:
    image = torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8)
    task = make_task("full", 0.0)
    task.network.eval()
    pictures = task.pictures(image, 5)
    assert len(pictures) == 4
    assert all(each.shape == (3, SIDE, SIDE) and each.dtype == torch.uint8 for each in pictures)
    assert torch.equal(pictures[0], image[0])
    assert not torch.equal(pictures[1], image[0])
    assert len(make_task("rein").pictures(image, 5)) == 1


def test_parameter_groups_cover_every_trained_parameter_once() -> None:
    network = make_network("full")
    decayed, spared = parameter_groups(network, 0.05)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    found = [id(parameter) for group in (decayed, spared) for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in network.trained_parameters().values())
    spared_ids = {id(parameter) for parameter in spared["params"]}
    for name, parameter in network.trained_parameters().items():
        is_spared = (
            "norm" in name
            or name in ("image_token", "rein.scale", "mask_decoder.level_embed_VC")
            or name.startswith(("rein.tokens_", "backbone.vit.cls_token", "backbone.vit.pos_embed"))
        )
        assert (id(parameter) in spared_ids) == is_spared, name


def test_poly_schedule() -> None:
    lr, expected = 1e-4, 1e-4
    for iteration in range(1, 2001):  # the recursive form of a scheduler that knows only its last value
        expected *= (1 - 1 / (40_000 - iteration + 1)) ** 0.9
        found = learning_rate(iteration, lr, "poly", 40_000, 10_000)
        assert found == pytest.approx(expected, rel=1e-9)
    assert learning_rate(0, lr, "poly", 40_000, 10_000) == lr
    assert learning_rate(40_000, lr, "poly", 40_000, 10_000) == 0
    assert learning_rate(50_000, lr, "poly", 40_000, 10_000) == 0


def test_warmup_schedule() -> None:
    def rate(iteration: int) -> float:
        return learning_rate(iteration, 6e-5, "warmup-poly", 40_000, 10_000)

    assert rate(0) == pytest.approx(6e-11)
    assert rate(5000) == pytest.approx(3e-5, rel=1e-5)
    assert rate(10_000) == 6e-5
    assert rate(25_000) == pytest.approx(6e-5 * 0.5**0.9)
    assert rate(40_000) == 0


def test_the_methods_numbers_are_the_defaults() -> None:
    numbers = asdict(TaskConfig())
    assert numbers.pop("segmentation") == asdict(SegmentationLossConfig())
    del numbers["shared_pass"]  # how it is computed, not what
    assert numbers == {
        "mask_ratio": 0.7,
        "mask_block_px": 64,
        "reconstruction_loss": "l1",
        "weight_seg": 1.0,
        "weight_mim": 1.0,
        "weight_delta": 1.0,
        "inject_plain": True,
        "inject_styled": True,
    }


def test_normalisers_count_masks_and_the_weights_of_all_queries_targets() -> None:
    label_BHW = torch.tensor([[[0, 2, 2, 255]], [[1, 1, 1, 1]], [[255, 255, 255, 255]]], dtype=torch.uint8)
    six = LossDenominators.of(label_BHW, num_queries=6, no_object_weight=0.1)
    assert (six.masks, six.samples, six.pixels) == (2 + 1 + 0, 3, 3 + 4 + 0)
    assert six.class_weight == pytest.approx((2 + 4 * 0.1) + (1 + 5 * 0.1) + 6 * 0.1)
    # no more masks than queries
    one = LossDenominators.of(label_BHW, num_queries=1, no_object_weight=0.1)
    assert one == (2, pytest.approx(2.1), 3, 7)


def test_the_segmentation_terms_are_sums_over_all_prediction_layers(
    batch: tuple[Tensor, Tensor, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Initial queries and decoder layers alike, each kind of term by itself."""
    of_layers = {
        name: torch.tensor([1.0, 10, 100]) * n for n, name in enumerate(("class", "mask", "dice"), 1)
    }
    monkeypatch.setattr("crossearth.model.training.multitask.segmentation_loss", lambda *_: of_layers)
    image, label, positions = batch
    with torch.no_grad():
        terms = make_task("rein")(image, label, positions, whole(label))
    assert {name: float(term) for name, term in terms.items()} == {"class": 111, "mask": 222, "dice": 333}
