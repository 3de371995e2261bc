"""Pixel decoder: multi-scale deformable attention over three maps, and mask features at the finest.

Shape legend: B images, H W rows and columns of a map, C channels, S all positions of the three levels (low
resolution first), A heads, E = C / A channels per head, V levels, O points per level and head.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_LEVELS = 3
TEMPERATURE = 10000
EPSILON = 1e-6

Size = tuple[int, int]


def sine_positions(size: Size, channels: int, device: torch.device | None = None) -> Tensor:
    """Sine-cosine encoding of normalised row and column numbers, (H*W, channels) float32, rows first."""
    height, width = size
    half = channels // 2
    index_F = torch.arange(half, device=device)
    wavelength_F = TEMPERATURE ** (2 * (index_F // 2).float() / half)

    def encode(count: int) -> Tensor:
        position_N = torch.arange(1, count + 1, dtype=torch.float32, device=device)
        angle_NF = (position_N / (count + EPSILON) * 2 * math.pi)[:, None] / wavelength_F
        return torch.stack([angle_NF[:, 0::2].sin(), angle_NF[:, 1::2].cos()], dim=2).flatten(1)

    rows_HWF = encode(height)[:, None].expand(height, width, half)
    columns_HWF = encode(width)[None].expand(height, width, half)
    return torch.cat([rows_HWF, columns_HWF], dim=2).flatten(0, 1)


def cell_centres(sizes: Sequence[Size], device: torch.device | None = None) -> Tensor:
    """Centres (x, y) of the cells of all maps, 0..1, (S, 2) float32."""
    centres = []
    for height, width in sizes:
        y_H = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x_W = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        y_HW, x_HW = torch.meshgrid(y_H, x_W, indexing="ij")
        centres.append(torch.stack([x_HW, y_HW], dim=2).flatten(0, 1))
    return torch.cat(centres)


def sample_levels(
    value_BSAE: Tensor, locations_BSAVO2: Tensor, weights_BSAVO: Tensor, sizes: Sequence[Size]
) -> Tensor:
    """Weighted sum of bilinear samples of all levels, zero outside the maps, (B, S, A*E).

    One gather-and-sum over rows of E channels instead of a grid_sample per level: the same numbers, with
    neither per-level copies nor the samples themselves in memory.

    Args:
        locations_BSAVO2: (x, y), 0..1 over each map (borders, not centres, are 0 and 1).
        weights_BSAVO: attention weights.
        sizes: (rows, columns) of the V maps.
    """
    batch, num_positions, heads, channels = value_BSAE.shape
    device = value_BSAE.device
    size_V2 = torch.tensor([(width, height) for height, width in sizes], device=device)
    starts_V = torch.tensor([0] + [height * width for height, width in sizes[:-1]], device=device).cumsum(0)
    cell = locations_BSAVO2.float() * size_V2[:, None] - 0.5
    low = cell.floor()
    fraction = cell - low
    rows, weights = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = (low + torch.tensor([dx, dy], device=device)).unbind(-1)
            width, height = size_V2[:, 0, None], size_V2[:, 1, None]
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            share_x, share_y = (
                fraction[..., axis] if step else 1 - fraction[..., axis] for axis, step in ((0, dx), (1, dy))
            )
            weights.append(weights_BSAVO * (share_x * share_y * inside).to(weights_BSAVO.dtype))
            row = (y * width + x).long() + starts_V[:, None]
            rows.append(row.clamp_(0, num_positions - 1))
    row_BSAI = torch.stack(rows, dim=-1).flatten(3)
    # value rows lie in the order (image, position, head)
    row_BSAI = row_BSAI * heads + torch.arange(heads, device=device)[:, None]
    row_BSAI += torch.arange(batch, device=device).view(-1, 1, 1, 1) * (num_positions * heads)
    summed = F.embedding_bag(
        row_BSAI.flatten(0, 2),
        value_BSAE.reshape(-1, channels),
        mode="sum",
        per_sample_weights=torch.stack(weights, dim=-1).flatten(3).flatten(0, 2).to(value_BSAE.dtype),
    )
    return summed.view(batch, num_positions, heads * channels)


class DeformableAttention(nn.Module):
    """Each position looks at a few learned places of every level."""

    def __init__(self, channels: int, heads: int, num_points: int) -> None:
        super().__init__()
        self.heads = heads
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(channels, heads * NUM_LEVELS * num_points * 2)
        self.attention_weights = nn.Linear(channels, heads * NUM_LEVELS * num_points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self._initialise()

    def _initialise(self) -> None:
        """Heads start by looking in different directions, points at growing distance (Deformable DETR)."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle_A = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction_A2 = torch.stack([angle_A.cos(), angle_A.sin()], dim=-1)
        direction_A2 /= direction_A2.abs().amax(-1, keepdim=True)
        distance_O = torch.arange(1, self.num_points + 1)
        offsets_AVO2 = (direction_A2[:, None, None] * distance_O[:, None]).expand(-1, NUM_LEVELS, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets_AVO2.flatten())

    def forward(
        self, x_BSC: Tensor, positions_SC: Tensor, centres_S2: Tensor, sizes: Sequence[Size]
    ) -> Tensor:
        batch, num_positions, _ = x_BSC.shape
        query_BSC = x_BSC + positions_SC
        points = (NUM_LEVELS, self.num_points)
        offsets_BSAVO2 = self.sampling_offsets(query_BSC).view(batch, num_positions, self.heads, *points, 2)
        weights_BSAVO = (
            self.attention_weights(query_BSC)
            .view(batch, num_positions, self.heads, -1)
            .softmax(dim=-1)
            .unflatten(-1, points)
        )
        size_V2 = torch.tensor([(width, height) for height, width in sizes], device=x_BSC.device)
        locations_BSAVO2 = centres_S2[:, None, None, None] + offsets_BSAVO2.float() / size_V2[:, None]
        value_BSAE = self.value_proj(x_BSC).view(batch, num_positions, self.heads, -1)
        return self.output_proj(sample_levels(value_BSAE, locations_BSAVO2, weights_BSAVO, sizes))


class FeedForward(nn.Module):
    """Linear, ReLU, Linear."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, hidden)
        self.contract = nn.Linear(hidden, channels)

    def forward(self, x_BSC: Tensor) -> Tensor:
        return self.contract(F.relu(self.expand(x_BSC)))


class EncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, each with a residual and a norm after it."""

    def __init__(self, channels: int, heads: int, num_points: int, ffn: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(channels, heads, num_points)
        self.ffn = FeedForward(channels, ffn)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))

    def forward(
        self, x_BSC: Tensor, positions_SC: Tensor, centres_S2: Tensor, sizes: Sequence[Size]
    ) -> Tensor:
        x_BSC = self.norms[0](x_BSC + self.attention(x_BSC, positions_SC, centres_S2, sizes))
        return self.norms[1](x_BSC + self.ffn(x_BSC))


class NormedConv(nn.Module):
    """Convolution and group norm."""

    def __init__(self, channels_in: int, channels: int, kernel: int, groups: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=bias)
        self.norm = nn.GroupNorm(groups, channels)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        return self.norm(self.conv(map_BCHW))


class PixelDecoder(nn.Module):
    """From the four rescaled maps to three memories and mask features.

    Args:
        embed: channels of the incoming maps.
        channels: C inside and of the memories.
        mask_channels: of the mask features.
        num_layers, heads, num_points, ffn: of the deformable encoder.
        norm_groups: of the group norms.
    """

    def __init__(
        self,
        embed: int,
        channels: int,
        mask_channels: int,
        num_layers: int,
        heads: int,
        num_points: int,
        ffn: int,
        norm_groups: int,
    ) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(
            NormedConv(embed, channels, 1, norm_groups, bias=True) for _ in range(NUM_LEVELS)
        )
        self.level_embed_VC = nn.Parameter(torch.randn(NUM_LEVELS, channels))
        self.layers = nn.ModuleList(EncoderLayer(channels, heads, num_points, ffn) for _ in range(num_layers))
        self.lateral = NormedConv(embed, channels, 1, norm_groups, bias=False)
        self.output = NormedConv(channels, channels, 3, norm_groups, bias=False)
        self.mask_features = nn.Conv2d(channels, mask_channels, 1)

    def forward(self, maps_BCHW: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Maps, finest first -> (mask_features_BCHW at the finest, memories [coarse, middle, fine] BCHW)."""
        finest, *others = maps_BCHW
        levels = [conv(map_) for conv, map_ in zip(self.inputs, reversed(others), strict=True)]
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        device, dtype = finest.device, levels[0].dtype
        channels = levels[0].shape[1]
        x_BSC = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        positions_SC = torch.cat(
            [
                sine_positions(size, channels, device).to(dtype) + level_C
                for size, level_C in zip(sizes, self.level_embed_VC, strict=True)
            ]
        )
        centres_S2 = cell_centres(sizes, device)
        for layer in self.layers:
            x_BSC = layer(x_BSC, positions_SC, centres_S2, sizes)
        memories = [
            part_BSC.transpose(1, 2).unflatten(2, size)
            for part_BSC, size in zip(
                x_BSC.split([height * width for height, width in sizes], dim=1), sizes, strict=True
            )
        ]
        raised_BCHW = F.interpolate(memories[-1], size=finest.shape[2:], mode="bilinear", align_corners=False)
        output_BCHW = F.relu(self.output(self.lateral(finest) + raised_BCHW))
        return self.mask_features(output_BCHW), memories
