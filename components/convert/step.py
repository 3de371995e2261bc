"""Turns a released checkpoint and its backbone into a model folder."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from crossearth.data.catalog.domains import ClassSet
from crossearth.data.common.config import checked
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import read_json, sha256_file
from crossearth.model.crossearth import CrossEarth, large_config
from crossearth.model.layers.backbone import published
from crossearth.model.weights.checkpoint import META_NAME, save
from crossearth.model.weights.pretrained import UNKNOWN_LICENCE
from crossearth.model.weights.release import (
    Released,
    fetch_backbone,
    image_px_of,
    load_released,
    read_backbone,
    read_released,
)

BACKBONE_CACHE = Path("artifacts/backbones")  # files from S3
PATCH_PX = 16
PAPER_IMAGE_PX = 512
LONGEST_WORD = 200


@checked
class ConvertConfig:
    """How a released checkpoint is converted.

    Attributes:
        backbone: file, s3:// address or timm's hub name of the frozen backbone; patch 16 as the authors
            converted it, or DINOv2's own patch 14, which is resampled.
        image_px: side of the windows that the model was trained on; None = what the position grid of a
            patch-16 backbone says, and 512 for any other.
        backbones_dir: store the backbone there, once for all models, instead of inside the model's file.
    """

    backbone: str
    image_px: Annotated[int, Field(ge=PATCH_PX, multiple_of=PATCH_PX)] | None = None
    backbones_dir: Path | None = None


def convert(released: Path, out_dir: Path, config: ConvertConfig, class_set: ClassSet | None = None) -> Path:
    """Writes `out_dir/model.safetensors` and `out_dir/model.json`.

    Args:
        released: the authors' checkpoint, an mmengine pickle; nothing in it is run.
        class_set: names and colours of the classes; None = what the checkpoint says of itself.

    Returns:
        `out_dir`.

    Raises:
        InputError: another model than a converted one in `out_dir`; a file that is none of these; a parameter
            that is missing, superfluous or of another shape (named); classes that are not known, or not as
            many as the head's.
    """
    _refuse_trained(out_dir)
    checkpoint = read_released(released)
    classes, palette = _classes(checkpoint, class_set)
    backbone_path = fetch_backbone(config.backbone, BACKBONE_CACHE)
    backbone = read_backbone(backbone_path)
    network = large_config(
        checkpoint.num_classes, config.image_px or image_px_of(backbone, PATCH_PX) or PAPER_IMAGE_PX
    )
    model = CrossEarth(network)
    load_released(model, checkpoint, backbone, backbone_path)
    origin = {
        "file": Path(released).name,
        "sha256": checkpoint.sha256,
        "under": checkpoint.under,
        "says": {key: value for key, value in checkpoint.meta.items() if _is_short(value)},
        "backbone": {
            "source": backbone_path.name if Path(config.backbone) == backbone_path else config.backbone,
            "sha256": sha256_file(backbone_path),
            "licence": ((known := published(config.backbone)) and known.licence) or UNKNOWN_LICENCE,
        },
        "training_only": sorted(checkpoint.training),
    }
    # the authors trained on the published data sets
    meta = {"classes": classes, "palette": palette, "provenance": "publisher", "released": origin}
    return save(model, out_dir, meta, config.backbones_dir)


def _refuse_trained(out_dir: Path) -> None:
    description = Path(out_dir) / META_NAME
    if description.is_file() and "released" not in read_json(description):
        raise InputError(
            "a model of another origin is here", where=out_dir, next_step="give another folder with --out"
        )


def _is_short(value: Any) -> bool:
    """Not the whole configuration text, say."""
    return not isinstance(value, dict | list) and len(str(value)) <= LONGEST_WORD


def _classes(checkpoint: Released, class_set: ClassSet | None) -> tuple[list[str], list[str]]:
    if class_set is not None:
        names, colours = list(class_set.classes), list(class_set.palette)
        origin = f"class set {class_set.name}"
    else:
        names, colours = _own_words(checkpoint.meta)
        origin = "its own description"
    if not len(names) == len(colours) == checkpoint.num_classes:
        raise InputError(
            f"its head has {checkpoint.num_classes} classes; {origin} has {len(names)} names "
            f"and {len(colours)} colours",
            where=checkpoint.path,
            next_step="give the class set that the model was trained on with --class-set",
        )
    return names, colours


def _own_words(meta: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names and colours of the classes as a checkpoint gives them; empty where it does not."""
    about: Any = meta.get("dataset_meta")
    try:
        names = [str(name) for name in about["classes"]]
        return names, [f"#{bytes(colour).hex()}" for colour in about["palette"]]
    except (KeyError, TypeError, ValueError):
        return [], []
