"""Counting pixels and scoring counts, against NumPy written here and against torchmetrics."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crossearth.model.metrics import ConfusionMatrix, confusion_matrix
from crossearth.model.scores import (
    bootstrap,
    class_iou,
    interval,
    outcome_counts,
    paired_p_value,
    primary_iou,
    score,
)


def counted_with_numpy(predicted: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    table = np.zeros((num_classes, num_classes), dtype=np.int64)
    valid = label != 255
    np.add.at(table, (label[valid].astype(np.int64), predicted[valid].astype(np.int64)), 1)
    return table


@st.composite
def label_maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    num_classes = draw(st.integers(1, 250))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=40))
    predicted = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, num_classes - 1)))
    ids = st.one_of(st.just(255), st.just(0), st.just(num_classes - 1), st.integers(0, num_classes - 1))
    return predicted, draw(hnp.arrays(np.uint8, shape, elements=ids)), num_classes


@settings(max_examples=150, deadline=None)
@given(label_maps(), st.sampled_from([torch.uint8, torch.int16, torch.int64]))
def test_counts_equal_numpy(maps: tuple[np.ndarray, np.ndarray, int], dtype: torch.dtype) -> None:
    predicted, label, num_classes = maps
    counted = confusion_matrix(
        torch.from_numpy(predicted).to(dtype), torch.from_numpy(label).to(dtype), num_classes
    )
    assert counted.dtype == torch.int64
    assert np.array_equal(counted.numpy(), counted_with_numpy(predicted, label, num_classes))


@pytest.mark.parametrize("num_classes", [2, 5, 6, 7, 15, 16, 40])
def test_counts_equal_torchmetrics(num_classes: int) -> None:
    from torchmetrics.classification import MulticlassConfusionMatrix

    rng = torch.Generator().manual_seed(num_classes)
    predicted = torch.randint(num_classes, (3, 97, 101), generator=rng)
    label = torch.randint(num_classes, (3, 97, 101), generator=rng)
    label[torch.rand(label.shape, generator=rng) < 0.2] = 255
    reference = MulticlassConfusionMatrix(num_classes, ignore_index=255)
    reference.update(predicted, label)
    assert torch.equal(
        confusion_matrix(predicted.to(torch.uint8), label.to(torch.uint8), num_classes), reference.confmat
    )


@pytest.mark.parametrize("class_id", [0, 5])
def test_one_class_on_36_million_pixels_is_counted_exactly(class_id: int) -> None:
    label = torch.full((6000, 6000), class_id, dtype=torch.uint8)
    predicted = label.clone()
    predicted[0, 0] = 1
    counted = confusion_matrix(predicted, label, 6)
    assert counted[class_id, class_id] == 36_000_000 - 1
    assert counted[class_id, 1] == 1
    assert counted.sum() == 36_000_000


def test_a_call_gives_the_batch_and_compute_gives_all_batches() -> None:
    metric = ConfusionMatrix(3)
    batches = [torch.tensor([0, 1, 2]), torch.tensor([2, 2, 255])]
    own = [metric(torch.zeros_like(label), label) for label in batches]
    assert [matrix[:, 0].tolist() for matrix in own] == [[1, 1, 1], [0, 0, 2]]
    metric.update(torch.tensor([1]), torch.tensor([1]))
    assert metric.compute().tolist() == [[1, 0, 0], [1, 1, 0], [3, 0, 0]]


def test_ignored_pixels_alone_score_nothing() -> None:
    counted = confusion_matrix(
        torch.zeros(64, 64, dtype=torch.uint8), torch.full((64, 64), 255, dtype=torch.uint8), 6
    )
    assert counted.sum() == 0
    scores = score(counted.numpy())
    assert np.isnan(scores.iou).all() and np.isnan(scores.primary_metric) and np.isnan(scores.accuracy)


def test_no_pixels_are_fine() -> None:
    empty = torch.zeros(0, dtype=torch.uint8)
    assert confusion_matrix(empty, empty, 3).sum() == 0


@pytest.mark.parametrize(
    ("predicted", "label"),
    [([0, 6], [0, 1]), ([0, 255], [255, 255]), ([0, 1], [0, 6]), ([0, 1], [0, 254]), ([-1, 0], [0, 0])],
)
def test_ids_outside_the_class_set_are_refused(predicted: list[int], label: list[int]) -> None:
    with pytest.raises(ValueError, match=r"ids must lie in 0\.\.5"):
        confusion_matrix(torch.tensor(predicted), torch.tensor(label), 6)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(torch.zeros(2, 3), torch.zeros(3, 2), 2)


counts = hnp.arrays(np.int64, (4, 4), elements=st.one_of(st.just(0), st.integers(0, 50_000_000)))


@settings(max_examples=200, deadline=None)
@given(counts)
def test_scores_follow_their_definitions(confusion: np.ndarray) -> None:
    scores = score(confusion)
    present = []
    for k in range(4):
        hits, labelled, predicted = int(confusion[k, k]), int(confusion[k].sum()), int(confusion[:, k].sum())
        if labelled == 0:
            assert np.isnan(scores.iou[k]) and np.isnan(scores.f1[k])
            continue
        iou = hits / (labelled + predicted - hits)
        present.append(iou)
        assert scores.iou[k] == pytest.approx(iou, abs=1e-15)
        assert scores.f1[k] == pytest.approx(2 * iou / (1 + iou), abs=1e-12)
    if present:
        assert scores.primary_metric == pytest.approx(np.mean(present), abs=1e-12)
        assert scores.accuracy == pytest.approx(np.trace(confusion) / confusion.sum(), abs=1e-15)
    else:
        assert np.isnan(scores.primary_metric)
    assert np.array_equal(scores.pixels, confusion.sum(1))


def test_binary_sets_score_their_foreground() -> None:
    scores = score(np.array([[90, 5], [3, 2]]), "foreground")
    assert scores.primary_metric == 2 / 10
    assert np.isnan(score(np.array([[90, 5], [0, 0]]), "foreground").primary_metric)


def test_counts_of_tiles_add_up() -> None:
    tiles = np.random.default_rng(0).integers(0, 1000, (7, 5, 5))
    assert np.array_equal(outcome_counts(tiles).sum(0), outcome_counts(tiles.sum(0)))


def _tiles(num: int, accuracy: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, (num, 400))
    predicted = np.where(rng.random(label.shape) < accuracy, label, rng.integers(0, 3, label.shape))
    cells = [
        np.bincount(row * 3 + col, minlength=9).reshape(3, 3)
        for row, col in zip(label, predicted, strict=True)
    ]
    return outcome_counts(np.stack(cells))


def test_bootstrap_equals_resampling_by_hand() -> None:
    tiles = _tiles(11, 0.7, 0)
    values = bootstrap([tiles], "mean", 50, np.random.default_rng(3))
    draws = np.random.default_rng(3).multinomial(11, np.full(11, 1 / 11), size=50)
    by_hand = [primary_iou(class_iou(np.repeat(tiles, draw, axis=0).sum(0)), "mean") for draw in draws]
    np.testing.assert_allclose(values[0], by_hand, rtol=1e-12)


def test_interval_holds_the_score_and_narrows_with_more_tiles() -> None:
    few, many = _tiles(10, 0.7, 0), _tiles(400, 0.7, 1)
    (few_low, few_high), (low, high) = (
        interval(bootstrap([tiles], "mean", 1000, np.random.default_rng(0))[0]) for tiles in (few, many)
    )
    assert low < primary_iou(class_iou(many.sum(0)), "mean") < high
    assert high - low < few_high - few_low


def test_a_paired_difference_is_found_and_chance_is_not() -> None:
    good, bad, other = _tiles(60, 0.75, 0), _tiles(60, 0.65, 0), _tiles(60, 0.65, 9)
    values = bootstrap([good, bad, other], "mean", 2000, np.random.default_rng(0))
    assert paired_p_value(values[0] - values[1]) < 0.01
    assert paired_p_value(values[1] - values[2]) > 0.05
    assert paired_p_value(values[0] - values[0]) == 1.0


def test_undefined_replicates_are_left_out() -> None:
    assert interval(np.array([np.nan, 0.5, 0.5])) == (0.5, 0.5)
    assert all(np.isnan(interval(np.array([np.nan]))))
