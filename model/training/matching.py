"""Hungarian matching of queries to the classes of an image, on a few random points.

Shape legend: B images, L prediction layers, Q queries, G classes present in one image, P points, K classes.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

DICE_EPSILON = 1.0
HIGHEST_COST = 1e30


def sample_points(maps_BCHW: Tensor, points_BP2: Tensor) -> Tensor:
    """Bilinear samples (B, C, P) at (x, y) in 0..1 over the whole map; zero outside."""
    grid_BP12 = (2 * points_BP2 - 1)[:, :, None]
    return F.grid_sample(maps_BCHW, grid_BP12.to(maps_BCHW.dtype), align_corners=False).squeeze(3)


def matching_cost(
    class_logits_QK1: Tensor,
    mask_logits_QP: Tensor,
    class_ids_G: Tensor,
    masks_GP: Tensor,
    weight_class: float,
    weight_mask: float,
    weight_dice: float,
) -> Tensor:
    """Cost (..., Q, G) of giving instance g to query q; leading dimensions are batched.

    weight_class * -p(class) + weight_mask * mean binary cross entropy + weight_dice * dice over the points.
    """
    class_cost_QG = -class_logits_QK1.softmax(dim=-1)[..., class_ids_G]
    # the cross entropy of a point is softplus(x) outside the mask, and softplus(-x) = softplus(x) - x inside
    outside_Q1 = F.softplus(mask_logits_QP).sum(-1, keepdim=True)
    mask_cost_QG = (outside_Q1 - mask_logits_QP @ masks_GP.mT) / mask_logits_QP.shape[-1]
    probability_QP = mask_logits_QP.sigmoid()
    overlap_QG = 2 * probability_QP @ masks_GP.mT + DICE_EPSILON
    total_QG = probability_QP.sum(-1)[..., :, None] + masks_GP.sum(-1)[..., None, :] + DICE_EPSILON
    dice_cost_QG = 1 - overlap_QG / total_QG
    return weight_class * class_cost_QG + weight_mask * mask_cost_QG + weight_dice * dice_cost_QG


def assign(cost_QG: Tensor) -> tuple[Tensor, Tensor]:
    """The cheapest one-to-one assignment: (queries, instances), int64 of equal length, queries ascending.

    What is not finite costs most: the loss of such a network shall say so, not the assignment.
    """
    cost_QG = cost_QG.detach().float().cpu().nan_to_num(nan=HIGHEST_COST, posinf=HIGHEST_COST)
    queries, instances = linear_sum_assignment(cost_QG.numpy())
    return torch.from_numpy(queries), torch.from_numpy(instances)
