"""Masked-attention decoder: queries look at the pixels of their own mask and say class and mask.

Shape legend: B images, Q queries, C channels, D mask channels, K classes, A heads, S positions of one memory,
H W rows and columns of a map.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossearth.model.layers.pixel_decoder import NUM_LEVELS, FeedForward, Size, sine_positions


class Prediction(NamedTuple):
    """Logits of the classes (B, Q, K+1; the last is "no object") and of the masks (B, Q, H, W)."""

    class_logits: Tensor
    mask_logits: Tensor


class Attention(nn.Module):
    """Multi-head attention with one projection matrix for query, key and value."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, query_BQC: Tensor, key_BSC: Tensor, value_BSC: Tensor, allowed_BQS: Tensor | None = None
    ) -> Tensor:
        """Attends where `allowed_BQS` (bool, the same for all heads) is True; everywhere without it."""
        query_BAQE, key_BASE, value_BASE = (
            F.linear(x_BSC, weight_CC, bias_C).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x_BSC, weight_CC, bias_C in zip(
                (query_BQC, key_BSC, value_BSC), self.in_weight.chunk(3), self.in_bias.chunk(3), strict=True
            )
        )
        mask_B1QS = None if allowed_BQS is None else allowed_BQS[:, None]
        found_BAQE = F.scaled_dot_product_attention(query_BAQE, key_BASE, value_BASE, mask_B1QS)
        return self.out(found_BAQE.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward, each with a residual and a norm after it."""

    def __init__(self, channels: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.cross_attention = Attention(channels, heads)
        self.self_attention = Attention(channels, heads)
        self.ffn = FeedForward(channels, ffn)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def forward(
        self,
        query_BQC: Tensor,
        positions_QC: Tensor,
        memory_BSC: Tensor,
        memory_positions_SC: Tensor,
        allowed_BQS: Tensor,
    ) -> Tensor:
        found_BQC = self.cross_attention(
            query_BQC + positions_QC, memory_BSC + memory_positions_SC, memory_BSC, allowed_BQS
        )
        query_BQC = self.norms[0](query_BQC + found_BQC)
        placed_BQC = query_BQC + positions_QC
        query_BQC = self.norms[1](query_BQC + self.self_attention(placed_BQC, placed_BQC, query_BQC))
        return self.norms[2](query_BQC + self.ffn(query_BQC))


class PredictionHead(nn.Module):
    """Class and mask logits of the queries; shared by all layers."""

    def __init__(self, channels: int, mask_channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.classes = nn.Linear(channels, num_classes + 1)
        self.masks = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, mask_channels),
        )

    def forward(self, query_BQC: Tensor, mask_features_BDHW: Tensor) -> Prediction:
        normed_BQC = self.norm(query_BQC)
        mask_logits_BQHW = torch.einsum("bqd,bdhw->bqhw", self.masks(normed_BQC), mask_features_BDHW)
        return Prediction(self.classes(normed_BQC), mask_logits_BQHW)


def blocked_positions(mask_logits_BQHW: Tensor, size: Size) -> Tensor:
    """bool (B, Q, S): positions of a memory of `size` that lie outside the query's mask."""
    resized_BQhw = F.interpolate(mask_logits_BQHW, size=size, mode="bilinear", align_corners=False)
    return resized_BQhw.flatten(2).sigmoid() < 0.5


class MaskDecoder(nn.Module):
    """Refines the queries over the three memories in turn and predicts before and after every layer.

    Args:
        channels: C of memories and queries.
        mask_channels: D of the mask features.
        num_classes: K, without "no object".
        num_layers, heads, ffn: of the decoder.
    """

    def __init__(
        self, channels: int, mask_channels: int, num_classes: int, num_layers: int, heads: int, ffn: int
    ) -> None:
        super().__init__()
        self.query_features = nn.Linear(channels, channels)
        self.level_embed_VC = nn.Parameter(torch.randn(NUM_LEVELS, channels))
        self.layers = nn.ModuleList(DecoderLayer(channels, heads, ffn) for _ in range(num_layers))
        self.head = PredictionHead(channels, mask_channels, num_classes)

    def forward(
        self, queries_QC: Tensor, mask_features_BDHW: Tensor, memories_BCHW: Sequence[Tensor]
    ) -> list[Prediction]:
        """Predictions before the first layer and after each, in that order."""
        sizes = [(memory.shape[2], memory.shape[3]) for memory in memories_BCHW]
        device, dtype = queries_QC.device, queries_QC.dtype
        keys = [
            memory.flatten(2).transpose(1, 2) + level_C
            for memory, level_C in zip(memories_BCHW, self.level_embed_VC, strict=True)
        ]
        positions = [sine_positions(size, queries_QC.shape[1], device).to(dtype) for size in sizes]
        query_BQC = self.query_features(queries_QC).expand(mask_features_BDHW.shape[0], -1, -1)
        predictions = [self.head(query_BQC, mask_features_BDHW)]
        for i, layer in enumerate(self.layers):
            level = i % NUM_LEVELS
            with torch.no_grad():
                blocked_BQS = blocked_positions(predictions[-1].mask_logits, sizes[level])
                allowed_BQS = ~blocked_BQS | blocked_BQS.all(dim=-1, keepdim=True)
            query_BQC = layer(query_BQC, queries_QC, keys[level], positions[level], allowed_BQS)
            predictions.append(self.head(query_BQC, mask_features_BDHW))
        return predictions


def semantic_logits(prediction: Prediction, size: Size) -> Tensor:
    """Scores (B, K, *size), float32: sum over queries of p(class) p(mask), not normalised over classes."""
    # classes that are nearly as likely would tie in bfloat16
    with torch.autocast(prediction.mask_logits.device.type, enabled=False):
        class_BQK = prediction.class_logits.float().softmax(dim=-1)[..., :-1]
        mask_BQHW = F.interpolate(
            prediction.mask_logits.float(), size=size, mode="bilinear", align_corners=False
        ).sigmoid_()
        return (class_BQK.mT @ mask_BQHW.flatten(2)).unflatten(2, size)
