"""The network: every size stands here and nowhere else.

Shape legend: B images, H W pixels, h w patch rows and columns, N patches, C embedding channels, Q queries,
D query channels, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from crossearth.data.common.config import checked
from crossearth.data.common.errors import InputError
from crossearth.model.layers.backbone import DINOV2, Backbone
from crossearth.model.layers.geospatial import GeospatialExtractor, Injector
from crossearth.model.layers.lora import Lora, LoraConfig
from crossearth.model.layers.mask_decoder import MaskDecoder, Prediction, semantic_logits
from crossearth.model.layers.pixel_decoder import MAP_SCALES, PixelDecoder
from crossearth.model.layers.reconstruction import ReconstructionHead
from crossearth.model.layers.rein import Rein

# a description from outside must not ask for more than any machine has
Size = Annotated[int, Field(ge=1, le=2**16)]
Layers = Annotated[int, Field(ge=1, le=1000)]
Adapter = Literal["rein", "lora", "none"]
Head = Literal["mask2former", "linear"]
# which field is to be a multiple of which
DIVIDES = {"heads": "embed", "head_heads": "channels", "norm_groups": "channels", "patch_px": "image_px"}


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
        architecture: timm's name of a ViT with the backbone's layout; the sizes above go before its own.
        adapter: of a frozen backbone: "rein", "lora", or "none" (the head alone is trained).
        lora: of the adapter "lora".
        head: "mask2former", or "linear": one 1x1 convolution on the last tap.
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
    architecture: str = DINOV2
    adapter: Adapter = "rein"
    lora: LoraConfig = field(default_factory=LoraConfig)
    head: Head = "mask2former"

    def __post_init__(self) -> None:
        for part, whole in DIVIDES.items():
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
        trains_blocks = not self.frozen_backbone or self.adapter == "lora"
        if trains_blocks and self.taps[-1] != self.depth - 1:
            raise InputError(
                f"taps: {list(self.taps)} leave blocks behind the last one untrained",
                expected=f"{self.depth - 1} as the last, or frozen_backbone: true without adapter: lora",
            )
        if self.inject_at_inference and not self.geospatial:
            raise InputError(
                "inject_at_inference: true without an injector", expected="geospatial: true (ablation: full)"
            )
        if self.geospatial and (self.patch_px & (self.patch_px - 1) or self.patch_px > 32 or self.embed % 16):
            raise InputError(
                f"geospatial with patch_px {self.patch_px} and embed {self.embed}",
                expected="a power of two up to 32, and a multiple of 16",
            )
        if self.geospatial and self.injector == "shared" and self.adapter != "rein":
            raise InputError(
                f"injector: shared lends a map of Rein, and the adapter is {self.adapter}",
                expected="injector: own",
            )
        if self.adapter == "lora" and not self.frozen_backbone:
            raise InputError(
                "adapter: lora adds to weights that stay, and frozen_backbone is false",
                expected="frozen_backbone: true, or adapter: none",
            )
        if self.adapter == "lora" and self.lora.start(self.depth) >= self.depth:
            raise InputError(
                f"lora.first_block: {self.lora.first_block} leaves none of {self.depth} blocks",
                expected=f"below {self.depth}",
            )
        whole_patches = self.crop_px % self.patch_px == 0 and self.crop_px >= 2 * self.patch_px
        if not whole_patches or not 0 < self.stride_px <= self.crop_px:
            raise InputError(
                f"crop_px {self.crop_px}, stride_px {self.stride_px}",
                expected=f"a crop of two or more patches of {self.patch_px} px, a stride of 1 to the crop",
            )


def taps_of(depth: int) -> tuple[int, ...]:
    """The blocks that the four maps come from, in a ViT of any depth: the paper's 7, 11, 15, 23 of 24."""
    return depth // 3 - 1, depth // 2 - 1, -(-2 * depth // 3) - 1, depth - 1


# by the name that `train.network` in params.yaml gives: side of the windows, and what is not the paper's
SIZES: dict[str, dict[str, Any]] = {
    # the paper's: ViT-L/16, frozen
    "large": {"image_px": 512, "reconstruction_px": 512},
    # ViT-S sizes, frozen, and a head half as deep: for one GPU of 8 GB
    "small": {
        "image_px": 512,
        "embed": 384,
        "depth": 12,
        "heads": 6,
        "taps": taps_of(12),
        "channels": 192,
        "mask_channels": 192,
        "encoder_layers": 3,
        "encoder_ffn": 768,
        "decoder_layers": 3,
        "decoder_ffn": 768,
        "reconstruction_channels": 64,
    },
    # a CPU trains it from scratch within minutes
    "tiny": {
        "image_px": 128,
        "patch_px": 8,
        "embed": 96,
        "depth": 4,
        "heads": 3,
        "mlp_ratio": 2.0,
        "taps": (0, 1, 2, 3),
        "num_tokens": 20,
        "rank": 4,
        "channels": 48,
        "mask_channels": 48,
        "head_heads": 4,
        "encoder_layers": 1,
        "encoder_ffn": 96,
        "decoder_layers": 2,
        "decoder_ffn": 96,
        "norm_groups": 8,
        "frozen_backbone": False,
        "reconstruction_channels": 16,
    },
}


def network_config(size: str, num_classes: int, image_px: int | None = None, **changes: Any) -> NetworkConfig:
    """The network of a size; its windows have a stride of two thirds.

    Args:
        size: a name of `SIZES`.
        image_px: side of the windows; None = the size's own.
        changes: of single numbers.
    """
    row = SIZES[size]
    side = image_px or row["image_px"]
    windows = {"image_px": side, "crop_px": side, "stride_px": round(2 * side / 3)}
    return NetworkConfig(num_classes, **{"reconstruction_px": side // 2, **row, **windows, **changes})


large_config = partial(network_config, "large")
tiny_config = partial(network_config, "tiny")


@dataclass(frozen=True)
class Features:
    """What the backbone gives: the tapped maps (B, C, h, w), not yet rescaled, and the queries (Q, D).

    A linear head takes no queries: None.
    """

    maps: tuple[Tensor, ...]
    queries: Tensor | None

    def select(self, samples: slice | Tensor) -> "Features":
        """The features of some samples of the batch."""
        return Features(tuple(map_BChw[samples] for map_BChw in self.maps), self.queries)


class CrossEarth(nn.Module):
    """A ViT with adapters and a segmentation head; raw RGB in, class scores per pixel out.

    Attributes:
        config: its sizes.
        rein, lora: the adapter; None where it is another.
        queries: learned query embeddings (Q, D), where no adapter gives them to the head.
        pixel_decoder, mask_decoder, linear: the head; None where it is the other.
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
            config.architecture,
            config.image_px,
            config.patch_px,
            config.embed,
            config.depth,
            config.heads,
            config.mlp_ratio,
            config.frozen_backbone,
        )
        masked = config.head == "mask2former"
        self.rein: Rein | None = None
        self.queries: nn.Parameter | None = None
        if config.adapter == "rein":
            query_dim, num_prefix = config.channels if masked else None, self.backbone.num_prefix
            self.rein = Rein(
                config.depth, config.num_tokens, config.rank, config.embed, query_dim, num_prefix
            )
        self.lora = Lora(self.backbone, config.lora) if config.adapter == "lora" else None
        if masked and self.rein is None:
            self.queries = nn.Parameter(torch.randn(config.num_tokens, config.channels))
        self.pixel_decoder: PixelDecoder | None = None
        self.mask_decoder: MaskDecoder | None = None
        self.linear: nn.Conv2d | None = None
        if masked:
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
        else:
            self.linear = nn.Conv2d(config.embed, config.num_classes, 1)
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
        size = (x_B3HW.shape[2], x_B3HW.shape[3])
        if self.linear is not None:
            return self.pixel_logits(features, size).softmax(dim=1)
        return semantic_logits(self.decode(features)[-1], size)

    def extract(
        self, x_B3HW: Tensor, geospatial: Tensor | slice | None = None, keys: Sequence[int] = ()
    ) -> Features:
        """Runs backbone and adapters.

        Args:
            x_B3HW: normalised images.
            geospatial: the samples whose tokens get the geospatial injection, bool (B,) or a slice of them;
                None = none.
            keys: one per image, of the random numbers of LoRA's dropout; needed in training with it.
        """
        x_B3HW = x_B3HW.to(self.backbone.mask_token.dtype)
        rows, columns = (side // self.config.patch_px for side in x_B3HW.shape[2:])
        tokens_BTC = self.backbone.embed(x_B3HW)
        rotations = self.backbone.rotations(rows, columns)
        inject = self._injection(x_B3HW, geospatial)
        maps: list[Tensor] = []
        for layer, rotation in enumerate(rotations):
            tokens_BTC = self._refined_block(tokens_BTC, layer, rotation, keys)
            if layer in self.config.taps:
                tokens_BTC = inject(tokens_BTC)
                patches_BNC = tokens_BTC[:, self.backbone.num_prefix :]
                maps.append(patches_BNC.transpose(1, 2).unflatten(2, (rows, columns)))
        return Features(tuple(maps), self.queries if self.rein is None else self.rein.queries())

    def _refined_block(
        self, tokens_BTC: Tensor, layer: int, rotation: Tensor | None, keys: Sequence[int]
    ) -> Tensor:
        def refined(tokens_BTC: Tensor) -> Tensor:
            # within: checkpointing runs it once more, when another pass may have set its own keys
            if self.lora is not None:
                self.lora.owner.keys = keys
            tokens_BTC = self.backbone.run(tokens_BTC, layer, rotation)
            return tokens_BTC if self.rein is None else self.rein(tokens_BTC, layer)

        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(refined, tokens_BTC, use_reentrant=False)
        return refined(tokens_BTC)

    def _injection(self, x_B3HW: Tensor, samples: Tensor | slice | None) -> Callable[[Tensor], Tensor]:
        """What is done to the tokens at a tap; nothing where no sample is chosen."""
        if samples is None or (isinstance(samples, Tensor) and not samples.any()):
            return lambda tokens_BTC: tokens_BTC
        if self.gse is None or self.injector is None:
            raise InputError("this network has no geospatial extractor", expected="geospatial: true")
        index_b = torch.arange(x_B3HW.shape[0], device=x_B3HW.device)[samples]
        geospatial_bNC, injector = self.gse(x_B3HW[index_b]), self.injector
        shared = self.rein.delta if self.rein is not None else None
        num_prefix = self.backbone.num_prefix

        def inject(tokens_BTC: Tensor) -> Tensor:
            added_bNC = injector(tokens_BTC[index_b, num_prefix:], geospatial_bNC, shared)
            added_bTC = F.pad(added_bNC, (0, 0, num_prefix, 0))
            return tokens_BTC.index_add(0, index_b, added_bTC.to(tokens_BTC.dtype))

        return inject

    def decode(self, features: Features) -> list[Prediction]:
        """Mask2Former's predictions before the first decoder layer and after each."""
        if self.pixel_decoder is None or self.mask_decoder is None or features.queries is None:
            raise InputError("this network has no mask decoder", expected="head: mask2former")
        mask_features, memories = self.pixel_decoder(features.maps)
        return self.mask_decoder(features.queries, mask_features, memories)

    def pixel_logits(self, features: Features, size: tuple[int, int]) -> Tensor:
        """The linear head's logits (B, K, *size), float32."""
        if self.linear is None:
            raise InputError("this network has no linear head", expected="head: linear")
        logits_BKhw = self.linear(features.maps[-1]).float()
        return F.interpolate(logits_BKhw, size=size, mode="bilinear", align_corners=False)

    def reconstruct(self, features: Features) -> Tensor:
        """Images (B, 3, S, S) in normalised space, S = config.reconstruction_px."""
        if self.reconstruction is None:
            raise InputError("this network has no reconstruction head", expected="masked_modelling: true")
        return self.reconstruction(features.maps)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def start_adapter(self) -> None:
        """Initialises what of the adapter starts from the pretrained weights, which must be there."""
        if self.lora is not None:
            self.lora.start_from(self.backbone)

    def merge_adapter(self) -> None:
        """Adds LoRA's branches to the weights: the same scores, at the speed of the ViT alone."""
        if self.lora is not None:
            self.lora.merge(self.backbone)
            self.lora, self.config = None, replace(self.config, adapter="none")


def crossearth_tiny(num_classes: int, image_px: int | None = None, **changes: Any) -> CrossEarth:
    """The small network of the demonstration and the tests."""
    return CrossEarth(tiny_config(num_classes, image_px, **changes))
