"""The segmentation loss and the matching, on cases whose result is known."""

import math
from collections import defaultdict
from dataclasses import asdict
from functools import partial

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from crossearth.model.layers.mask_decoder import Prediction
from crossearth.model.training.losses import (
    SegmentationLossConfig,
    draw_points,
    instances_of,
    segmentation_loss,
    uncertain_points,
)
from crossearth.model.training.matching import assign, matching_cost, sample_points

CONFIG = SegmentationLossConfig(num_points=64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels() -> Tensor:
    """Two images: left half 0 and right half 2; all 1 but an ignored corner."""
    label_BHW = torch.zeros(2, 16, 16, dtype=torch.uint8)
    label_BHW[0, :, 8:] = 2
    label_BHW[1] = 1
    label_BHW[1, :4, :4] = 255
    return label_BHW


def perfect(label_BHW: Tensor, num_classes: int = 3, strength: float = 30.0) -> Prediction:
    """Query q stands for class q; the last query for nothing."""
    present_BQ = torch.stack([(label_BHW == q).flatten(1).any(1) for q in range(num_classes)], dim=1)
    class_logits = torch.zeros(len(label_BHW), num_classes + 1, num_classes + 1)
    for image, present_Q in enumerate(present_BQ):
        for query in range(num_classes + 1):
            target = query if query < num_classes and present_Q[query] else num_classes
            class_logits[image, query, target] = strength
    masks = torch.stack([(label_BHW == q).float() for q in [*range(num_classes), 254]], dim=1)
    return Prediction(class_logits, (masks * 2 - 1) * strength)


def total(terms: dict[str, Tensor]) -> float:
    return float(torch.stack(list(terms.values())).detach().sum())


def same_points(points_1P2: Tensor, image: int, rows: int, count: int) -> Tensor:
    """A source that gives every instance the same points."""
    return points_1P2[:, :count].expand(rows, -1, -1)


def test_a_perfect_prediction_costs_little() -> None:
    right, wrong = (perfect(label_BHW) for label_BHW in (labels(), labels().flip(2)))
    terms = segmentation_loss([right], labels(), generator(), CONFIG)
    assert set(terms) == {"class", "mask", "dice"}
    assert float(terms["class"]) < 1e-6
    # not zero: points between pixels of two classes, or at the border, see a bit of both
    assert total(terms) < 0.25 * total(segmentation_loss([wrong], labels(), generator(), CONFIG))


def test_the_order_of_the_queries_does_not_matter() -> None:
    prediction = perfect(labels())
    shuffled = Prediction(*(part[:, [2, 0, 3, 1]] for part in prediction))
    source = partial(same_points, torch.rand(1, 192, 2, generator=generator()))
    first, second = (segmentation_loss([each], labels(), source, CONFIG) for each in (prediction, shuffled))
    for name in first:
        torch.testing.assert_close(first[name], second[name])


def test_class_term_by_hand() -> None:
    """Uniform logits: every query costs log(K + 1), whatever it is matched to."""
    prediction = Prediction(torch.zeros(2, 4, 4), perfect(labels()).mask_logits)
    terms = segmentation_loss([prediction], labels(), generator(), CONFIG)
    assert float(terms["class"]) == pytest.approx(2 * math.log(4), rel=1e-5)


def test_mask_terms_by_hand() -> None:
    """Mask logits of 0: cross entropy log 2; dice 1 - (n + 1) / (P/2 + n + 1) for n points inside."""
    label_BHW = torch.ones(1, 8, 8, dtype=torch.uint8)
    prediction = Prediction(torch.zeros(1, 2, 3), torch.zeros(1, 2, 8, 8))
    terms = segmentation_loss(
        [prediction], label_BHW, lambda image, rows, n: torch.full((rows, n, 2), 0.5), CONFIG
    )
    assert float(terms["mask"]) == pytest.approx(5 * math.log(2), rel=1e-5)
    assert float(terms["dice"]) == pytest.approx(5 * (1 - 65 / (32 + 64 + 1)), rel=1e-5)


def test_nothing_labelled_gives_a_class_term_alone() -> None:
    label_BHW = torch.full((2, 8, 8), 255, dtype=torch.uint8)
    logits = torch.zeros(2, 4, 8, 8, requires_grad=True)
    terms = segmentation_loss([Prediction(torch.zeros(2, 4, 4), logits)], label_BHW, generator(), CONFIG)
    assert not terms["mask"].any() and not terms["dice"].any()
    assert float(terms["class"]) > 0
    torch.stack(list(terms.values())).sum().backward()
    assert not logits.grad.any()


def test_more_classes_than_queries() -> None:
    label_BHW = torch.arange(6, dtype=torch.uint8).repeat_interleave(6).reshape(1, 6, 6)
    prediction = Prediction(torch.randn(1, 4, 7), torch.randn(1, 4, 6, 6))
    assert math.isfinite(total(segmentation_loss([prediction], label_BHW, generator(), CONFIG)))


def test_a_generator_per_image_makes_the_points_independent_of_the_batch() -> None:
    """Masks and matching of an image come out the same whatever stands beside it; the means differ."""
    prediction, label_BHW = perfect(labels(), strength=1.0), labels()
    alone = segmentation_loss(
        [Prediction(*(p[1:] for p in prediction))], label_BHW[1:], [generator(5)], CONFIG
    )
    other = segmentation_loss(
        [Prediction(*(p[:1] for p in prediction))], label_BHW[:1], [generator(4)], CONFIG
    )
    both = segmentation_loss([prediction], label_BHW, [generator(4), generator(5)], CONFIG)
    # two instances in the first image, one in the second
    for name in ("mask", "dice"):
        torch.testing.assert_close(both[name], (2 * other[name] + alone[name]) / 3)


def test_equal_seeds_give_equal_losses() -> None:
    prediction = Prediction(torch.randn(2, 6, 4), torch.randn(2, 6, 4, 4))
    runs = [total(segmentation_loss([prediction], labels(), generator(3), CONFIG)) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] != total(segmentation_loss([prediction], labels(), generator(4), CONFIG))


def test_the_cheapest_assignment_is_found() -> None:
    queries, instances = assign(torch.tensor([[5.0, 1.0], [9.0, 9.0], [0.0, 0.5]]))
    assert queries.tolist() == [0, 2]
    assert instances.tolist() == [1, 0]


def test_matching_and_loss_are_the_same_under_autocast() -> None:
    torch.manual_seed(0)
    prediction = Prediction(torch.randn(2, 100, 4), torch.randn(2, 100, 16, 16))
    exact = segmentation_loss([prediction], labels(), generator(), CONFIG)
    with torch.autocast("cpu", torch.bfloat16):
        assert segmentation_loss([prediction], labels(), generator(), CONFIG) == exact


def test_what_is_not_finite_is_assigned_last() -> None:
    cost_QG = torch.tensor([[float("nan"), 1.0], [2.0, float("inf")], [3.0, 4.0]])
    assert [each.tolist() for each in assign(cost_QG)] == [[0, 1], [1, 0]]


def test_matching_cost_by_hand() -> None:
    class_logits_QK1 = torch.tensor([[0.0, 0.0, 0.0]])
    mask_logits_QP, masks_GP = torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    cost_QG = matching_cost(class_logits_QK1, mask_logits_QP, torch.tensor([1]), masks_GP, 2.0, 5.0, 5.0)
    expected = 2 * -(1 / 3) + 5 * math.log(2) + 5 * (1 - 3 / 5)
    assert cost_QG.item() == pytest.approx(expected, rel=1e-6)


def test_the_most_uncertain_points_are_kept() -> None:
    ramp_N1hw = torch.linspace(-8, 8, 16).expand(1, 1, 16, 16)
    candidates_NX2 = torch.rand(1, 192, 2, generator=generator())
    uniform_NU2 = torch.rand(1, 16, 2, generator=generator(1))
    points_NP2 = uncertain_points(ramp_N1hw, candidates_NX2, uniform_NU2, CONFIG)
    assert points_NP2.shape == (1, 64, 2)
    assert torch.equal(points_NP2[:, 48:], uniform_NU2)
    kept = (points_NP2[0, :48, 0] - 0.5).abs().max()
    dropped = sorted((candidates_NX2[0, :, 0] - 0.5).abs().tolist())[48:]
    assert kept <= min(dropped) + 1e-6


def test_samples_beyond_the_map_are_zero() -> None:
    assert sample_points(torch.ones(1, 1, 4, 4), torch.tensor([[[1.5, 0.5]]])).item() == 0


def test_the_methods_numbers_are_the_defaults() -> None:
    assert asdict(SegmentationLossConfig()) == {
        "weight_class": 2.0,
        "weight_mask": 5.0,
        "weight_dice": 5.0,
        "weight_no_object": 0.1,
        "num_points": 12544,
        "oversample": 3.0,
        "importance": 0.75,
    }


def test_three_times_the_points_are_candidates_and_a_quarter_of_the_points_is_uniform() -> None:
    """Of every layer: 12544 points of an image to match on; per mask 37632 candidates and 3136 uniform."""
    drawn: list[tuple[int, int, int]] = []

    def source(image: int, rows: int, count: int) -> Tensor:
        drawn.append((image, rows, count))
        return torch.zeros(rows, count, 2)

    instances = [instances_of(label_HW) for label_HW in labels()]
    draw_points(source, (2, 2, 4), instances, SegmentationLossConfig())
    first, second = ([(0, 1), (1, 1)], [(0, 2), (1, 1)])  # (image, rows): two classes, and one
    layer = [(*each, 12544) for each in first]
    layer += [(*each, count) for count in (37632, 3136) for each in second]
    assert sorted(drawn) == sorted(layer * 2)


class RecordedPoints:
    """A source that keeps what it gave, by image and number of points, in the order of the layers."""

    def __init__(self) -> None:
        self.generator = generator(3)
        self.given: dict[tuple[int, int], list[Tensor]] = defaultdict(list)

    def __call__(self, image: int, rows: int, count: int) -> Tensor:
        points_RP2 = torch.rand(rows, count, 2, generator=self.generator)
        self.given[image, count].append(points_RP2)
        return points_RP2


def slow_sample(map_HW: Tensor, point_2: Tensor) -> float:
    """Bilinear: up to four cells around the point, by their distance; nothing beyond the map."""
    height, width = map_HW.shape
    x, y = float(point_2[0]) * width - 0.5, float(point_2[1]) * height - 0.5
    return sum(
        float(map_HW[row, column]) * (1 - abs(x - column)) * (1 - abs(y - row))
        for row in (math.floor(y), math.floor(y) + 1)
        for column in (math.floor(x), math.floor(x) + 1)
        if 0 <= row < height and 0 <= column < width
    )


def slow_cross_entropy(logits: list[float], targets: list[float]) -> float:
    """Binary, mean over the points."""
    total = 0.0
    for logit, target in zip(logits, targets, strict=True):
        probability = 1 / (1 + math.exp(-logit))
        total -= target * math.log(probability) + (1 - target) * math.log(1 - probability)
    return total / len(logits)


def slow_dice(logits: list[float], targets: list[float]) -> float:
    probabilities = [1 / (1 + math.exp(-logit)) for logit in logits]
    both = sum(p * t for p, t in zip(probabilities, targets, strict=True))
    return 1 - (2 * both + 1) / (sum(probabilities) + sum(targets) + 1)


def slow_layer(
    prediction: Prediction, label_BHW: Tensor, points: RecordedPoints, layer: int
) -> tuple[float, float, float]:
    """Class, mask and dice term of one layer by the method's parameters, with 32 points."""
    class_total = class_weights = mask_total = dice_total = 0.0
    num_masks, no_object = 0, prediction.class_logits.shape[2] - 1
    for image, label_HW in enumerate(label_BHW):
        probability_QK1 = prediction.class_logits[image].softmax(1).tolist()
        class_ids = sorted(set(label_HW.flatten().tolist()) - {255})
        masks = [(label_HW == class_id).float() for class_id in class_ids]
        shared = points.given[image, 32][layer][0]
        costs = torch.zeros(len(probability_QK1), len(class_ids))
        for query, mask_hw in enumerate(prediction.mask_logits[image]):
            logits = [slow_sample(mask_hw, point) for point in shared]
            for instance, class_id in enumerate(class_ids):
                targets = [slow_sample(masks[instance], point) for point in shared]
                costs[query, instance] = -2 * probability_QK1[query][class_id]
                costs[query, instance] += 5 * slow_cross_entropy(logits, targets)
                costs[query, instance] += 5 * slow_dice(logits, targets)
        label_of = dict.fromkeys(range(len(probability_QK1)), no_object)
        for row, (query, instance) in enumerate(zip(*linear_sum_assignment(costs.numpy()), strict=True)):
            label_of[int(query)] = class_ids[instance]
            mask_hw = prediction.mask_logits[image, query]
            candidates = points.given[image, 96][layer][row]
            certainty = [abs(slow_sample(mask_hw, point)) for point in candidates]
            order = sorted(range(96), key=certainty.__getitem__)
            chosen = [candidates[i] for i in order[:24]] + list(points.given[image, 8][layer][row])
            logits = [slow_sample(mask_hw, point) for point in chosen]
            targets = [slow_sample(masks[instance], point) for point in chosen]
            mask_total += slow_cross_entropy(logits, targets)
            dice_total += slow_dice(logits, targets)
            num_masks += 1
        for query, label in label_of.items():
            weight = 0.1 if label == no_object else 1.0
            class_total -= weight * math.log(probability_QK1[query][label])
            class_weights += weight
    return 2 * class_total / class_weights, 5 * mask_total / num_masks, 5 * dice_total / num_masks


def test_every_term_of_every_layer_against_one_slow_loop() -> None:
    """Random logits, three layers; images of three classes, of one class, and of ignored pixels alone."""
    label_BHW = torch.cat([labels(), torch.full((1, 16, 16), 255, dtype=torch.uint8)])
    label_BHW[0, :6] = 1  # four masks in three images
    torch.manual_seed(0)
    layers = [Prediction(torch.randn(3, 5, 4) * 2, torch.randn(3, 5, 6, 6) * 3) for _ in range(3)]
    points = RecordedPoints()
    terms = segmentation_loss(layers, label_BHW, points, SegmentationLossConfig(num_points=32))
    expected_total = 0.0
    for number, prediction in enumerate(layers):
        expected = slow_layer(prediction, label_BHW, points, number)
        for kind, value in zip(("class", "mask", "dice"), expected, strict=True):
            assert float(terms[kind][number]) == pytest.approx(value, rel=1e-4), (number, kind)
        expected_total += sum(expected)
    assert total(terms) == pytest.approx(expected_total, rel=1e-4)
