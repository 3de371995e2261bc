"""The vision transformer (DINOv2 layout) and the resampling of its weights; the only timm file.

Shape legend: B images, H W pixels, h w patch rows and columns, N = h*w patches, T = 1 + N tokens (class token
first), C embedding channels, P side of a patch in pixels, G = g*g cells of the position grid.
"""

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import crossearth.data.common.torchvision_ops  # noqa: F401

# isort: split
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

from crossearth.data.common.errors import InputError
from crossearth.data.common.finite import refuse_nonfinite

LAYER_SCALE_INIT = 1e-5
# DINOv2 widens the sampling scale of the position grid by this, against rounding down to one cell less
POSITION_SCALE_OFFSET = 0.1


class Backbone(nn.Module):
    """ViT with LayerScale, class token and learned positions, run block by block.

    Args:
        image_px: side of the square image whose patches the position grid counts.
        patch_px, embed, depth, heads, mlp_ratio: as usual.
        frozen: no parameter is trained and the mode stays "eval".

    Raises:
        InputError: (when run) an image whose sides are not multiples of `patch_px`, at least two patches.
    """

    def __init__(
        self, image_px: int, patch_px: int, embed: int, depth: int, heads: int, mlp_ratio: float, frozen: bool
    ) -> None:
        super().__init__()
        self.patch_px = patch_px
        self.frozen = frozen
        self.vit = VisionTransformer(
            img_size=image_px,
            patch_size=patch_px,
            embed_dim=embed,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            init_values=LAYER_SCALE_INIT if frozen else 0.1,
            num_classes=0,
            dynamic_img_size=True,
        )
        # the final norm and the mask token take no part here; they are kept so that a file survives unchanged
        self.mask_token = nn.Parameter(torch.zeros(1, embed), requires_grad=False)
        self.vit.norm.requires_grad_(False)
        if frozen:
            self.requires_grad_(False)
        self.train(not frozen)

    @property
    def blocks(self) -> nn.Sequential:
        """The transformer blocks: each maps tokens_BTC to tokens_BTC."""
        return self.vit.blocks

    def train(self, mode: bool = True) -> "Backbone":
        """A frozen backbone stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def embed(self, x_B3HW: Tensor) -> Tensor:
        """Normalised image -> class token and patches with positions, tokens_BTC (before the first block)."""
        check_size(x_B3HW, self.patch_px)
        class_11C, positions_1TC = cast(tuple[Tensor, Tensor], (self.vit.cls_token, self.vit.pos_embed))
        patch_BChw = self.vit.patch_embed.proj(x_B3HW)
        tokens_BTC = torch.cat(
            [class_11C.expand(x_B3HW.shape[0], -1, -1), patch_BChw.flatten(2).transpose(1, 2)], dim=1
        )
        return tokens_BTC + resize_positions(positions_1TC, patch_BChw.shape[2], patch_BChw.shape[3])


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


def resize_positions(positions_1TC: Tensor, rows: int, columns: int) -> Tensor:
    """Position embedding for a grid of `rows` x `columns` patches, as DINOv2 does it (bicubic).

    The class position (first) is kept. A square grid of the stored size is returned untouched; any other one
    is sampled with scale (rows + 0.1) / g, which is not the ratio of the sizes: released weights expect that.
    """
    num_cells = positions_1TC.shape[1] - 1
    if rows * columns == num_cells and rows == columns:
        return positions_1TC
    side = math.sqrt(num_cells)
    grid_1Cgg = positions_1TC[:, 1:].unflatten(1, (round(side), -1)).permute(0, 3, 1, 2)
    scale = ((rows + POSITION_SCALE_OFFSET) / side, (columns + POSITION_SCALE_OFFSET) / side)
    resized_1Chw = F.interpolate(grid_1Cgg.float(), scale_factor=scale, mode="bicubic", align_corners=False)
    resized_1NC = resized_1Chw.flatten(2).transpose(1, 2).to(positions_1TC.dtype)
    return torch.cat([positions_1TC[:, :1], resized_1NC], dim=1)


def resample_positions(positions_1TC: Tensor, rows: int, columns: int) -> Tensor:
    """A pretrained square position grid for another stored grid (bicubic to that size; class kept)."""
    # the authors' converter smooths nothing
    return resample_abs_pos_embed(positions_1TC, [rows, columns], antialias=False)


def resample_patch_kernel(kernel_C3PP: Tensor, patch_px: int) -> Tensor:
    """Patch kernels for patches of `patch_px` (bicubic, magnitudes not rescaled)."""
    if kernel_C3PP.shape[2:] == (patch_px, patch_px):
        return kernel_C3PP
    resized_C3PP = F.interpolate(
        kernel_C3PP.float(), size=(patch_px, patch_px), mode="bicubic", align_corners=False
    )
    return resized_C3PP.to(kernel_C3PP.dtype)


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
    given = {name: tensor.float() for name, tensor in state.items() if not name.startswith("head.")}
    mask_token = given.pop("mask_token", backbone.mask_token.detach())
    expected = backbone.vit.state_dict()
    if given.keys() == expected.keys() and given["pos_embed"].ndim == 3:
        given["pos_embed"] = resample_positions(given["pos_embed"], *backbone.vit.patch_embed.grid_size)
        kernel = given["patch_embed.proj.weight"]
        given["patch_embed.proj.weight"] = resample_patch_kernel(kernel, backbone.patch_px)
    problems = [f"missing {name}" for name in sorted(expected.keys() - given.keys())]
    problems += [f"not of this network {name}" for name in sorted(given.keys() - expected.keys())]
    problems += [
        f"{name} is {tuple(given[name].shape)}, the network's is {tuple(expected[name].shape)}"
        for name in sorted(given.keys() & expected.keys())
        if given[name].shape != expected[name].shape
    ]
    if problems:
        raise InputError(
            f"the backbone's weights do not fit the network ({len(problems)}): {'; '.join(problems[:10])}",
            where=where,
            expected="weights of the same embedding, depth and MLP width",
        )
    refuse_nonfinite(given.items(), where, "take another file of the backbone")
    return {f"vit.{name}": tensor for name, tensor in given.items()} | {
        "mask_token": mask_token.reshape(1, -1)
    }
