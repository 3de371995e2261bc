"""The segmentation loss: class, mask and dice terms of every prediction layer, on sampled points.

Shape legend: B images, L prediction layers (the first is before any decoder layer), Q queries, K classes,
G classes present in one image, M matched pairs of the whole batch, P points, H W pixels, h w mask cells.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from crossearth.data.catalog.labels import IGNORE
from crossearth.data.common.config import Share, Weight, checked
from crossearth.model.layers.mask_decoder import Prediction
from crossearth.model.training.matching import DICE_EPSILON, assign, matching_cost, sample_points

# (image, rows, points) -> uniform random coordinates (rows, points, 2) in 0..1
PointSource = Callable[[int, int, int], Tensor]


@checked
class SegmentationLossConfig:
    """Parameters of the loss; the defaults are the method's.

    Attributes:
        weight_class, weight_mask, weight_dice: of the terms, in the loss and in the matching.
        weight_no_object: class weight of "no object" in the class term.
        num_points: sampled per mask.
        oversample: how many times `num_points` candidates are drawn.
        importance: share of the points that are the most uncertain candidates, 0..1; the rest are uniform.
    """

    weight_class: Weight = 2.0
    weight_mask: Weight = 5.0
    weight_dice: Weight = 5.0
    # the class term of a crop without labels is divided by it
    weight_no_object: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    num_points: PositiveInt = 12544
    oversample: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 3.0
    importance: Share = 0.75


class Instances(NamedTuple):
    """The classes of one image as instances: ids (G,) ascending, masks (G, H, W) float 0 or 1."""

    class_ids: Tensor
    masks: Tensor


class Matches(NamedTuple):
    """Matched pairs of all layers, in the order layer, image, query.

    layer, image, query, instance: int64 (L*M,). The instance counts within its image.
    labels: (L, B, Q) class id of every query, K = no object.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    instance: Tensor
    labels: Tensor


class Points(NamedTuple):
    """Random (x, y) of all layers: match (L, B, P, 2), candidates and uniform (L, M, points, 2)."""

    match: Tensor
    candidates: Tensor
    uniform: Tensor


def segmentation_loss(
    predictions: Sequence[Prediction],
    label_BHW: Tensor,
    generator: torch.Generator | Sequence[torch.Generator] | PointSource,
    config: SegmentationLossConfig = SegmentationLossConfig(),  # noqa: B008 frozen
) -> dict[str, Tensor]:
    """Weighted loss terms; their sum is L_seg.

    Every class present in an image is one instance. Ignored pixels (255) count as background of every mask.
    All layers are computed as one batch.

    Args:
        predictions: the decoder's, before the first layer and after each.
        label_BHW: integer class ids 0..K-1, 255 = ignored.
        generator: one for the batch, or one per image (then an image's points do not depend on its batch), on
            the CPU; or a source that replays recorded numbers.

    Returns:
        "class", "mask" and "dice": float32 (L,), the term of each layer.
    """
    # sums over thousands of points want float32, under autocast as well
    with torch.autocast(label_BHW.device.type, enabled=False):
        instances = [instances_of(label_HW) for label_HW in label_BHW]
        class_logits_LBQK1 = torch.stack([each.class_logits for each in predictions]).float()
        mask_logits_LBQhw = torch.stack([each.mask_logits for each in predictions]).float()
        points = draw_points(_point_source(generator), class_logits_LBQK1.shape[:3], instances, config)
        points = Points(*(part.to(label_BHW.device) for part in points))
        with torch.no_grad():
            matches = match(class_logits_LBQK1, mask_logits_LBQhw, instances, points.match, config)
        terms = {"class": config.weight_class * _class_loss(class_logits_LBQK1, matches.labels, config)}
        return terms | _mask_losses(mask_logits_LBQhw, instances, matches, points, config)


def instances_of(label_HW: Tensor) -> Instances:
    """One instance per class that is present; ignored pixels (255) belong to none."""
    class_ids_G = label_HW.unique()
    class_ids_G = class_ids_G[class_ids_G != IGNORE].long()
    return Instances(class_ids_G, (label_HW == class_ids_G[:, None, None]).float())


def _point_source(generator: torch.Generator | Sequence[torch.Generator] | PointSource) -> PointSource:
    if isinstance(generator, torch.Generator):
        return lambda image, rows, count: torch.rand(rows, count, 2, generator=generator)
    if isinstance(generator, Sequence):
        return lambda image, rows, count: torch.rand(rows, count, 2, generator=generator[image])
    return generator


def draw_points(
    source: PointSource, sizes: Sequence[int], instances: Sequence[Instances], config: SegmentationLossConfig
) -> Points:
    """Draws all layers' points, in the released order: layer by layer, matching first."""
    num_layers, _, num_queries = sizes
    matched = [min(num_queries, len(each.class_ids)) for each in instances]
    num_uniform = config.num_points - int(config.importance * config.num_points)
    num_candidates = int(config.num_points * config.oversample)
    drawn: list[list[Tensor]] = [[], [], []]
    for _ in range(num_layers):
        drawn[0].append(torch.cat([source(image, 1, config.num_points) for image in range(len(instances))]))
        for kind, count in ((1, num_candidates), (2, num_uniform)):
            rows = [source(image, number, count) for image, number in enumerate(matched) if number]
            drawn[kind].append(torch.cat(rows) if rows else torch.zeros(0, count, 2))
    return Points(*(torch.stack(layers) for layers in drawn))


def match(
    class_logits_LBQK1: Tensor,
    mask_logits_LBQhw: Tensor,
    instances: Sequence[Instances],
    points_LBP2: Tensor,
    config: SegmentationLossConfig,
) -> Matches:
    """Assigns the instances of every image to queries, for every layer."""
    num_layers, batch, num_queries, channels = class_logits_LBQK1.shape
    sampled_LBQP = sample_points(mask_logits_LBQhw.flatten(0, 1), points_LBP2.flatten(0, 1)).unflatten(
        0, (num_layers, batch)
    )
    labels_LBQ = torch.full((num_layers, batch, num_queries), channels - 1)
    found: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for image, (class_ids_G, masks_GHW) in enumerate(instances):
        if not len(class_ids_G):
            continue
        masks_LGP = _sample_shared(masks_GHW, points_LBP2[:, image])
        cost_LQG = matching_cost(
            class_logits_LBQK1[:, image],
            sampled_LBQP[:, image],
            class_ids_G,
            masks_LGP,
            config.weight_class,
            config.weight_mask,
            config.weight_dice,
        ).cpu()
        for layer in range(num_layers):
            queries, chosen = assign(cost_LQG[layer])
            found[layer, image] = queries, chosen
            labels_LBQ[layer, image, queries] = class_ids_G.cpu()[chosen]
    rows = [
        (layer, image, int(query), int(instance))
        for (layer, image), pair in sorted(found.items())
        for query, instance in zip(*pair, strict=True)
    ]
    device = class_logits_LBQK1.device
    layer_N, image_N, query_N, instance_N = torch.tensor(rows, dtype=torch.int64).view(-1, 4).T.to(device)
    return Matches(layer_N, image_N, query_N, instance_N, labels_LBQ.to(device))


def _sample_shared(masks_GHW: Tensor, points_LP2: Tensor) -> Tensor:
    """The same masks at L sets of points, (L, G, P)."""
    sampled_1GX = sample_points(masks_GHW[None], points_LP2.flatten(0, 1)[None])
    return sampled_1GX[0].unflatten(1, points_LP2.shape[:2]).transpose(0, 1)


def _class_loss(class_logits_LBQK1: Tensor, labels_LBQ: Tensor, config: SegmentationLossConfig) -> Tensor:
    """Cross entropy per layer (L,), averaged with the weights of the targets' classes."""
    weight_K1 = torch.ones(class_logits_LBQK1.shape[-1], device=labels_LBQ.device)
    weight_K1[-1] = config.weight_no_object
    losses_LN = F.cross_entropy(
        class_logits_LBQK1.flatten(0, 2), labels_LBQ.flatten(), weight=weight_K1, reduction="none"
    ).unflatten(0, (len(labels_LBQ), -1))
    return losses_LN.sum(1) / weight_K1[labels_LBQ].flatten(1).sum(1)


def _mask_losses(
    mask_logits_LBQhw: Tensor,
    instances: Sequence[Instances],
    matches: Matches,
    points: Points,
    config: SegmentationLossConfig,
) -> dict[str, Tensor]:
    """Weighted mask and dice terms per layer, (L,) each; zero where nothing is labelled."""
    num_layers = len(mask_logits_LBQhw)
    if not len(matches.layer):
        nothing_L = mask_logits_LBQhw.flatten(1).sum(1) * 0
        return {"mask": nothing_L, "dice": nothing_L}
    logits_N1hw = mask_logits_LBQhw[matches.layer, matches.image, matches.query][:, None]
    with torch.no_grad():
        coordinates_NP2 = uncertain_points(
            logits_N1hw, points.candidates.flatten(0, 1), points.uniform.flatten(0, 1), config
        )
        targets_NP = _target_points(instances, matches, coordinates_NP2)
    logits_NP = sample_points(logits_N1hw, coordinates_NP2)[:, 0]
    mask_N = F.binary_cross_entropy_with_logits(logits_NP, targets_NP, reduction="none").mean(1)
    probability_NP = logits_NP.sigmoid()
    overlap_N = 2 * (probability_NP * targets_NP).sum(1) + DICE_EPSILON
    dice_N = 1 - overlap_N / (probability_NP.sum(1) + targets_NP.sum(1) + DICE_EPSILON)
    return {
        "mask": config.weight_mask * mask_N.view(num_layers, -1).mean(1),
        "dice": config.weight_dice * dice_N.view(num_layers, -1).mean(1),
    }


def uncertain_points(
    logits_N1hw: Tensor, candidates_NX2: Tensor, uniform_NU2: Tensor, config: SegmentationLossConfig
) -> Tensor:
    """The candidates whose logits are nearest to 0, then the uniform points, (N, P, 2)."""
    certainty_NX = sample_points(logits_N1hw, candidates_NX2)[:, 0].abs()
    num_uncertain = config.num_points - uniform_NU2.shape[1]
    chosen_NI = certainty_NX.topk(num_uncertain, dim=1, largest=False).indices
    chosen_NI2 = chosen_NI[..., None].expand(-1, -1, 2)
    return torch.cat([candidates_NX2.gather(1, chosen_NI2), uniform_NU2], dim=1)


def _target_points(instances: Sequence[Instances], matches: Matches, coordinates_NP2: Tensor) -> Tensor:
    """The matched instances' masks at the points, (N, P); no mask is copied per pair."""
    targets_NP = coordinates_NP2.new_zeros(coordinates_NP2.shape[:2])
    for image, each in enumerate(instances):
        rows = (matches.image == image).nonzero()[:, 0]
        if len(rows):
            sampled_RGP = _sample_shared(each.masks, coordinates_NP2[rows])
            targets_NP[rows] = sampled_RGP[torch.arange(len(rows)), matches.instance[rows]]
    return targets_NP
