"""From files that others published to the network's state: released checkpoints and DINOv2 backbones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor

from crossearth.data.errors import InputError
from crossearth.data.files import sha256_file
from crossearth.data.store import download
from crossearth.model.backbone import fit_state
from crossearth.model.checkpoint import load_strictly, read_tensors
from crossearth.model.crossearth import CrossEarth
from crossearth.model.names import to_ours
from crossearth.model.pickles import StoredTensor, TorchFile

HUB = "https://huggingface.co"
HUB_NAME = "vit_large_patch14_dinov2.lvd142m"
# inference calls the backbone and the head, without the extractor inside the former; all else is training's
INFERENCE_MODULES = ("backbone.", "decode_head.")
TRAINING_MODULES = ("backbone.reins.high_extractor.",)
CLASS_HEAD = "decode_head.cls_embed.weight"
POSITIONS, PATCH_KERNEL = "pos_embed", "patch_embed.proj.weight"


@dataclass(frozen=True)
class Released:
    """A released checkpoint.

    Attributes:
        path: of the file.
        state: parameters of backbone and head under their released names, float32.
        training: parameters of modules that only training uses, under their released names.
        meta: what the file says of itself, plain values only: classes, palette, iteration, versions.
        sha256: of the file.
    """

    path: Path
    state: dict[str, Tensor]
    training: dict[str, Tensor]
    meta: dict[str, Any]
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
    file = TorchFile(path)
    tensors = _named_tensors(file)
    if CLASS_HEAD not in tensors:
        raise InputError(
            f"no {CLASS_HEAD} among its {len(tensors)} parameters",
            where=path,
            expected="a released checkpoint with backbone.reins.* and decode_head.*",
            next_step="a backbone alone is given as --backbone",
        )
    inference = {
        name
        for name in tensors
        if name.startswith(INFERENCE_MODULES) and not name.startswith(TRAINING_MODULES)
    }
    return Released(
        path=Path(path),
        state={name: file.tensor(tensors[name]).float() for name in sorted(inference)},
        training={name: file.tensor(tensors[name]) for name in sorted(tensors.keys() - inference)},
        meta=_plain(meta) if isinstance(meta := file.root.get("meta"), dict) else {},
        sha256=sha256_file(path),
    )


def _named_tensors(file: TorchFile) -> dict[str, StoredTensor]:
    """The state dict of a file: its `state_dict` or `model`, or the whole file."""
    root = file.root
    if isinstance(root, dict):
        root = next((root[key] for key in ("state_dict", "model") if isinstance(root.get(key), dict)), root)
        tensors = {name: value for name, value in root.items() if isinstance(value, StoredTensor)}
        if tensors and all(isinstance(name, str) for name in tensors):
            return tensors
    raise InputError(
        "no parameters in it", where=file.path, expected="a state dict, or one under the key state_dict"
    )


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


def read_backbone(path: Path) -> dict[str, Tensor]:
    """Reads a vision transformer under timm's names (which are DINOv2's).

    Knows safetensors files (timm's, or a shared backbone of ours) and files of torch.save (DINOv2's own, the
    authors' converted one, or a whole checkpoint that holds a backbone).

    Raises:
        InputError: none of these, or no backbone in it.
    """
    if path.suffix == ".safetensors":
        state = dict(read_tensors(path))
    else:
        file = TorchFile(path)
        state = {name: file.tensor(tensor) for name, tensor in _named_tensors(file).items()}
    if any(name.startswith("backbone.") for name in state):
        state = {
            name.removeprefix("backbone.").removeprefix("vit."): tensor
            for name, tensor in state.items()
            if name.startswith("backbone.") and not name.startswith("backbone.reins.")
        }
    if not {POSITIONS, PATCH_KERNEL} <= state.keys():
        raise InputError(
            f"no vision transformer in it: {POSITIONS} or {PATCH_KERNEL} is missing",
            where=path,
            expected="DINOv2 weights, as the authors converted them, as timm or as DINOv2 ships them",
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
    try:
        return Path(hf_hub_download(f"timm/{name}", "model.safetensors"))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(
            f"cannot fetch the backbone {name!r}: {str(error).splitlines()[0]}",
            where=f"{HUB}/timm/{name}",
            next_step=f"where there is a network, fetch {HUB}/timm/{name}/resolve/main/model.safetensors "
            "and give that file as --backbone",
        ) from error
