"""Geospatial semantic extractor and injector: convolutional features that join the tokens in training.

Shape legend: B images, H W pixels, N patches, C embedding channels.
"""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

NUM_CONVOLUTIONS = 5


class GeospatialExtractor(nn.Module):
    """Five 3x3 convolutions with ReLU, as many of stride 2 as make one output per patch.

    The channels double up to the embedding: 64, 128, 256, 512, 1024 for ViT-L (the ladder is our choice; the
    paper gives the number of layers and the output).

    Args:
        embed: C, a multiple of 16.
        patch_px: side of a patch, a power of two up to 32.
    """

    def __init__(self, embed: int, patch_px: int) -> None:
        super().__init__()
        channels = [3, *(embed >> shift for shift in reversed(range(NUM_CONVOLUTIONS)))]
        num_halvings = patch_px.bit_length() - 1
        self.layers = nn.Sequential()
        for i in range(NUM_CONVOLUTIONS):
            stride = 2 if i < num_halvings else 1
            self.layers.append(nn.Conv2d(channels[i], channels[i + 1], 3, stride=stride, padding=1))
            self.layers.append(nn.ReLU())

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Normalised image -> one token per patch, (B, N, C)."""
        # contiguous: attention over tokens that lie otherwise is computed in float32, all pairs in memory
        return self.layers(x_B3HW).flatten(2).transpose(1, 2).contiguous()


class Injector(nn.Module):
    """Parameter-free cross-attention from geospatial to backbone tokens, then one linear map.

    Args:
        embed: C.
        own_linear: a zero-initialised linear map of its own; without it the caller lends one (Rein's W2, as
            the released checkpoints suggest).
    """

    def __init__(self, embed: int, own_linear: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(embed, embed) if own_linear else None
        if self.linear is not None:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, feat_BNC: Tensor, geospatial_BNC: Tensor, shared: nn.Linear | None) -> Tensor:
        """What is to be added to `feat_BNC`; `shared` is needed without a linear map of its own."""
        # one head: ONNX has no attention without a dimension of heads
        query_B1NC, value_B1NC = geospatial_BNC[:, None], feat_BNC[:, None]
        found_BNC = F.scaled_dot_product_attention(query_B1NC, value_B1NC, value_B1NC)[:, 0]
        return cast(nn.Linear, self.linear or shared)(found_BNC)
