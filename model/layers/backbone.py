"""The vision transformer: any plain ViT of timm, and how weights fit it; the only timm file.

Shape legend: B images, H W pixels, h w patch rows and columns, N = h*w patches, R prefix tokens (class and
registers, first), T = R + N, C embedding channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

import crossearth.data.common.torchvision_ops  # noqa: F401

# isort: split
import timm
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models import get_pretrained_cfg, is_model, is_model_pretrained, split_model_name_tag
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from crossearth.data.common.config import nearest
from crossearth.data.common.errors import InputError
from crossearth.data.common.finite import misfits, refuse_nonfinite
from crossearth.model.layers.positions import resample_patch_kernel, resize_positions

DINOV2 = "vit_large_patch14_dinov2"
TRAINED_LAYER_SCALE = 0.1  # of a ViT that starts from nothing; pretrained ones bring theirs
# what the forward pass uses of a timm model; its norms behind the blocks, pooling and classifier it does not
USED = ("patch_embed.", "cls_token", "reg_token", "pos_embed", "norm_pre.", "rope.", "blocks.")


class Backbone(nn.Module):
    """A ViT of timm, run block by block.

    Args:
        architecture: timm's name of a model with this layout (registers, rotary positions, MLP, norms).
        image_px: side of the square image whose patches the position grid counts.
        patch_px, embed, depth, heads, mlp_ratio: as usual; they go before the architecture's own.
        frozen: no parameter is trained and the mode stays "eval".

    Attributes:
        num_prefix: R, the tokens before the patches.

    Raises:
        InputError: the architecture is no plain ViT; (when run) an image whose sides are not multiples of
            `patch_px`, at least two patches.
    """

    def __init__(
        self,
        architecture: str,
        image_px: int,
        patch_px: int,
        embed: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        frozen: bool,
    ) -> None:
        super().__init__()
        self.patch_px = patch_px
        self.frozen = frozen
        own = {} if frozen or architecture != DINOV2 else {"init_values": TRAINED_LAYER_SCALE}
        self.vit = plain_vit(
            architecture,
            img_size=image_px,
            patch_size=patch_px,
            embed_dim=embed,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            **own,
        )
        self.num_prefix = int(self.vit.num_prefix_tokens)
        # DINOv2 without registers resamples its positions in a way of its own
        self.dinov2_positions = "dinov2" in architecture and self.num_prefix == 1
        # the mask token takes no part here; it is kept so that a file survives unchanged
        self.mask_token = nn.Parameter(torch.zeros(1, embed), requires_grad=False)
        for name, parameter in self.vit.named_parameters():
            parameter.requires_grad_(not frozen and name.startswith(USED))
        self.train(not frozen)

    @property
    def blocks(self) -> nn.Sequential:
        return cast(nn.Sequential, self.vit.blocks)

    def train(self, mode: bool = True) -> "Backbone":
        """A frozen backbone stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def embed(self, x_B3HW: Tensor) -> Tensor:
        """Normalised image -> prefix tokens and patches with learned positions, tokens_BTC."""
        check_size(x_B3HW, self.patch_px)
        if not self.dinov2_positions:
            placed = self.vit._pos_embed(self.vit.patch_embed(x_B3HW))
            return self.vit.norm_pre(placed[0] if isinstance(placed, tuple) else placed)
        class_11C, positions_1TC = cast(tuple[Tensor, Tensor], (self.vit.cls_token, self.vit.pos_embed))
        patch_BChw = self.vit.patch_embed.proj(x_B3HW)
        tokens_BTC = torch.cat(
            [class_11C.expand(x_B3HW.shape[0], -1, -1), patch_BChw.flatten(2).transpose(1, 2)], dim=1
        )
        return tokens_BTC + resize_positions(positions_1TC, patch_BChw.shape[2], patch_BChw.shape[3])

    def rotations(self, rows: int, columns: int) -> Sequence[Tensor | None]:
        """Rotary positions of a grid of patches, one per block; None where the ViT has none."""
        depth = len(self.blocks)
        rope = getattr(self.vit, "rope", None)
        if rope is None:
            return [None] * depth
        rotation = rope.get_embed(shape=(rows, columns))
        return list(rotation) if self.vit.rope_mixed else [rotation] * depth

    def run(self, tokens_BTC: Tensor, layer: int, rotation: Tensor | None) -> Tensor:
        block = self.blocks[layer]
        return block(tokens_BTC) if rotation is None else block(tokens_BTC, rope=rotation)


def plain_vit(architecture: str, **sizes: Any) -> VisionTransformer | Eva:
    """timm's plain ViT of that name in other sizes, random, without classifier; InputError: there is none."""
    if not is_model(architecture):
        raise InputError(
            f"backbone: timm {timm.__version__} has no architecture {architecture!r}",
            expected=nearest(architecture, timm.list_models("vit_*")),
        )
    model = None
    try:
        model = timm.create_model(architecture, num_classes=0, dynamic_img_size=True, **sizes)
    except (TypeError, RuntimeError, AssertionError) as error:  # a size that this kind does not know
        if "vit" in architecture or "eva" in architecture:
            raise InputError(f"backbone: {architecture} cannot be built: {error}") from error
    if not isinstance(model, VisionTransformer | Eva) or not isinstance(model.patch_embed, PatchEmbed):
        raise InputError(
            f"backbone: {architecture} is no plain ViT",
            expected=f"such as {DINOV2}, vit_base_patch14_reg4_dinov2 or vit_small_patch16_dinov3",
        )
    _compute_buffers(model)
    return model


def _compute_buffers(vit: nn.Module) -> None:
    """Computes what no file holds, such as the periods of rotary positions, also in a model on "meta"."""
    stored = vit.state_dict().keys()
    owners = set()
    for name, buffer in list(vit.named_buffers()):
        if name not in stored:
            owner, _, leaf = name.rpartition(".")
            setattr(vit.get_submodule(owner), leaf, torch.empty_like(buffer, device="cpu"))
            owners.add(owner)
    with torch.device("cpu"):
        for owner in owners:
            cast(Any, vit.get_submodule(owner)).init_non_persistent_buffers()


@dataclass(frozen=True)
class Published:
    """What timm says of published weights: their architecture, mean and std on the scale 0..1, licence."""

    architecture: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str


def published(name: str) -> Published | None:
    """timm's own record of the weights `name`, such as vit_large_patch16_dinov3.sat493m; None = unknown."""
    if not is_model_pretrained(name):
        return None
    config = get_pretrained_cfg(name)
    if config is None:
        return None
    mean, std = cast(Any, (config.mean, config.std))
    return Published(split_model_name_tag(name)[0], tuple(mean), tuple(std), config.license or "")


def published_names() -> list[str]:
    """The weights that timm publishes for plain ViTs."""
    # a number of heads for every block, which another depth does not fit
    return timm.list_models(
        module=["vision_transformer", "eva"], exclude_filters="*sapiens2*", pretrained=True
    )


def heads_of(architecture: str, embed: int) -> int:
    """Attention heads: timm's, where the embedding is the architecture's own; else of 64 channels each."""
    with torch.device("meta"):
        vit = plain_vit(architecture, depth=1)
    if vit.embed_dim == embed:
        return int(cast(Any, vit.blocks[0]).attn.num_heads)
    return embed // 64 or 1


def fits_block(architecture: str, state: Mapping[str, Tensor], embed: int, heads: int, ratio: float) -> bool:
    """Whether weights under timm's names are of this layout: all but their depth, grid and patch."""
    if embed % heads:
        return False
    with torch.device("meta"):
        vit = plain_vit(architecture, embed_dim=embed, depth=1, num_heads=heads, mlp_ratio=ratio)
    expected = {name: tensor.shape for name, tensor in vit.state_dict().items()}
    given = {
        name: tensor.shape
        for name, tensor in _own(state).items()
        if name.startswith("blocks.0.") or not name.startswith("blocks.")
    }
    resampled = {"pos_embed", "patch_embed.proj.weight"}
    return given.keys() == expected.keys() and all(
        given[name] == expected[name] for name in given.keys() - resampled
    )


def _own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without a classifier and the token of masked pretraining."""
    left_out = ("head.", "mask_token")
    return {name: tensor for name, tensor in state.items() if not name.startswith(left_out)}


def check_size(x_B3HW: Tensor, patch_px: int) -> None:
    """Refuses sides that are not whole patches, two at least; names the nearest valid one.

    Two, because the coarsest of the four maps has half as many rows and columns as there are patches.
    """
    height, width = x_B3HW.shape[2:]
    if height % patch_px or width % patch_px or min(height, width) < 2 * patch_px:
        rows, columns = (max(2, round(side / patch_px)) * patch_px for side in (height, width))
        raise InputError(
            f"the network cannot take an image of {height} x {width} px",
            expected=f"multiples of {patch_px} px from {2 * patch_px} on; the nearest: {rows} x {columns}",
            next_step="resize or pad it, or use sliding windows with a crop no larger than the image",
        )


def resample_positions(positions_1TC: Tensor, rows: int, columns: int, num_prefix: int = 1) -> Tensor:
    """A pretrained square position grid for another stored grid (bicubic to that size; prefix kept)."""
    # the authors' converter smooths nothing
    return resample_abs_pos_embed(
        positions_1TC, [rows, columns], num_prefix_tokens=num_prefix, antialias=False
    )


def fit_state(state: Mapping[str, Tensor], backbone: Backbone, where: object) -> dict[str, Tensor]:
    """Resamples positions and patch kernels of timm-named weights to the sizes of `backbone`.

    Args:
        state: timm's names (`patch_embed.proj.weight`, `blocks.0.norm1.weight`, ...); a classifier `head.*`
            is left out, `mask_token` is optional.
        where: the file, for messages.

    Returns:
        float32 tensors under the names of `backbone.state_dict()`, complete.

    Raises:
        InputError: missing or superfluous names, shapes that resampling does not mend, or numbers that are
            not finite; all are named.
    """
    given = {name: tensor.float() for name, tensor in _own(state).items()}
    mask_token = state.get("mask_token", backbone.mask_token.detach()).float()
    expected = backbone.vit.state_dict()
    if given.keys() == expected.keys():
        kernel = given["patch_embed.proj.weight"]
        given["patch_embed.proj.weight"] = resample_patch_kernel(kernel, backbone.patch_px)
        if given.get("pos_embed", kernel).ndim == 3:
            num_prefix = 0 if backbone.vit.no_embed_class else backbone.num_prefix
            rows, columns = backbone.vit.patch_embed.grid_size
            given["pos_embed"] = resample_positions(given["pos_embed"], rows, columns, num_prefix)
    if problems := misfits(given, expected):
        raise InputError(
            f"the backbone's weights do not fit the network; {problems}",
            where=where,
            expected="weights of the same embedding, depth and MLP width",
        )
    refuse_nonfinite(given.items(), where, "take another file of the backbone")
    return {f"vit.{name}": tensor for name, tensor in given.items()} | {
        "mask_token": mask_token.reshape(1, -1)
    }
