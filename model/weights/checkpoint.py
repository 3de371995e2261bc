"""Trained models on disk: one safetensors file, and one JSON beside it that says what it is.

A frozen backbone may stand apart: then `model.safetensors` holds the trained part alone, `model.json` names
the backbone by the hash of its tensors, and all models of one backbone share one file,
`<backbones_dir>/<hash>.safetensors`. LoRA's branches become one with the weights when a model is loaded.
"""

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from crossearth.data.catalog.domains import Domain
from crossearth.data.common.config import checked, load_config
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_path, read_json, sha256_file, verified, write_checksummed
from crossearth.data.common.finite import misfits, refuse_nonfinite
from crossearth.data.raster.reading import Reading
from crossearth.data.tiles.manifest import Provenance
from crossearth.model.crossearth import CrossEarth, NetworkConfig
from crossearth.model.inference import store_weights

FORMAT = 2
WEIGHTS_NAME = "model.safetensors"
META_NAME = "model.json"
REFERENCE_NAME = "reference.json"  # what it has seen, for `watch`; a converted model has none
BACKBONE = "backbone."
# with their outputs that are no classes
CLASS_HEADS = (("mask_decoder.head.classes.weight", 1), ("linear.weight", 0))
# the only parts that a file may lack: they take no part in inference
MASKED_MODELLING = ("image_token", "reconstruction.")
INJECTION = ("gse.", "injector.")
MADE_ANEW = "they were not finite when the file was written: train the model again, or take another file"


@checked
class SharedBackbone:
    """A backbone that stands apart: the hash of its tensors, and its file as seen from the model's folder."""

    digest: str
    file: str


@checked
class Description:
    """What a model.json must say, and may say; it may hold more.

    Attributes:
        reading: how the files that it was trained on were read, as their manifest has it; None = unknown, as
            converted models have it.
    """

    classes: tuple[str, ...]
    palette: tuple[Annotated[str, Field(pattern="^#[0-9a-fA-F]{6}$")], ...]
    provenance: Provenance
    sha256: str
    backbone: SharedBackbone | None
    reading: Reading | None = None


def save(model: CrossEarth, folder: Path, meta: Mapping[str, Any], backbones_dir: Path | None = None) -> Path:
    """Writes `folder/model.safetensors` and `folder/model.json`, atomically, weights first.

    Args:
        model: the network; its state is stored in its own dtypes.
        folder: made if absent.
        meta: JSON-serialisable description. Needs `classes` (names in id order), `palette` ("#rrggbb" each)
            and `provenance` (of the data that it was trained on, a manifest's word); further keys are kept.
            With `reading` (see `Description`) `predict` reads scenes as the training did.
        backbones_dir: where the backbone is stored once for all models; None = inside the model's file.

    Returns:
        `folder`.

    Raises:
        InputError: a weight is not finite.
    """
    folder = Path(folder)
    config = model.config
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    refuse_nonfinite(state.items(), folder, "nothing was written; make the model again")
    backbone = None
    if backbones_dir is not None:
        frozen = {name: state.pop(name) for name in list(state) if name.startswith(BACKBONE)}
        backbone = _store_backbone(frozen, Path(backbones_dir), folder)
    write_state(folder / WEIGHTS_NAME, state)
    write_checksummed(
        folder / META_NAME,
        {
            **meta,
            "format": FORMAT,
            "network": asdict(config),
            "normalisation": {"mean": list(config.mean), "std": list(config.std), "input": "RGB, 0..255"},
            "sha256": sha256_file(folder / WEIGHTS_NAME),
            "backbone": backbone,
        },
    )
    return folder


def _store_backbone(state: dict[str, Tensor], backbones_dir: Path, folder: Path) -> dict[str, str]:
    digest = state_digest(state)
    path = backbones_dir / f"{digest}.safetensors"
    if not path.exists():
        write_state(path, state)
    return {"digest": digest, "file": os.path.relpath(path.resolve(), folder.resolve())}


def load(
    path: Path, device: str = "cpu", backbone: Path | None = None, dtype: torch.dtype = torch.float32
) -> CrossEarth:
    """Builds the network that `path` describes and loads its weights strictly, in evaluation mode.

    Args:
        path: a model folder, or its safetensors or JSON file.
        device: torch device.
        backbone: the shared backbone's file where it is no longer where the model was saved with it.
        dtype: of the weights of linear maps and convolutions, see `store_weights`; others stay float32. Each
            is rounded as it is read: the float32 network is never whole in memory, but with LoRA, whose
            branches are added first.

    Raises:
        InputError: not a model; a damaged file; a missing, superfluous or wrongly shaped parameter, or one
            that is not finite (named); another class count; a backbone that is absent or has another hash.
    """
    weights, description = _files(path)
    meta = read_meta(path)
    if sha256_file(weights) != meta["sha256"]:
        raise InputError(
            f"its sha256 is not the one in {description.name}",
            where=weights,
            expected=meta["sha256"],
            next_step="the file was changed or copied in part: copy the model again",
        )
    config = load_config(NetworkConfig, meta["network"], f"{description}: network")
    for key in ("classes", "palette"):
        if len(meta[key]) != config.num_classes:
            raise InputError(
                f"{key}: {meta[key]!r}",
                where=description,
                expected=f"{config.num_classes}, one of each of the network's classes",
            )
    if meta["backbone"] is None and backbone is not None:
        raise InputError("the model has no shared backbone: its own file holds it", where=path)
    first = torch.float32 if config.adapter == "lora" else dtype
    with torch.device("meta"):  # no memory and no time for random weights that the file's replace
        model = CrossEarth(config)
    store_weights(model, first)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    state = {name: tensor.to(dtypes.get(name)) for name, tensor in read_tensors(weights)}
    if meta["backbone"] is not None:
        state |= _read_backbone(meta["backbone"], weights.parent, backbone, dtypes)
    load_strictly(model, state, weights, assign=True)
    if dtypes.keys() - state.keys():
        model = CrossEarth(config)
        store_weights(model, first)
        load_strictly(model, state, weights, assign=True)
    model.merge_adapter()
    store_weights(model, dtype)
    return model.eval().to(device)


def read_meta(path: Path) -> dict[str, Any]:
    """The description of a model: classes, palette, network, normalisation, provenance, sha256, backbone.

    Raises:
        InputError: `path` is not a model, of a format that this version does not know, was changed, or says
            something of another type.
    """
    _, description = _files(path)
    meta = read_json(description)
    needed = {"format", "classes", "palette", "network", "sha256", "backbone", "provenance"}
    if not needed <= meta.keys():
        raise InputError(
            "not the description of a model", where=description, expected=f"keys {sorted(needed)}"
        )
    if meta["format"] != FORMAT:
        raise InputError(
            f"format {meta['format']}",
            where=description,
            expected=f"format {FORMAT}",
            next_step="use the version of crossearth that wrote it, or convert the model again",
        )
    meta = verified(meta, description)
    load_config(Description, {each.name: meta.get(each.name) for each in fields(Description)}, description)
    return meta


def trained_reading(meta: Mapping[str, Any]) -> Reading | None:
    """How the files were read that a model of this description was trained on; None = unknown."""
    found = meta.get("reading")
    return found and load_config(Reading, found, "the model's reading")


def trained_gsd_m(meta: Mapping[str, Any], source: Domain | None) -> float | None:
    """Metres per px that a model was trained on; None = unknown or mixed.

    Args:
        source: the domain that it was trained on, where the catalog knows it: models of old do not say.
    """
    reading = trained_reading(meta)
    return (reading and reading.gsd_m) or (source and source.gsd_m) or None


def _files(path: Path) -> tuple[Path, Path]:
    path = Path(path)
    weights = path / WEIGHTS_NAME if path.is_dir() else path.with_suffix(".safetensors")
    description = weights.with_suffix(".json")
    if (path.is_file() and path.suffix not in (".safetensors", ".json")) or not path.exists():
        raise InputError(
            "not a model" if path.exists() else "no such model",
            where=path,
            expected=f"a folder with {WEIGHTS_NAME} and {META_NAME}",
            next_step="released .pth files become models with `crossearth convert`",
        )
    for file in (weights, description):
        if not file.is_file():
            raise InputError(
                f"not a model: {file.name} is missing",
                where=path,
                next_step="train or convert the model, or copy it again",
            )
    return weights, description


def _read_backbone(
    record: Mapping[str, str], folder: Path, given: Path | None, dtypes: Mapping[str, torch.dtype]
) -> dict[str, Tensor]:
    path = Path(given) if given is not None else folder / record["file"]
    if not path.is_file():
        raise InputError(
            "the model's shared backbone is not there",
            where=path,
            expected=f"the backbone whose digest is {record['digest']}",
            next_step="copy it there, or name the file with --backbone",
        )
    total, state = hashlib.sha256(), {}
    for name, tensor in read_tensors(path):
        _add_to_digest(total, name, tensor)
        state[name] = tensor.to(dtypes.get(name))
    digest = total.hexdigest()
    if digest != record["digest"]:
        raise InputError(
            f"another backbone: its digest is {digest}",
            where=path,
            expected=record["digest"],
            next_step="name the backbone that the model was trained on",
        )
    refuse_nonfinite(state.items(), path, MADE_ANEW)
    return state


def load_strictly(
    model: CrossEarth, state: Mapping[str, Tensor], where: object, assign: bool = False
) -> None:
    """Loads `state` into `model`; only whole parts that inference does not use may be missing.

    Args:
        where: the file, for messages.
        assign: the tensors of `state` become the parameters instead of being copied into them.

    Raises:
        InputError: names every parameter that is missing, superfluous, of another shape or not finite.
    """
    expected = model.state_dict()
    unused = MASKED_MODELLING if model.config.inject_at_inference else (*MASKED_MODELLING, *INJECTION)
    needed = {name: value for name, value in expected.items() if name in state or not name.startswith(unused)}
    for head, others in CLASS_HEADS:
        if head in state and len(state[head]) - others != model.config.num_classes:
            raise InputError(
                f"a head of {len(state[head]) - others} classes",
                where=where,
                expected=f"{model.config.num_classes}",
            )
    if problems := misfits(state, needed):
        raise InputError(f"the weights do not fit the network; {problems}", where=where)
    refuse_nonfinite(state.items(), where, MADE_ANEW)
    given = {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}
    model.load_state_dict(given, strict=False, assign=assign)


def write_state(path: Path, state: Mapping[str, Tensor]) -> None:
    """Writes tensors as safetensors, atomically; equal tensors give equal bytes."""
    with atomic_path(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(dict(state), partial)
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error
        partial.chmod(mode)  # safetensors hides its files from everyone else, on shared disks too


def read_tensors(path: Path, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors (CPU, the file's dtypes) of a safetensors file, by name, one in memory at a time.

    Args:
        shapes_only: reads the file's header alone: float32 tensors of these shapes on the device "meta".

    Raises:
        InputError: it is not one, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
        for name, shape in shapes.items():
            if shapes_only:
                yield name, torch.empty(shape, device="meta")
                continue
            # opened for every tensor: the pages of one mapping would all stay in memory beside the copies
            with safe_open(path, framework="pt") as file:
                tensor = file.get_tensor(name).clone()
            yield name, tensor
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"not a readable safetensors file ({error})", where=path, next_step="copy or convert it again"
        ) from error


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of names, dtypes, shapes and numbers: says which weights these are, in whatever file."""
    total = hashlib.sha256()
    for name in sorted(state):
        _add_to_digest(total, name, state[name])
    return total.hexdigest()


def _add_to_digest(total: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    tensor = tensor.detach().cpu().contiguous()
    total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
