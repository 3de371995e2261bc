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
MAP_SCALES = (4.0, 2.0, 1.0, 0.5)  # of the four tapped maps: strides patch/4 .. 2*patch
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


def base_positions(sizes: Sequence[Size], device: torch.device | None = None) -> Tensor:
    """Where the centre of every cell of all maps lies in each map, (S, V, 2) float32.

    (x, y) in cells of the map looked at: 0 is the centre of its first cell.
    """
    centres = []
    for height, width in sizes:
        y_H = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x_W = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        y_HW, x_HW = torch.meshgrid(y_H, x_W, indexing="ij")
        centres.append(torch.stack([x_HW, y_HW], dim=2).flatten(0, 1))
    size_V2 = torch.tensor([(width, height) for height, width in sizes], device=device)
    return torch.cat(centres)[:, None] * size_V2 - 0.5


def sample_levels(
    value_BSAE: Tensor, x_BSAVO: Tensor, y_BSAVO: Tensor, weights_BSAVO: Tensor, sizes: Sequence[Size]
) -> Tensor:
    """Weighted sum of bilinear samples of all levels, zero outside the maps, (B, S, A*E).

    Two ways to the same numbers: `grid_sample` has the faster gradient, sums of gathered rows the value.

    Args:
        value_BSAE: the levels one after another.
        x_BSAVO, y_BSAVO: places in cells of each level, float32; 0 is the centre of the first cell.
        weights_BSAVO: attention weights.
        sizes: (rows, columns) of the V maps.
    """
    if torch.is_grad_enabled():
        return _sample_maps(value_BSAE, x_BSAVO, y_BSAVO, weights_BSAVO, sizes)
    return _sum_rows(value_BSAE, x_BSAVO, y_BSAVO, weights_BSAVO, sizes)


def _sample_maps(
    value_BSAE: Tensor, x_BSAVO: Tensor, y_BSAVO: Tensor, weights_BSAVO: Tensor, sizes: Sequence[Size]
) -> Tensor:
    batch, num_positions, heads, channels = value_BSAE.shape
    parts = value_BSAE.split([height * width for height, width in sizes], dim=1)
    levels = []
    for level, ((height, width), part_BXAE) in enumerate(zip(sizes, parts, strict=True)):
        map_NEHW = part_BXAE.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        # points before positions: the products below then run along contiguous rows
        x_BAOS, y_BAOS, weights_BAOS = (
            each_BSAVO[..., level, :].permute(0, 2, 3, 1) for each_BSAVO in (x_BSAVO, y_BSAVO, weights_BSAVO)
        )
        # grid_sample counts -1..1 from border to border
        grid_BAOS2 = torch.stack([(2 * x_BAOS + 1) / width - 1, (2 * y_BAOS + 1) / height - 1], dim=-1)
        # in float32: bfloat16 places are an eighth of a cell apart on a map of 64 cells
        samples_NEOS = F.grid_sample(map_NEHW.float(), grid_BAOS2.flatten(0, 1), align_corners=False)
        levels.append((samples_NEOS * weights_BAOS.flatten(0, 1)[:, None]).sum(2))
    summed_NES = torch.stack(levels).sum(0).to(value_BSAE.dtype)
    return summed_NES.reshape(batch, heads * channels, num_positions).transpose(1, 2)


def _sum_rows(
    value_BSAE: Tensor, x_BSAVO: Tensor, y_BSAVO: Tensor, weights_BSAVO: Tensor, sizes: Sequence[Size]
) -> Tensor:
    """One corner of all bilinear samples at a time: rows of E channels, gathered and summed."""
    batch, num_positions, heads, channels = value_BSAE.shape
    device, num_points = value_BSAE.device, x_BSAVO.shape[-1]

    def per_sample(numbers: Sequence[int]) -> Tensor:
        numbers_V1 = torch.tensor(numbers, dtype=torch.float32, device=device)[:, None]
        return numbers_V1.expand(heads, -1, num_points).flatten()

    width_I, height_I = per_sample([size[1] for size in sizes]), per_sample([size[0] for size in sizes])
    counts = [height * width for height, width in sizes]
    start_I = per_sample([sum(counts[:level]) for level in range(len(counts))])
    head_I = torch.arange(heads, device=device).repeat_interleave(len(sizes) * num_points)
    first_B11 = torch.arange(batch, device=device).view(-1, 1, 1) * (num_positions * heads)
    columns = _corners(x_BSAVO.flatten(2), width_I)
    rows = _corners(y_BSAVO.flatten(2), height_I)
    weights_BSI = weights_BSAVO.flatten(2).float()
    value_XE = value_BSAE.reshape(-1, channels)
    num_bags = batch * num_positions * heads
    summed_XE = value_XE.new_zeros(num_bags, channels)
    for row_BSI, row_share_BSI in rows:
        start_BSI, share_BSI = row_BSI * width_I + start_I, row_share_BSI * weights_BSI
        for column_BSI, column_share_BSI in columns:
            # value rows lie in the order image, position, head
            index_BSI = (start_BSI + column_BSI).long() * heads + (head_I + first_B11)
            summed_XE += _weighted_sum(
                value_XE,
                index_BSI.view(num_bags, -1),
                (share_BSI * column_share_BSI).view(num_bags, -1).to(value_XE.dtype),
            )
    return summed_XE.view(batch, num_positions, heads * channels)


def _weighted_sum(value_XE: Tensor, index_NI: Tensor, share_NI: Tensor) -> Tensor:
    """Of each row of indexes the sum of the named values, each times its share, (N, E)."""
    if torch.compiler.is_compiling():  # of an exported network: ONNX knows no bag, and would loop over them
        rows_NIE = value_XE.index_select(0, index_NI.flatten()).unflatten(0, index_NI.shape)
        return (rows_NIE * share_NI[..., None]).sum(1)
    return F.embedding_bag(index_NI, value_XE, mode="sum", per_sample_weights=share_NI)


def _corners(place_BSI: Tensor, count_I: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The two cells around each place along one axis, and their shares; cells outside become share 0."""
    low_BSI = place_BSI.floor()
    share_BSI = place_BSI - low_BSI
    corners = []
    for cell_BSI, cell_share_BSI in ((low_BSI, 1 - share_BSI), (low_BSI + 1, share_BSI)):
        inside_BSI = cell_BSI.clamp(min=torch.zeros_like(count_I), max=count_I - 1)
        corners.append((inside_BSI, cell_share_BSI * (inside_BSI == cell_BSI)))
    return corners


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

    def forward(self, x_BSC: Tensor, positions_SC: Tensor, base_SV2: Tensor, sizes: Sequence[Size]) -> Tensor:
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
        x_BSAVO, y_BSAVO = (offsets_BSAVO2.float() + base_SV2[:, None, :, None]).unbind(-1)
        value_BSAE = self.value_proj(x_BSC).view(batch, num_positions, self.heads, -1)
        return self.output_proj(sample_levels(value_BSAE, x_BSAVO, y_BSAVO, weights_BSAVO, sizes))


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

    def forward(self, x_BSC: Tensor, positions_SC: Tensor, base_SV2: Tensor, sizes: Sequence[Size]) -> Tensor:
        x_BSC = self.norms[0](x_BSC + self.attention(x_BSC, positions_SC, base_SV2, sizes))
        return self.norms[1](x_BSC + self.ffn(x_BSC))


class NormedConv(nn.Module):
    """Convolution and group norm."""

    def __init__(self, channels_in: int, channels: int, kernel: int, groups: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=bias)
        self.norm = nn.GroupNorm(groups, channels)

    def forward(self, map_BCHW: Tensor, scale: float = 1.0) -> Tensor:
        """`scale` other than 1: of a rescaled map, by a kernel of 1x1."""
        return self.norm(convolve_rescaled(map_BCHW, self.conv, scale))


def rescale(map_BCHW: Tensor, scale: float) -> Tensor:
    """Bilinear (align_corners False); the size is rounded down."""
    if scale == 1:
        return map_BCHW
    return F.interpolate(map_BCHW, scale_factor=scale, mode="bilinear", align_corners=False)


def convolve_rescaled(map_BCHW: Tensor, conv: nn.Conv2d, scale: float) -> Tensor:
    """`conv` of the rescaled map; at the smaller of the two sizes, which is the same for a kernel of 1x1."""
    return rescale(conv(map_BCHW), scale) if scale > 1 else conv(rescale(map_BCHW, scale))


class PixelDecoder(nn.Module):
    """From the four tapped maps, rescaled, to three memories and mask features.

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
        """Tapped maps -> (mask_features_BCHW at the finest scale, memories [coarse, middle, fine] BCHW)."""
        lateral = self.lateral(maps_BCHW[0], MAP_SCALES[0])
        coarse_first = list(zip(self.inputs, maps_BCHW[:0:-1], MAP_SCALES[:0:-1], strict=True))
        levels = [conv(map_BCHW, scale) for conv, map_BCHW, scale in coarse_first]
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        device, dtype = lateral.device, lateral.dtype
        channels = levels[0].shape[1]
        x_BSC = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        positions_SC = torch.cat(
            [
                sine_positions(size, channels, device).to(dtype) + level_C
                for size, level_C in zip(sizes, self.level_embed_VC, strict=True)
            ]
        )
        base_SV2 = base_positions(sizes, device)
        for layer in self.layers:
            x_BSC = layer(x_BSC, positions_SC, base_SV2, sizes)
        memories = [
            part_BSC.transpose(1, 2).unflatten(2, size)
            for part_BSC, size in zip(
                x_BSC.split([height * width for height, width in sizes], dim=1), sizes, strict=True
            )
        ]
        raised_BCHW = F.interpolate(
            memories[-1], size=lateral.shape[2:], mode="bilinear", align_corners=False
        )
        output_BCHW = F.relu(self.output(lateral + raised_BCHW))
        return self.mask_features(output_BCHW), memories
