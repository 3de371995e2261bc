"""The released network and its loss, written out plainly: eager float32, a loop wherever an index runs.

The baseline that the benchmark compares with, and a second opinion for the parity check at sizes that were
never recorded. It works on a state dict under the released names and shares no code with the package.

Shape legend: B images, T tokens, N patches, C channels, Q queries, S positions of three levels, H W sizes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]
Trace = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """What the shapes of the parameters do not tell."""

    heads: int
    taps: tuple[int, ...]
    head_heads: int
    num_points: int
    norm_groups: int


def forward(state: State, sizes: Sizes, x_B3HW: Tensor, trace: Trace | None = None) -> tuple[Tensor, Trace]:
    """Normalised images -> (class scores (B, K, H, W), every recorded intermediate array by name)."""
    trace = {} if trace is None else trace
    maps, queries_QC = backbone(state, sizes, x_B3HW, trace)
    mask_features, memories = pixel_decoder(state, sizes, maps, trace)
    mask_decoder(state, sizes, queries_QC, mask_features, memories, trace)
    last = max(int(name.removeprefix("cls_pred")) for name in trace if name.startswith("cls_pred"))
    masks = F.interpolate(trace[f"mask_pred{last}"], x_B3HW.shape[2:], mode="bilinear", align_corners=False)
    classes = trace[f"cls_pred{last}"].softmax(-1)[..., :-1]
    trace["seg_logits"] = torch.einsum("bqk,bqhw->bkhw", classes, masks.sigmoid())
    return trace["seg_logits"], trace


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def layer_norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.layer_norm(x, weight.shape, weight, state[f"{name}.bias"], eps)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, blocked: Tensor | None = None) -> Tensor:
    """Scaled dot products of every head, the attention matrix in memory."""
    batch, length, channels = query.shape
    query, key, value = (
        x.reshape(batch, -1, heads, channels // heads).transpose(1, 2) for x in (query, key, value)
    )
    scores = query @ key.transpose(2, 3) / math.sqrt(channels // heads)
    if blocked is not None:
        scores = scores.masked_fill(blocked[:, None], -math.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, channels)


def backbone(state: State, sizes: Sizes, x_B3HW: Tensor, trace: Trace) -> tuple[list[Tensor], Tensor]:
    kernel = state["backbone.patch_embed.proj.weight"]
    patch_px = kernel.shape[-1]
    patches = F.conv2d(x_B3HW, kernel, state["backbone.patch_embed.proj.bias"], stride=patch_px)
    rows, columns = patches.shape[2:]
    trace["patch_embed"] = patches.flatten(2).transpose(1, 2)
    classes = state["backbone.cls_token"].expand(len(x_B3HW), -1, -1)
    positions = resized_positions(state["backbone.pos_embed"], rows, columns)
    tokens = torch.cat([classes, trace["patch_embed"]], dim=1) + positions
    trace["tokens_in"] = tokens
    maps = []
    depth = state["backbone.reins.learnable_tokens_a"].shape[0]
    for i in range(depth):
        name = f"backbone.blocks.{i}"
        normed = layer_norm(state, f"{name}.norm1", tokens, 1e-6)
        q, k, v = linear(state, f"{name}.attn.qkv", normed).chunk(3, dim=-1)
        attended = attend(q, k, v, sizes.heads)
        tokens = tokens + state[f"{name}.ls1.gamma"] * linear(state, f"{name}.attn.proj", attended)
        hidden = F.gelu(linear(state, f"{name}.mlp.fc1", layer_norm(state, f"{name}.norm2", tokens, 1e-6)))
        tokens = tokens + state[f"{name}.ls2.gamma"] * linear(state, f"{name}.mlp.fc2", hidden)
        trace[f"block{i}_out"] = tokens
        tokens = torch.cat([tokens[:, :1], rein(state, tokens[:, 1:], i)], dim=1)
        trace[f"block{i}_reins_out"] = tokens
        if i in sizes.taps:
            maps.append(tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, rows, columns))
    for i, scale in enumerate((4, 2, 1, 0.5)):
        if scale != 1:
            maps[i] = F.interpolate(maps[i], scale_factor=scale, mode="bilinear", align_corners=False)
        trace[f"feat{i}"] = maps[i]
    learned = state["backbone.reins.learnable_tokens_a"] @ state["backbone.reins.learnable_tokens_b"]
    per_block = linear(state, "backbone.reins.transform", learned)
    parts = [per_block.max(dim=0).values, per_block.mean(dim=0), per_block[-1]]
    trace["queries"] = linear(state, "backbone.reins.merge", torch.stack(parts, dim=-1).flatten(-2))
    return maps, trace["queries"]


def resized_positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    count = positions.shape[1] - 1
    if rows * columns == count and rows == columns:
        return positions
    side = math.sqrt(count)
    grid = positions[:, 1:].reshape(1, int(side), int(side), -1).permute(0, 3, 1, 2)
    scale = ((rows + 0.1) / side, (columns + 0.1) / side)
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def rein(state: State, feat_BNC: Tensor, layer: int) -> Tensor:
    tokens_a = state["backbone.reins.learnable_tokens_a"][layer]
    tokens = tokens_a @ state["backbone.reins.learnable_tokens_b"][layer]
    attention = torch.softmax(feat_BNC @ tokens.T * feat_BNC.shape[-1] ** -0.5, dim=-1)
    delta = attention[:, :, 1:] @ linear(state, "backbone.reins.mlp_token2feat", tokens[1:])
    delta = linear(state, "backbone.reins.mlp_delta_f", delta + feat_BNC)
    return feat_BNC + state["backbone.reins.scale"] * delta


def sine(rows: int, columns: int, channels: int) -> Tensor:
    """(1, channels, rows, columns)"""
    half = channels // 2
    y = torch.arange(1, rows + 1).float() / (rows + 1e-6) * 2 * math.pi
    x = torch.arange(1, columns + 1).float() / (columns + 1e-6) * 2 * math.pi
    encoded = torch.zeros(channels, rows, columns)
    for i in range(half):
        turn = torch.sin if i % 2 == 0 else torch.cos
        period = 10000 ** (2 * (i // 2) / half)
        encoded[i] = turn(y / period)[:, None]
        encoded[half + i] = turn(x / period)[None]
    return encoded[None]


def conv_norm(state: State, name: str, x: Tensor, groups: int) -> Tensor:
    weight = state[f"{name}.conv.weight"]
    x = F.conv2d(x, weight, state.get(f"{name}.conv.bias"), padding=weight.shape[-1] // 2)
    return F.group_norm(x, groups, state[f"{name}.gn.weight"], state[f"{name}.gn.bias"])


def pixel_decoder(
    state: State, sizes: Sizes, maps: list[Tensor], trace: Trace
) -> tuple[Tensor, list[Tensor]]:
    root = "decode_head.pixel_decoder"
    levels, positions, centres, grids = [], [], [], []
    for i in range(3):
        level = conv_norm(state, f"{root}.input_convs.{i}", maps[3 - i], sizes.norm_groups)
        rows, columns = level.shape[2:]
        encoded = sine(rows, columns, level.shape[1]) + state[f"{root}.level_encoding.weight"][i].view(
            1, -1, 1, 1
        )
        y = ((torch.arange(rows) + 0.5) / rows)[:, None].expand(rows, columns)
        x = ((torch.arange(columns) + 0.5) / columns)[None].expand(rows, columns)
        levels.append(level.flatten(2).transpose(1, 2))
        positions.append(encoded.flatten(2).transpose(1, 2))
        centres.append(torch.stack([x, y], dim=-1).reshape(-1, 2))
        grids.append((rows, columns))
    x_BSC, position, centre = torch.cat(levels, 1), torch.cat(positions, 1), torch.cat(centres)
    i = 0
    while f"{root}.encoder.layers.{i}.norms.0.weight" in state:
        name = f"{root}.encoder.layers.{i}"
        attended = deformable(state, f"{name}.self_attn", sizes, x_BSC, position, centre, grids)
        x_BSC = layer_norm(state, f"{name}.norms.0", x_BSC + attended)
        x_BSC = layer_norm(state, f"{name}.norms.1", x_BSC + feed_forward(state, f"{name}.ffn", x_BSC))
        trace[f"pd_encoder{i}_out"] = x_BSC
        i += 1
    memories = [
        part.transpose(1, 2).reshape(len(part), -1, rows, columns)
        for part, (rows, columns) in zip(x_BSC.split([r * c for r, c in grids], 1), grids, strict=True)
    ]
    for i, memory in enumerate(memories):
        trace[f"memory{i}"] = memory
    lateral = conv_norm(state, f"{root}.lateral_convs.0", maps[0], sizes.norm_groups)
    raised = F.interpolate(memories[2], lateral.shape[2:], mode="bilinear", align_corners=False)
    output = F.relu(conv_norm(state, f"{root}.output_convs.0", lateral + raised, sizes.norm_groups))
    weight, bias = state[f"{root}.mask_feature.weight"], state[f"{root}.mask_feature.bias"]
    trace["mask_features"] = F.conv2d(output, weight, bias)
    return trace["mask_features"], memories


def feed_forward(state: State, name: str, x: Tensor) -> Tensor:
    return linear(state, f"{name}.layers.1", F.relu(linear(state, f"{name}.layers.0.0", x)))


def deformable(
    state: State,
    name: str,
    sizes: Sizes,
    x_BSC: Tensor,
    position: Tensor,
    centre: Tensor,
    grids: list[tuple[int, int]],
) -> Tensor:
    batch, count, channels = x_BSC.shape
    heads, points = sizes.head_heads, sizes.num_points
    query = x_BSC + position
    offsets = linear(state, f"{name}.sampling_offsets", query).view(batch, count, heads, 3, points, 2)
    weights = linear(state, f"{name}.attention_weights", query).view(batch, count, heads, -1).softmax(-1)
    weights = weights.view(batch, count, heads, 3, points)
    values = linear(state, f"{name}.value_proj", x_BSC).view(batch, count, heads, -1)
    values = values.split([rows * columns for rows, columns in grids], dim=1)
    result = torch.zeros(batch, heads, channels // heads, count)
    for level, (rows, columns) in enumerate(grids):
        value = values[level].permute(0, 2, 3, 1).reshape(batch * heads, -1, rows, columns)
        places = centre[None, :, None, None] + offsets[:, :, :, level] / torch.tensor([columns, rows])
        grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)
        sampled = F.grid_sample(value, grid, padding_mode="zeros", align_corners=False)
        sampled = sampled.view(batch, heads, -1, count, points)
        result = result + (sampled * weights[:, :, :, level].transpose(1, 2)[:, :, None]).sum(-1)
    return linear(state, f"{name}.output_proj", result.flatten(1, 2).transpose(1, 2))


def mask_decoder(
    state: State,
    sizes: Sizes,
    queries_QC: Tensor,
    mask_features: Tensor,
    memories: list[Tensor],
    trace: Trace,
) -> None:
    root = "decode_head.transformer_decoder"
    position = queries_QC.expand(len(mask_features), -1, -1)
    query = linear(state, "decode_head.querys2feat", position)
    blocked = predict(state, query, mask_features, memories, 0, trace)
    i = 0
    while f"{root}.layers.{i}.norms.0.weight" in state:
        name, memory = f"{root}.layers.{i}", memories[i % 3]
        values = (
            (memory + state["decode_head.level_embed.weight"][i % 3].view(1, -1, 1, 1))
            .flatten(2)
            .transpose(1, 2)
        )
        channels, rows, columns = memory.shape[1:]
        keys = values + sine(rows, columns, channels).flatten(2).transpose(1, 2)
        blocked = blocked & ~blocked.all(dim=-1, keepdim=True)
        found = multi_head(state, f"{name}.cross_attn.attn", sizes, query + position, keys, values, blocked)
        query = layer_norm(state, f"{name}.norms.0", query + found)
        placed = query + position
        found = multi_head(state, f"{name}.self_attn.attn", sizes, placed, placed, query, None)
        query = layer_norm(state, f"{name}.norms.1", query + found)
        query = layer_norm(state, f"{name}.norms.2", query + feed_forward(state, f"{name}.ffn", query))
        i += 1
        blocked = predict(state, query, mask_features, memories, i, trace)


def multi_head(
    state: State, name: str, sizes: Sizes, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None
) -> Tensor:
    weights, biases = state[f"{name}.in_proj_weight"].chunk(3), state[f"{name}.in_proj_bias"].chunk(3)
    projected = [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]
    attended = attend(projected[0], projected[1], projected[2], sizes.head_heads, blocked)
    return linear(state, f"{name}.out_proj", attended)


def predict(
    state: State, query: Tensor, mask_features: Tensor, memories: list[Tensor], i: int, trace: Trace
) -> Tensor:
    """Records class and mask logits; returns what the next layer may not look at."""
    normed = layer_norm(state, "decode_head.transformer_decoder.post_norm", query)
    embedding = F.relu(linear(state, "decode_head.mask_embed.0", normed))
    embedding = F.relu(linear(state, "decode_head.mask_embed.2", embedding))
    embedding = linear(state, "decode_head.mask_embed.4", embedding)
    trace[f"query{i}"] = query
    trace[f"cls_pred{i}"] = linear(state, "decode_head.cls_embed", normed)
    trace[f"mask_pred{i}"] = torch.einsum("bqc,bchw->bqhw", embedding, mask_features)
    size = memories[i % 3].shape[2:]
    resized = F.interpolate(trace[f"mask_pred{i}"], size, mode="bilinear", align_corners=False)
    trace[f"attn_mask{i}"] = resized.sigmoid().flatten(2) < 0.5
    return trace[f"attn_mask{i}"].detach()


def slide(
    network: Callable[[Tensor], Tensor], x_B3HW: Tensor, crop: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """Overlapping windows, averaged."""
    height, width = x_B3HW.shape[2:]
    total: Tensor | int = 0
    count = torch.zeros(1, 1, height, width)
    for i in range(max(height - crop[0] + stride[0] - 1, 0) // stride[0] + 1):
        for j in range(max(width - crop[1] + stride[1] - 1, 0) // stride[1] + 1):
            bottom, right = min(i * stride[0] + crop[0], height), min(j * stride[1] + crop[1], width)
            top, left = max(bottom - crop[0], 0), max(right - crop[1], 0)
            scores = network(x_B3HW[:, :, top:bottom, left:right])
            total = total + F.pad(scores, (left, width - right, top, height - bottom))
            count[:, :, top:bottom, left:right] += 1
    return total / count


def point_sample(maps: Tensor, points: Tensor) -> Tensor:
    return F.grid_sample(maps, (2 * points - 1)[:, :, None], align_corners=False)[..., 0]


def loss(trace: Trace, label_BHW: Tensor, num_points: int, record: Trace) -> dict[str, Tensor]:
    """All loss terms, layer by layer and image by image; random numbers and assignments go into `record`."""
    num_layers = sum(name.startswith("cls_pred") for name in trace)
    terms: dict[str, Tensor] = {}
    for layer in range(num_layers):
        prefix = "decode." if layer == num_layers - 1 else f"decode.d{layer}."
        terms |= {
            prefix + name: value
            for name, value in layer_loss(
                trace[f"cls_pred{layer}"], trace[f"mask_pred{layer}"], label_BHW, num_points, layer, record
            ).items()
        }
    return terms


def layer_loss(
    class_logits: Tensor, mask_logits: Tensor, label_BHW: Tensor, num_points: int, layer: int, record: Trace
) -> dict[str, Tensor]:
    batch, num_queries, num_classes = class_logits.shape
    labels = torch.full((batch, num_queries), num_classes - 1)
    chosen, targets = [], []
    for b in range(batch):
        ids = [int(i) for i in label_BHW[b].unique() if i != 255]
        masks = (
            torch.stack([(label_BHW[b] == i).float() for i in ids])
            if ids
            else torch.zeros(0, *label_BHW.shape[1:])
        )
        points = torch.rand(1, num_points, 2)
        record[f"loss_rand/layer{layer}_img{b}_match"] = points
        queries, instances = assign(class_logits[b], mask_logits[b], ids, masks, points) if ids else ([], [])
        for query, instance in zip(queries, instances, strict=True):
            labels[b, query] = ids[instance]
            chosen.append(mask_logits[b, query])
            targets.append(masks[instance])
        name = f"loss_assign/layer{layer}_img{b}"
        record[f"{name}_labels"] = labels[b].clone()
        record[f"{name}_pos_inds"] = torch.tensor(queries, dtype=torch.int64)
        record[f"{name}_gt_inds"] = torch.tensor(instances, dtype=torch.int64)
    class_weight = torch.ones(num_classes)
    class_weight[-1] = 0.1
    class_losses = F.cross_entropy(
        class_logits.flatten(0, 1), labels.flatten(), class_weight, reduction="none"
    )
    result = {"loss_cls": 2 * class_losses.sum() / class_weight[labels].sum()}
    if not chosen:
        return result | {"loss_mask": mask_logits.sum() * 0, "loss_dice": mask_logits.sum() * 0}
    logits, target = torch.stack(chosen)[:, None], torch.stack(targets)[:, None]
    points = training_points(logits.detach(), num_points, layer, record)
    target, logits = point_sample(target, points)[:, 0], point_sample(logits, points)[:, 0]
    probability = logits.sigmoid()
    dice = 1 - (2 * (probability * target).sum(1) + 1) / (probability.sum(1) + target.sum(1) + 1)
    return result | {
        "loss_mask": 5 * F.binary_cross_entropy_with_logits(logits, target),
        "loss_dice": 5 * dice.mean(),
    }


def assign(
    class_logits: Tensor, mask_logits: Tensor, ids: list[int], masks: Tensor, points: Tensor
) -> tuple[list[int], list[int]]:
    logits = point_sample(mask_logits[None].detach(), points)[0]
    target = point_sample(masks[None], points)[0]
    cost = torch.zeros(len(logits), len(ids))
    for q in range(len(logits)):
        for g, class_id in enumerate(ids):
            probability = logits[q].sigmoid()
            dice = 1 - (2 * (probability * target[g]).sum() + 1) / (probability.sum() + target[g].sum() + 1)
            mask = F.binary_cross_entropy_with_logits(logits[q], target[g])
            cost[q, g] = -2 * class_logits[q].softmax(-1)[class_id] + 5 * mask + 5 * dice
    queries, instances = linear_sum_assignment(cost.detach().cpu().numpy())
    return queries.tolist(), instances.tolist()


def training_points(logits: Tensor, num_points: int, layer: int, record: Trace) -> Tensor:
    candidates = torch.rand(len(logits), int(3.0 * num_points), 2)
    num_uncertain = int(0.75 * num_points)
    uncertainty = -point_sample(logits, candidates)[:, 0].abs()
    index = uncertainty.topk(num_uncertain, dim=1).indices
    uniform = torch.rand(len(logits), num_points - num_uncertain, 2)
    rows = torch.arange(len(logits))[:, None]
    points = torch.cat([candidates[rows, index], uniform], dim=1)
    record[f"loss_rand/layer{layer}_oversampled"] = candidates
    record[f"loss_rand/layer{layer}_random"] = uniform
    record[f"loss_points/layer{layer}"] = points
    return points
