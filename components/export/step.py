"""A trained model as one file that programs without this package run: ONNX, or a graph of torch (pt2)."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from crossearth.components.export.description import MLM_KEY, Exported, deepness_metadata, mlm_metadata
from crossearth.components.export.network import WindowClassifier, trace
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.config import checked
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_path
from crossearth.model.weights.checkpoint import load, read_meta, trained_gsd_m, trained_reading

OPSET = 18  # of 2022: what QGIS installations have reads it
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# another library sums in another order: near a tie a pixel may get another class
LEAST_EQUAL, NEAR = 0.99, 0.01
# what the extension takes for a name
NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]+[a-zA-Z0-9]")

Images = NDArray[np.float32]


@checked
class ExportConfig:
    """How a model is exported.

    Attributes:
        format: "onnx", or "pt2" for `torch.export.load`.
        backbone: file of the model's shared backbone where it was moved.
    """

    format: Literal["onnx", "pt2"]
    backbone: Path | None = None


def export(model: Path, name: str, out: Path, config: ExportConfig, catalog: Catalog) -> Path:
    """Writes the network as one file, with what it wants and gives in the file's metadata.

    The graph takes `image`, float32 (B, 3, S, S), S = the window of the training, 0..1 where 0 and 1 are the
    ends of the values that the training's files had (0 and 255 of 8 bits), and gives `probabilities`,
    float32 (B, K, S, S), whose sum over the classes is 1. Normalisation is in the graph; its sampling of
    features is made of gathers, as some runtimes compile GridSample wrongly without a word. The file is run
    once, and does not appear unless it gives at least 99 % of a test picture's pixels the class that the
    model gives them, and each class's probability to 0.01.

    Args:
        model: a model folder or file, see `checkpoint.load`.
        name: of the model, for the metadata.
        catalog: has the names of the bands of the model's source.

    Returns:
        `out`.

    Raises:
        InputError: whatever `checkpoint.load` refuses; a package is missing that writes ONNX; `out` is a
            folder.
    """
    if out.is_dir():
        raise InputError("a folder", where=f"--out {out}", expected="the name of the file to write")
    if config.format == "onnx":
        _refuse_missing_packages()
    meta = read_meta(model)
    network = load(model, backbone=config.backbone)
    source = catalog.domains.get(meta.get("source", ""))
    window = WindowClassifier(network)
    exported = Exported(
        name=_plain_name(name),
        classes=meta["classes"],
        palette=meta["palette"],
        bands=source.bands if source else (),
        reading=trained_reading(meta),
        gsd_m=trained_gsd_m(meta, source),
        network=network.config,
        num_parameters=sum(each.numel() for each in window.parameters()),
    )
    with atomic_path(out) as partial:
        with _quiet():
            run = (_write_onnx if config.format == "onnx" else _write_pt2)(trace(window), partial, exported)
        _refuse_differing(run, window, out)
    return out


def _plain_name(name: str) -> str:
    """The name in letters and digits, from a letter on, as the extension wants it."""
    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-_.")
    return plain if NAME.fullmatch(plain) else f"model-{plain}".strip("-")


def _refuse_missing_packages() -> None:
    missing = [package for package in ONNX_PACKAGES if find_spec(package) is None]
    if missing:
        raise InputError(
            f"ONNX is written by packages that are not installed: {', '.join(missing)}",
            where="--format onnx",
            expected="the extra `export`",
            next_step="pip install 'crossearth[export]', or choose --format pt2",
        )


def _write_onnx(program: ExportedProgram, path: Path, exported: Exported) -> Callable[[Images], Images]:
    import onnxruntime

    converted = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["probabilities"],
        external_data=False,
        verbose=False,
    )
    if converted is None:
        raise RuntimeError("torch gave no ONNX program")
    converted.model.producer_name = "crossearth"
    converted.model.metadata_props.update(
        {MLM_KEY: mlm_metadata(exported, "onnx"), **deepness_metadata(exported)}
    )
    converted.save(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"image": images})[0]


def _write_pt2(program: ExportedProgram, path: Path, exported: Exported) -> Callable[[Images], Images]:
    # torch wants its own ending; a stream has no name
    with path.open("wb") as stream:
        torch.export.save(program, stream, extra_files={MLM_KEY: mlm_metadata(exported, "torch.export.save")})
    with path.open("rb") as stream:
        module = torch.export.load(stream).module()
    return lambda images: module(torch.from_numpy(images)).numpy()


def _refuse_differing(run: Callable[[Images], Images], window: WindowClassifier, out: Path) -> None:
    side = window.network.config.crop_px
    # blocks of colours: noise would be near a tie everywhere
    blocks = np.random.default_rng(0).random((1, 3, -(-side // 32), -(-side // 32)), np.float32)
    images = blocks.repeat(32, 2).repeat(32, 3)[:, :, :side, :side]
    with torch.inference_mode():
        expected = window(torch.from_numpy(images)).numpy()
    found = run(images)
    # the classes alone would say nothing of a model that knows one class here
    same = (found.argmax(1) == expected.argmax(1)) & (np.abs(found - expected).max(1) <= NEAR)
    if same.mean() < LEAST_EQUAL:
        raise RuntimeError(
            f"{out}: only {same.mean():.1%} of a test picture's pixels get the class and the probabilities "
            "that the model gives them"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk of their own inner workings."""
    log = logging.getLogger("onnxscript")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
