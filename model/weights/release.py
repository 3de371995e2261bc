"""From files that others published to the network's state: released checkpoints and DINOv2 backbones."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor

from crossearth.data.common.config import nearest
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import sha256_file
from crossearth.model.crossearth import CrossEarth
from crossearth.model.layers.backbone import fit_state, published_names
from crossearth.model.weights.checkpoint import load_strictly, read_tensors
from crossearth.model.weights.names import to_ours
from crossearth.model.weights.pickles import read_torch_file

HUB = "https://huggingface.co"
HUB_NAME = "vit_large_patch14_dinov2.lvd142m"
# inference calls the backbone and the head, without the extractor inside the former; all else is training's
INFERENCE_MODULES = ("backbone.", "decode_head.")
PREFERRED = ("state_dict", "model", "")  # keys of a checkpoint that hold what was trained
TRAINING_MODULES = ("backbone.reins.high_extractor.",)
CLASS_HEAD = "decode_head.cls_embed.weight"
POSITIONS, PATCH_KERNEL, FIRST_NORM = "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight"


@dataclass(frozen=True)
class Released:
    """A released checkpoint.

    Attributes:
        path: of the file.
        state: parameters of backbone and head under their released names, float32.
        training: parameters of modules that only training uses, under their released names.
        meta: what the file says of itself, plain values only: classes, palette, iteration, versions.
        under: key and prefix that the parameters stand under in the file, such as "state_dict: module.".
        sha256: of the file.
    """

    path: Path
    state: dict[str, Tensor]
    training: dict[str, Tensor]
    meta: dict[str, Any]
    under: str
    sha256: str

    @property
    def num_classes(self) -> int:
        """Of its head, without "no object"."""
        return len(self.state[CLASS_HEAD]) - 1


def read_released(path: Path) -> Released:
    """Reads a released checkpoint (an mmengine pickle) without running anything in it.

    Raises:
        InputError: not such a file, or it names anything but tensors and known containers.
    """
    content = read_torch_file(path)
    groups = _groups(content, path)
    place = _find(groups, CLASS_HEAD, path)
    if place is None:
        names = [name for tensors in groups.values() for name in tensors]
        raise InputError(
            f"no {CLASS_HEAD} among its {len(names)} parameters: {', '.join(names[:3])}, ...",
            where=path,
            expected="a released checkpoint with backbone.reins.* and decode_head.*",
            next_step="a backbone alone is given as --backbone",
        )
    key, prefix = place
    own = {
        name.removeprefix(prefix): tensor for name, tensor in groups[key].items() if name.startswith(prefix)
    }
    # counters of an average, say
    others = {name: tensor for name, tensor in groups[key].items() if not name.startswith(prefix)}
    inference = {
        name for name in own if name.startswith(INFERENCE_MODULES) and not name.startswith(TRAINING_MODULES)
    }
    training = others | {name: tensor for name, tensor in own.items() if name not in inference}
    return Released(
        path=Path(path),
        state={name: own[name].float() for name in sorted(inference)},
        training={name: training[name] for name in sorted(training)},
        meta=_plain(meta) if isinstance(meta := content.get("meta"), dict) else {},
        under=_told(place),
        sha256=sha256_file(path),
    )


def _find(names: Mapping[str, Collection[str]], mark: str, where: Path) -> tuple[str, str] | None:
    """Key and prefix that the network stands under which has a parameter `mark`; None where none has.

    Trainings put `module.`, `model.`, `_orig_mod.` and the like before all names, and keep averages beside
    the weights: the keys of PREFERRED come before others, and bare names before those with a prefix.

    Args:
        names: of parameters, by the file's keys that they stand under; "" = the file itself.

    Raises:
        InputError: there are several of equal rank.
    """
    places = [
        (PREFERRED.index(key) if key in PREFERRED else len(PREFERRED), prefix != "", key, prefix)
        for key, parameters in names.items()
        for prefix in (name.removesuffix(mark) for name in parameters if f".{name}".endswith(f".{mark}"))
    ]
    best = [place[2:] for place in places if place[:2] == min(places)[:2]]
    if len(best) > 1:
        raise InputError(
            f"parameters of several networks, under {', '.join(map(_told, best))}",
            where=where,
            expected="those of one, such as the average or the teacher",
            next_step="save one of them to a file of its own",
        )
    return best[0] if best else None


def _told(place: tuple[str, str]) -> str:
    return ": ".join(filter(None, place))


def _groups(content: Any, path: Path) -> dict[str, dict[str, Tensor]]:
    """Tensors by their names, by the key of the file that they stand under; "" = the file itself."""
    root = content if isinstance(content, dict) else {}
    groups = {
        str(key): {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
        for key, held in {"": root, **root}.items()
        if isinstance(held, dict)
    }
    if not any(groups.values()):
        raise InputError(
            "no parameters in it", where=path, expected="a state dict, or one under the key state_dict"
        )
    for name, tensor in chain.from_iterable(tensors.items() for tensors in groups.values()):
        # a view may repeat its numbers without end, and the first copy of it takes the memory
        if tensor.numel() > (held := tensor.untyped_storage().nbytes() // tensor.element_size()):
            raise InputError(f"{name}: {tensor.numel()} numbers, of which the file holds {held}", where=path)
    return groups


def _plain(value: Any) -> Any:
    """`value` without anything that JSON does not know."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if _is_plain(item)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value if _is_plain(item)]
    return value


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool | dict | list | tuple)


def load_released(
    model: CrossEarth, released: Released, backbone: Mapping[str, Tensor], where: object
) -> None:
    """Fills `model` with the trained parts of `released` and with a backbone.

    Args:
        backbone: as `read_backbone` gives it, of any grid and patch size; it is resampled to the network's.
        where: the backbone's file, for messages.

    Raises:
        InputError: a parameter that is missing, superfluous or of another shape; all are named.
    """
    unknown = sorted(name for name in released.state if to_ours(name) is None)
    if unknown:
        raise InputError(
            f"parameters that the network does not know ({len(unknown)}): {', '.join(unknown[:10])}",
            where=released.path,
            expected="backbone.reins.* and decode_head.* of the released models",
        )
    state = {str(to_ours(name)): tensor for name, tensor in released.state.items()}
    frozen = {f"backbone.{name}": value for name, value in fit_state(backbone, model.backbone, where).items()}
    load_strictly(model, frozen | state, released.path)


def read_backbone(path: Path, shapes_only: bool = False) -> dict[str, Tensor]:
    """Reads a vision transformer under timm's names (which are DINOv2's).

    Knows safetensors files (timm's, or a shared backbone of ours) and files of torch.save (DINOv2's own, the
    authors' converted one, or a whole checkpoint that holds a backbone).

    Args:
        shapes_only: as `read_tensors` has it; a file of torch.save is read whole all the same.

    Raises:
        InputError: none of these, or no backbone in it.
    """
    if path.suffix == ".safetensors":
        groups = {"": dict(read_tensors(path, shapes_only))}
    else:
        groups = _groups(read_torch_file(path), path)
    place = _find(groups, PATCH_KERNEL, path)
    state = {}
    if place is not None:
        key, prefix = place
        prefix = prefix.removesuffix("vit.")
        state = {
            name.removeprefix(prefix).removeprefix("vit."): tensor
            for name, tensor in groups[key].items()
            if name.startswith(prefix) and not name.startswith(f"{prefix}reins.")
        }
    if not {FIRST_NORM, PATCH_KERNEL} <= state.keys():
        raise InputError(
            f"no vision transformer in it: {FIRST_NORM} or {PATCH_KERNEL} is missing",
            where=path,
            expected="a plain ViT, as timm ships it, or DINOv2 as the authors converted it",
        )
    return state


def image_px_of(backbone: Mapping[str, Tensor], patch_px: int) -> int | None:
    """Side of the image whose patches the position grid counts; None where the patch is not `patch_px`."""
    if backbone[PATCH_KERNEL].shape[-1] != patch_px:
        return None
    return math.isqrt(backbone[POSITIONS].shape[1] - 1) * patch_px


def fetch_backbone(source: str, cache_dir: Path) -> Path:
    """The local file of a backbone.

    Args:
        source: a file, an address `s3://bucket/key`, or a name of timm's hub such as
            `vit_large_patch14_dinov2.lvd142m`.
        cache_dir: where files from S3 are kept; the hub keeps its own.

    Raises:
        InputError: no such file, object or name, or no network; says which file to fetch and where it goes.
    """
    if source.startswith("s3://"):
        cached = cache_dir / source.removeprefix("s3://")
        if not cached.exists():
            # boto3 comes with an extra that who only maps does not need
            from crossearth.data.tiles.store import download

            download(source, cached)
        return cached
    path = Path(source)
    if path.is_file():
        return path
    if "/" in source or path.suffix in (".pth", ".pt", ".safetensors"):
        raise InputError(
            "no such backbone",
            where=source,
            expected=f"a file, an address s3://bucket/key, or a name of timm's hub such as {HUB_NAME}",
        )
    return _fetch_from_hub(source)


def _fetch_from_hub(name: str) -> Path:
    if name not in published_names():
        raise InputError(
            f"timm publishes no weights {name!r} of a plain ViT",
            where="backbone",
            expected=nearest(name, published_names()),
            next_step="name one of them, or a file",
        )
    try:
        path = Path(hf_hub_download(f"timm/{name}", "model.safetensors"))
        hf_hub_download(f"timm/{name}", "config.json")  # beside it: what the weights expect of an image
        return path
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(
            f"cannot fetch the backbone {name!r}: {str(error).splitlines()[0]}",
            where=f"{HUB}/timm/{name}",
            next_step=f"where there is a network, fetch {HUB}/timm/{name}/resolve/main/model.safetensors, "
            f"call it {name}.safetensors, and give it as --backbone, or as `backbone` in params.yaml",
        ) from error
