"""Matching, every loss term with the recorded random numbers, and every gradient.

Shape legend: B images, L prediction layers, P points, M matched pairs of a batch, Q queries.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from recording import Recording
from sizes import loss_config_from_meta
from torch import Tensor

from crossearth.model.crossearth import CrossEarth
from crossearth.model.training.losses import Matches, PointSource, match, segmentation_loss, uncertain_points
from crossearth.model.training.matching import assign, sample_points
from crossearth.model.weights.names import to_released

NUM_ROUNDINGS, ROUNDING = 12, 3e-6


def replay(recording: Recording, num_layers: int, matched: list[int]) -> PointSource:
    """The recorded random numbers in the order in which the loss asks for them."""
    queue: deque[Tensor] = deque()
    for layer in range(num_layers):
        name = f"loss_rand/layer{layer}"
        queue.extend(recording.take("io", f"{name}_img{image}_match") for image in range(len(matched)))
        for kind in ("oversampled", "random"):
            if recording.has("io", f"{name}_{kind}"):
                parts = recording.take("io", f"{name}_{kind}").split(matched)
                queue.extend(part for part in parts if len(part))

    def draw(image: int, rows: int, count: int) -> Tensor:
        points_RP2 = queue.popleft()
        if points_RP2.shape != (rows, count, 2):
            raise ValueError(f"asked for {(rows, count, 2)}, recorded {tuple(points_RP2.shape)}")
        return points_RP2

    return draw


def check_losses(recording: Recording, model: CrossEarth, meta: Mapping[str, Any]) -> None:
    terms = loss_terms(recording, model, meta, recording.take("io", "inputs"))
    for name, value in terms.items():
        key = f"loss_term/decode.{name}"
        recording.compare("io", key, value.reshape(recording.take("io", key).shape))
        recorded = torch.tensor(meta["reported"]["losses"][f"decode.{name}"])
        recording.compare_values(f"meta.json: decode.{name}", value, recorded)
    total = torch.stack(list(terms.values())).sum()
    recording.compare("io", "loss_total", total)
    recording.compare_values("meta.json: loss", total, torch.tensor(meta["reported"]["losses"]["loss"]))
    check_gradients(recording, model, total, meta)


def loss_terms(
    recording: Recording, model: CrossEarth, meta: Mapping[str, Any], x_B3HW: Tensor
) -> dict[str, Tensor]:
    """The loss with the recorded random numbers and choices, which are compared on the way.

    Its terms have the recording's names: of the last layer `loss_cls`, of the first one `d0.loss_cls`.
    """
    config = loss_config_from_meta(meta)
    label_BHW = recording.take("io", "loss_gt")
    predictions = model.decode(model.extract(x_B3HW))
    num_layers, batch = len(predictions), len(label_BHW)
    matched = [len(recording.take("io", f"loss_assign/layer0_img{image}_pos_inds")) for image in range(batch)]
    source = replay(recording, num_layers, matched)
    with replayed_choices(recording, num_layers, matched):
        terms = segmentation_loss(predictions, label_BHW, source, config)
    kinds = {"class": "loss_cls", "mask": "loss_mask", "dice": "loss_dice"}
    prefixes = [*(f"d{layer}." for layer in range(num_layers - 1)), ""]
    return {
        prefix + kinds[kind]: term_L[layer]
        for layer, prefix in enumerate(prefixes)
        for kind, term_L in terms.items()
    }


@contextmanager
def replayed_choices(recording: Recording, num_layers: int, matched: list[int]) -> Iterator[None]:
    """While open, our assignments and points are compared and the loss goes on with the recorded ones.

    Both choose between numbers that may be equal but for rounding: a tie must not spread to what follows.
    """
    images = [image for image, count in enumerate(matched) if count]
    names = iter(f"loss_assign/layer{layer}_img{image}" for image in images for layer in range(num_layers))

    def assign_as_recorded(cost_QG: Tensor) -> tuple[Tensor, Tensor]:
        name = next(names)
        theirs = (recording.take("io", f"{name}_pos_inds"), recording.take("io", f"{name}_gt_inds"))
        check_assignment(recording, name, cost_QG, theirs)
        return theirs

    def points_as_recorded(logits_M1hw: Tensor, *arguments: Any) -> Tensor:
        points_MP2 = uncertain_points(logits_M1hw, *arguments)
        num_uncertain = points_MP2.shape[1] - arguments[1].shape[1]
        keys = [f"loss_points/layer{layer}" for layer in range(num_layers)]
        for key, ours, logits in zip(
            keys, points_MP2.chunk(num_layers), logits_M1hw.chunk(num_layers), strict=True
        ):
            check_points(recording, key, ours, logits, num_uncertain)
        return torch.cat([recording.take("io", key) for key in keys])

    home = "crossearth.model.training.losses"
    with (
        mock.patch(f"{home}.assign", assign_as_recorded),
        mock.patch(f"{home}.uncertain_points", points_as_recorded),
        mock.patch(f"{home}.match", partial(matched_as_recorded, recording)),
    ):
        yield


def matched_as_recorded(recording: Recording, *arguments: Any) -> Matches:
    """`match`, with the labels that it gives the queries compared."""
    matches = match(*arguments)
    for layer, labels_BQ in enumerate(matches.labels):
        for image, labels_Q in enumerate(labels_BQ):
            recording.compare("io", f"loss_assign/layer{layer}_img{image}_labels", labels_Q)
    return matches


def check_assignment(recording: Recording, name: str, cost_QG: Tensor, theirs: tuple[Tensor, Tensor]) -> None:
    """Queries and instances; where they differ, the recorded pairs have to cost no more than ours."""
    ours = assign(cost_QG)
    if all(map(torch.equal, ours, theirs)):
        for part, kind in zip(ours, ("pos_inds", "gt_inds"), strict=True):
            recording.compare("io", f"{name}_{kind}", part)
    else:
        recording.compare_values(
            f"{name} (cost of a tie)", cost_QG[ours].sum(), cost_QG[theirs].sum(), rtol=0
        )


def check_points(
    recording: Recording, key: str, points_MP2: Tensor, logits_M1hw: Tensor, num_uncertain: int
) -> None:
    """The coordinates; where they differ, it may only be by the order of equally uncertain ones."""
    recorded_MP2 = recording.take("io", key)
    if points_MP2.shape != recorded_MP2.shape or torch.allclose(points_MP2, recorded_MP2):
        recording.compare("io", key, points_MP2)
        return
    ours, theirs = (
        sample_points(logits_M1hw, points[:, :num_uncertain]).abs().sort().values
        for points in (points_MP2, recorded_MP2)
    )
    recording.compare_values(f"{key} (uncertain: |logit| of ties)", ours, theirs)
    recording.compare_values(
        f"{key} (random)", points_MP2[:, num_uncertain:], recorded_MP2[:, num_uncertain:]
    )


def check_gradients(recording: Recording, model: CrossEarth, total: Tensor, meta: Mapping[str, Any]) -> None:
    """d total / d parameter for every trained parameter."""
    parameters = model.trained_parameters()
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    named = {str(to_released(name)): part for name, part in zip(parameters, gradients, strict=True)}
    unused = [name for name, gradient in named.items() if gradient is None]
    used = {f"grad/{name}": gradient for name, gradient in named.items() if gradient is not None}
    before = len(recording.rows)
    for key, gradient in used.items():
        recording.compare("io", key, gradient)
    if not all(row.holds for row in recording.rows[before:]):
        del recording.rows[before:]
        nearest = nearest_gradients(recording, model, meta, used)
        for key, gradient in nearest.items():
            recording.compare("io", key, gradient, note=" (within rounding)")
    reported = meta["reported"]
    counted = {
        "n_trainable": len(parameters),
        "n_grad": len(parameters) - len(unused),
        "trainable_without_grad": unused,
    }
    for key, value in counted.items():
        recording.check(f"meta.json: {key}", value == reported[key], str(value))


def nearest_gradients(
    recording: Recording, model: CrossEarth, meta: Mapping[str, Any], gradients: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Of the gradients that rounding can lead to, per number the nearest to the recorded one.

    A gradient jumps where a ReLU's input is 0 or a sample lies on a cell's centre: rounding decides there. So
    the inputs are changed by about their rounding a few times; what does not jump stays where it was.
    """
    quiet = replace(recording, rows=[])
    low, high = dict(gradients), dict(gradients)
    generator = torch.Generator().manual_seed(0)
    parameters = model.trained_parameters()
    trained = [value for name, value in parameters.items() if f"grad/{to_released(name)}" in gradients]
    x_B3HW = recording.take("io", "inputs")
    for _ in range(NUM_ROUNDINGS):
        noise_B3HW = torch.randn(x_B3HW.shape, generator=generator) * ROUNDING
        terms = loss_terms(quiet, model, meta, x_B3HW * (1 + noise_B3HW))
        changed = torch.autograd.grad(torch.stack(list(terms.values())).sum(), trained)
        for key, gradient in zip(gradients, changed, strict=True):
            low[key], high[key] = low[key].minimum(gradient), high[key].maximum(gradient)
    return {
        key: recording.take("io", key).clamp(low[key], high[key])
        if recording.has("io", key) and recording.take("io", key).shape == low[key].shape
        else gradient
        for key, gradient in gradients.items()
    }
