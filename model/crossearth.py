"""The network: every size stands here and nowhere else.

Shape legend: B images, H W pixels, h w patch rows and columns, N patches, C embedding channels, Q queries,
D query channels, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from crossearth.data.common.config import checked
from crossearth.data.common.errors import InputError
from crossearth.model.layers.backbone import Backbone
from crossearth.model.layers.geospatial import GeospatialExtractor, Injector
from crossearth.model.layers.mask_decoder import MaskDecoder, Prediction, semantic_logits
from crossearth.model.layers.pixel_decoder import MAP_SCALES, PixelDecoder
from crossearth.model.layers.reconstruction import ReconstructionHead
from crossearth.model.layers.rein import Rein

# a description from outside must not ask for more than any machine has
Size = Annotated[int, Field(ge=1, le=2**16)]
Layers = Annotated[int, Field(ge=1, le=1000)]


@checked
class NetworkConfig:
    """Sizes of a network; the defaults are the paper's (DINOv2 ViT-L/16 at 512 px).

    Attributes:
        num_classes: K, without "no object".
        image_px: side of the image whose patches the position grid counts; also of the image token.
        patch_px: side of a patch, the four maps have strides patch/4, patch/2, patch and 2*patch.
        embed, depth, heads, mlp_ratio: of the vision transformer.
        taps: blocks (from 0, ascending) whose output becomes the four maps, finest map first.
        num_tokens: learned tokens per block, and queries.
        rank: of the factorised tokens.
        channels, mask_channels: of the head and of its mask features.
        head_heads: attention heads in pixel and mask decoder.
        num_points: deformable sampling points per level and head.
        encoder_layers, encoder_ffn: of the pixel decoder.
        decoder_layers, decoder_ffn: of the mask decoder.
        norm_groups: of the pixel decoder's group norms.
        crop_px, stride_px: sliding windows at inference.
        frozen_backbone: only adapters and head are trained; the paper's way.
        geospatial: has the extractor and injector; `injector` says whose linear map it uses,
            "shared" = Rein's W2, "own" = one of its own that starts at 0.
        inject_at_inference: whether segmentation injects as training does; the authors switch it off.
        masked_modelling: has the image token and the reconstruction head (training only).
        reconstruction_channels, reconstruction_px: of that head; the side of its output.
        mean, std: of the input, RGB on the scale 0..255.
    """

    num_classes: Size
    image_px: Size = 512
    patch_px: Size = 16
    embed: Size = 1024
    depth: Layers = 24
    heads: Size = 16
    mlp_ratio: float = 4.0
    taps: tuple[int, ...] = (7, 11, 15, 23)
    num_tokens: Size = 100
    rank: Size = 16
    channels: Size = 256
    mask_channels: Size = 256
    head_heads: Size = 8
    num_points: Size = 4
    encoder_layers: Layers = 6
    encoder_ffn: Size = 1024
    decoder_layers: Layers = 9
    decoder_ffn: Size = 2048
    norm_groups: Size = 32
    crop_px: Size = 512
    stride_px: Size = 341
    frozen_backbone: bool = True
    geospatial: bool = False
    injector: Literal["shared", "own"] = "shared"
    inject_at_inference: bool = False
    masked_modelling: bool = False
    reconstruction_channels: Size = 256
    reconstruction_px: Size = 512
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        for whole, part in (
            ("embed", "heads"),
            ("channels", "head_heads"),
            ("channels", "norm_groups"),
            ("image_px", "patch_px"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise InputError(
                    f"{whole}: {getattr(self, whole)} is not divisible by {part} {getattr(self, part)}"
                )
        if self.channels % 4:
            raise InputError(f"channels: {self.channels}", expected="a multiple of 4 (sine positions)")
        ascending = all(a < b for a, b in zip((-1, *self.taps), (*self.taps, self.depth), strict=True))
        if len(self.taps) != len(MAP_SCALES) or not ascending:
            raise InputError(
                f"taps: {list(self.taps)}", expected=f"4 ascending block numbers below depth {self.depth}"
            )
        if not self.frozen_backbone and self.taps[-1] != self.depth - 1:
            raise InputError(
                f"taps: {list(self.taps)} leave blocks behind the last one untrained",
                expected=f"{self.depth - 1} as the last, or frozen_backbone: true",
            )
        if self.inject_at_inference and not self.geospatial:
            raise InputError(
                "inject_at_inference: true without an injector",
                expected="geospatial: true (ablation: full)",
            )
        if self.geospatial and (self.patch_px & (self.patch_px - 1) or self.patch_px > 32 or self.embed % 16):
            raise InputError(
                f"geospatial with patch_px {self.patch_px} and embed {self.embed}",
                expected="a power of two up to 32, and a multiple of 16",
            )
        whole_patches = self.crop_px % self.patch_px == 0 and self.crop_px >= 2 * self.patch_px
        if not whole_patches or not 0 < self.stride_px <= self.crop_px:
            raise InputError(
                f"crop_px {self.crop_px}, stride_px {self.stride_px}",
                expected=f"a crop of two or more patches of {self.patch_px} px, a stride of 1 to the crop",
            )


def large_config(num_classes: int, image_px: int = 512, **changes: Any) -> NetworkConfig:
    """The paper's network: ViT-L/16, frozen; windows of `image_px` with a stride of two thirds."""
    config = NetworkConfig(num_classes, image_px, crop_px=image_px, stride_px=round(2 * image_px / 3))
    return replace(config, **changes)


def tiny_config(num_classes: int, image_px: int = 128, **changes: Any) -> NetworkConfig:
    """A network that a CPU trains from scratch within minutes; the same code at small sizes."""
    config = NetworkConfig(
        num_classes,
        image_px,
        patch_px=8,
        embed=96,
        depth=4,
        heads=3,
        mlp_ratio=2.0,
        taps=(0, 1, 2, 3),
        num_tokens=20,
        rank=4,
        channels=48,
        mask_channels=48,
        head_heads=4,
        encoder_layers=1,
        encoder_ffn=96,
        decoder_layers=2,
        decoder_ffn=96,
        norm_groups=8,
        crop_px=image_px,
        stride_px=round(2 * image_px / 3),
        frozen_backbone=False,
        reconstruction_channels=16,
        reconstruction_px=image_px // 2,
    )
    return replace(config, **changes)


# by the name that `train.network` in params.yaml gives
SIZES: dict[str, Callable[[int, int], NetworkConfig]] = {"large": large_config, "tiny": tiny_config}


@dataclass(frozen=True)
class Features:
    """What the backbone gives: the tapped maps (B, C, h, w), not yet rescaled, and the queries (Q, D)."""

    maps: tuple[Tensor, ...]
    queries: Tensor

    def select(self, samples: slice | Tensor) -> "Features":
        """The features of some samples of the batch."""
        return Features(tuple(map_BChw[samples] for map_BChw in self.maps), self.queries)


class CrossEarth(nn.Module):
    """DINOv2 with Rein adapters and a Mask2Former head; raw RGB in, class scores per pixel out.

    Attributes:
        config: its sizes.
        image_token: (1, 3, H, W) in normalised space, for masked pixels (None without masked modelling).
        gse: the geospatial extractor (None without it).
        activation_checkpointing: in training, blocks are run again in the backward pass instead of kept.
    """

    mean_3: Tensor
    std_3: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        # the device is named because checkpoints are loaded into a network built on "meta"
        self.register_buffer("mean_3", torch.tensor(config.mean, device="cpu"), persistent=False)
        self.register_buffer("std_3", torch.tensor(config.std, device="cpu"), persistent=False)
        self.backbone = Backbone(
            config.image_px,
            config.patch_px,
            config.embed,
            config.depth,
            config.heads,
            config.mlp_ratio,
            config.frozen_backbone,
        )
        self.rein = Rein(config.depth, config.num_tokens, config.rank, config.embed, config.channels)
        self.pixel_decoder = PixelDecoder(
            config.embed,
            config.channels,
            config.mask_channels,
            config.encoder_layers,
            config.head_heads,
            config.num_points,
            config.encoder_ffn,
            config.norm_groups,
        )
        self.mask_decoder = MaskDecoder(
            config.channels,
            config.mask_channels,
            config.num_classes,
            config.decoder_layers,
            config.head_heads,
            config.decoder_ffn,
        )
        self.gse = GeospatialExtractor(config.embed, config.patch_px) if config.geospatial else None
        self.injector = Injector(config.embed, config.injector == "own") if config.geospatial else None
        self.image_token: nn.Parameter | None = None
        self.reconstruction: ReconstructionHead | None = None
        if config.masked_modelling:
            self.image_token = nn.Parameter(torch.zeros(1, 3, config.image_px, config.image_px))
            self.reconstruction = ReconstructionHead(
                config.embed, config.reconstruction_channels, config.reconstruction_px
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CrossEarth":
        # 123.675 is no bfloat16 number: the normalisation stays float32 whatever the network becomes
        super()._apply(fn, recurse)
        self.mean_3 = self.mean_3.new_tensor(self.config.mean, dtype=torch.float32)
        self.std_3 = self.std_3.new_tensor(self.config.std, dtype=torch.float32)
        return self

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Raw RGB, 0..255, uint8 or float -> scores (B, K, H, W) float32, not normalised over classes.

        Raises:
            InputError: sides that are not multiples of the patch.
        """
        return self.segment(self.normalise(image_B3HW))

    def normalise(self, image_B3HW: Tensor) -> Tensor:
        """Raw RGB, 0..255 -> zero mean and unit deviation per channel, float32."""
        return (image_B3HW.float() - self.mean_3.view(3, 1, 1)) / self.std_3.view(3, 1, 1)

    def segment(self, x_B3HW: Tensor) -> Tensor:
        """Normalised image -> scores (B, K, H, W)."""
        features = self.extract(x_B3HW, slice(None) if self.config.inject_at_inference else None)
        last = self.decode(features)[-1]
        return semantic_logits(last, (x_B3HW.shape[2], x_B3HW.shape[3]))

    def extract(self, x_B3HW: Tensor, geospatial: Tensor | slice | None = None) -> Features:
        """Runs backbone and adapters.

        Args:
            x_B3HW: normalised images.
            geospatial: the samples whose tokens get the geospatial injection, bool (B,) or a slice of them;
                None = none.
        """
        x_B3HW = x_B3HW.to(self.rein.scale.dtype)
        rows, columns = (side // self.config.patch_px for side in x_B3HW.shape[2:])
        tokens_BTC = self.backbone.embed(x_B3HW)
        inject = self._injection(x_B3HW, geospatial)
        maps: list[Tensor] = []
        for layer, block in enumerate(self.backbone.blocks):
            tokens_BTC = self._refined_block(tokens_BTC, block, layer)
            if layer in self.config.taps:
                tokens_BTC = inject(tokens_BTC)
                maps.append(tokens_BTC[:, 1:].transpose(1, 2).unflatten(2, (rows, columns)))
        return Features(tuple(maps), self.rein.queries())

    def _refined_block(self, tokens_BTC: Tensor, block: nn.Module, layer: int) -> Tensor:
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(lambda tokens: self.rein(block(tokens), layer), tokens_BTC, use_reentrant=False)
        return self.rein(block(tokens_BTC), layer)

    def _injection(self, x_B3HW: Tensor, samples: Tensor | slice | None) -> Callable[[Tensor], Tensor]:
        """What is done to the tokens at a tap; nothing where no sample is chosen."""
        if samples is None or (isinstance(samples, Tensor) and not samples.any()):
            return lambda tokens_BTC: tokens_BTC
        if self.gse is None or self.injector is None:
            raise InputError("this network has no geospatial extractor", expected="geospatial: true")
        index_b = torch.arange(x_B3HW.shape[0], device=x_B3HW.device)[samples]
        geospatial_bNC, injector = self.gse(x_B3HW[index_b]), self.injector

        def inject(tokens_BTC: Tensor) -> Tensor:
            added_bNC = injector(tokens_BTC[index_b, 1:], geospatial_bNC, self.rein.delta)
            return tokens_BTC.index_add(0, index_b, F.pad(added_bNC, (0, 0, 1, 0)).to(tokens_BTC.dtype))

        return inject

    def decode(self, features: Features) -> list[Prediction]:
        """Predictions before the first decoder layer and after each."""
        mask_features, memories = self.pixel_decoder(features.maps)
        return self.mask_decoder(features.queries, mask_features, memories)

    def reconstruct(self, features: Features) -> Tensor:
        """Images (B, 3, S, S) in normalised space, S = config.reconstruction_px."""
        if self.reconstruction is None:
            raise InputError("this network has no reconstruction head", expected="masked_modelling: true")
        return self.reconstruction(features.maps)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}


def crossearth_large(num_classes: int, image_px: int = 512, **changes: Any) -> CrossEarth:
    """The paper's network; its backbone's weights are to be loaded."""
    return CrossEarth(large_config(num_classes, image_px, **changes))


def crossearth_tiny(num_classes: int, image_px: int = 128, **changes: Any) -> CrossEarth:
    """The small network of the demonstration and the tests."""
    return CrossEarth(tiny_config(num_classes, image_px, **changes))
