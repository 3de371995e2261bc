"""Matching, every loss term with the recorded random numbers, and every gradient.

Shape legend: B images, L prediction layers, P points, M matched pairs of a batch, Q queries.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from recording import Recording
from sizes import loss_config_from_meta
from torch import Tensor

from crossearth.model.crossearth import CrossEarth
from crossearth.model.losses import (
    PointSource,
    draw_points,
    instances_of,
    match,
    segmentation_loss,
    uncertain_points,
)
from crossearth.model.matching import sample_points
from crossearth.model.names import to_released


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
    config = loss_config_from_meta(meta)
    label_BHW = recording.take("io", "loss_gt")
    predictions = model.decode(model.extract(recording.take("io", "inputs")))
    num_layers, batch = len(predictions), len(label_BHW)
    matched = [len(recording.take("io", f"loss_assign/layer0_img{image}_pos_inds")) for image in range(batch)]

    instances = [instances_of(label_HW) for label_HW in label_BHW]
    class_logits_LBQK1 = torch.stack([each.class_logits for each in predictions])
    mask_logits_LBQhw = torch.stack([each.mask_logits for each in predictions])
    with torch.no_grad():
        sizes = class_logits_LBQK1.shape[:3]
        points = draw_points(replay(recording, num_layers, matched), sizes, instances, config)
        matches = match(class_logits_LBQK1, mask_logits_LBQhw, instances, points.match, config)
        for layer in range(num_layers):
            for image in range(batch):
                name = f"loss_assign/layer{layer}_img{image}"
                chosen = (matches.layer == layer) & (matches.image == image)
                recording.compare("io", f"{name}_labels", matches.labels[layer, image])
                recording.compare("io", f"{name}_pos_inds", matches.query[chosen])
                recording.compare("io", f"{name}_gt_inds", matches.instance[chosen])
            if not recording.has("io", f"loss_points/layer{layer}"):
                continue
            chosen = matches.layer == layer
            logits_M1hw = mask_logits_LBQhw[layer, matches.image[chosen], matches.query[chosen]][:, None]
            coordinates_MP2 = uncertain_points(
                logits_M1hw, points.candidates[layer], points.uniform[layer], config
            )
            num_uncertain = config.num_points - points.uniform.shape[2]
            check_points(recording, f"loss_points/layer{layer}", coordinates_MP2, logits_M1hw, num_uncertain)

    source = replay(recording, num_layers, matched)
    terms = segmentation_loss(predictions, label_BHW, model.config.num_classes, source, config)
    for name, value in terms.items():
        key = f"loss_term/decode.{name}"
        recording.compare("io", key, value.reshape(recording.take("io", key).shape))
        recorded = torch.tensor(meta["reported"]["losses"][f"decode.{name}"])
        recording.compare_values(f"meta.json: decode.{name}", value, recorded)
    total = torch.stack(list(terms.values())).sum()
    recording.compare("io", "loss_total", total)
    recording.compare_values("meta.json: loss", total, torch.tensor(meta["reported"]["losses"]["loss"]))
    check_gradients(recording, model, total)


def check_points(
    recording: Recording, key: str, points_MP2: Tensor, logits_M1hw: Tensor, num_uncertain: int
) -> None:
    """The coordinates; where they differ, it may only be by the order of equally uncertain ones."""
    recorded_MP2 = recording.take("io", key)
    if points_MP2.shape == recorded_MP2.shape and not torch.allclose(points_MP2, recorded_MP2):
        for part, name in ((slice(num_uncertain), "uncertain"), (slice(num_uncertain, None), "random")):
            ours, theirs = (
                sample_points(logits_M1hw, points[:, part]).abs() for points in (points_MP2, recorded_MP2)
            )
            recording.compare_values(f"{key} ({name}: |logit|, near ties in another order)", ours, theirs)
    else:
        recording.compare("io", key, points_MP2)


def check_gradients(recording: Recording, model: CrossEarth, total: Tensor) -> None:
    """d total / d parameter for every trained parameter."""
    parameters = model.trained_parameters()
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        key = f"grad/{to_released(name)}"
        if gradient is None:
            recording.check(key, not recording.has("io", key), "no gradient")
        else:
            recording.compare("io", key, gradient)
    recording.check(
        "meta.json: number of trained parameters",
        len(parameters) == meta_count(recording),
        str(len(parameters)),
    )


def meta_count(recording: Recording) -> int:
    meta = recording.json("meta.json")
    return int(meta["reported"]["n_trainable"])
