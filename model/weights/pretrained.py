"""What the weights of a backbone say of themselves: layout, sizes, normalisation, licence."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from crossearth.data.common.errors import InputError
from crossearth.model.crossearth import taps_of
from crossearth.model.layers.backbone import DINOV2, Published, fits_block, heads_of, published
from crossearth.model.weights.release import PATCH_KERNEL

CONFIG_NAME = "config.json"  # timm's, beside its weights
UNKNOWN_LICENCE = "unknown: ask its publisher"
# of a file that nobody names, the first whose parameters are the file's
DINOV2_LAYOUTS = (
    DINOV2,
    "vit_large_patch14_reg4_dinov2",
    "vit_giant_patch14_dinov2",
    "vit_giant_patch14_reg4_dinov2",
)
LAYOUTS = (
    *DINOV2_LAYOUTS,
    "vit_large_patch16_dinov3",
    "vit_large_patch16_dinov3_qkvb",
    "vit_huge_plus_patch16_dinov3",
    "vit_huge_plus_patch16_dinov3_qkvb",
    "vit_large_patch16_224",
)
FIRST_MAPS = ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1_g.weight")
DEFAULT_PATCH_PX = 16


@dataclass(frozen=True)
class Pretrained:
    """A backbone's weights, as far as a network's configuration goes.

    Attributes:
        name: timm's, or the file's.
        licence: of the weights; they are their publisher's.
        sizes: values of `NetworkConfig` that they decide.
    """

    name: str
    licence: str
    sizes: dict[str, Any]


def describe(state: Mapping[str, Tensor], path: Path, source: str) -> Pretrained:
    """Takes sizes from the weights, the rest from timm's config.json beside them or timm's record of a name.

    A patch whose side is no power of two (DINOv2's 14) becomes one of 16, as the authors made it.

    Args:
        state: under timm's names, as `read_backbone` gives it; its shapes are enough.
        path: of its file.
        source: what the user called it: a name of timm's hub, a file, an address.

    Raises:
        InputError: of no layout that is known; weights that are not what their name says; or nothing says
            which mean and deviation they expect.
    """
    said = _record(path, source)
    embed, _, _, patch_px = state[PATCH_KERNEL].shape
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for architecture in (said.architecture,) if said else LAYOUTS:
        heads = heads_of(architecture, embed)
        for ratio in _ratios(state, embed):
            if fits_block(architecture, state, embed, heads, ratio):
                sizes = {
                    "architecture": architecture,
                    "patch_px": DEFAULT_PATCH_PX if patch_px & (patch_px - 1) else patch_px,
                    "embed": embed,
                    "depth": depth,
                    "heads": heads,
                    "mlp_ratio": ratio,
                    "taps": taps_of(depth),
                }
                return Pretrained(
                    source if published(source) else path.name,
                    said.licence if said and said.licence else UNKNOWN_LICENCE,
                    sizes | _normalisation(said, architecture, path),
                )
    raise InputError(
        f"backbone: its parameters are not those of {said.architecture if said else 'any plain ViT known'}",
        where=path,
        expected="weights under timm's names",
        next_step="name the weights as timm does, NAME.safetensors, or put timm's config.json beside them",
    )


def _record(path: Path, source: str) -> Published | None:
    """What the publisher says: beside the file, or under a name that timm knows."""
    beside = path.with_name(CONFIG_NAME)
    if path.name == "model.safetensors" and beside.is_file():
        try:
            config = json.loads(beside.read_text(encoding="utf-8"))
            of_weights = config.get("pretrained_cfg", config)
            mean, std = (tuple(map(float, of_weights[key])) for key in ("mean", "std"))
            if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or not all(map(math.isfinite, mean + std)):
                raise ValueError(f"mean {mean}, std {std}")
            return Published(str(config["architecture"]), mean, std, str(of_weights.get("license") or ""))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"not timm's description of weights ({type(error).__name__}: {error})",
                where=beside,
                expected="architecture, and pretrained_cfg with mean, std and license",
                next_step="fetch it again from where the weights come from",
            ) from error
    return published(source) or published(path.stem)


def _ratios(state: Mapping[str, Tensor], embed: int) -> Iterator[float]:
    """Ratios of the MLP's width that its first map may stand for: plain, or gate and value side by side."""
    first = next((name for name in FIRST_MAPS if name in state), None)
    if first is not None:
        width = state[first].shape[0]
        for hidden in (width, width // 2):
            ratio = hidden / embed
            # the width is int(embed * ratio), which may not round down to one less
            yield ratio if int(embed * ratio) == hidden else math.nextafter(ratio, math.inf)


def _normalisation(said: Published | None, architecture: str, path: Path) -> dict[str, Any]:
    """Mean and std on the scale 0..255; none where the network's own, ImageNet's, are DINOv2's too."""
    if said is not None:
        return {
            name: tuple(round(255 * value, 4) for value in values)
            for name, values in (("mean", said.mean), ("std", said.std))
        }
    if architecture in DINOV2_LAYOUTS:
        return {}
    raise InputError(
        "backbone: nothing says which mean and deviation these weights expect of an image",
        where=path,
        expected=f"timm's name, such as vit_large_patch16_dinov3.sat493m{path.suffix}, or timm's config.json "
        "beside model.safetensors",
        next_step="rename the file so, or fetch the config.json too",
    )
