"""The same work by other libraries: mapping a scene, reading a publisher's scene, counting pixels.

They want environments of their own, on Python 3.11 or later: TerraTorch imports all of mmseg that it finds,
which needs mmcv's compiled part. For scenes and crops, then for counting:

    python -m venv peers && peers/bin/pip install -e . terratorch
    peers/bin/python tests/benchmarks/run.py peers

    python -m venv mmseg && mmseg/bin/pip install -e . mmsegmentation mmengine 'mmcv-lite<2.2' ftfy regex
    mmseg/bin/python tests/benchmarks/run.py "peers: confusion"

All map with one network in one precision, the same windows and stride, from a file to a file of class ids.
TerraTorch holds the scene and all windows' scores in memory and blends; torchgeo's sampler blends nothing, so
that the last chip wins; `predict` blends too, writes a tiled GeoTIFF with overviews and a preview, and lays
windows half their overlap beyond the scene's border. Loading the network counts for `predict` alone.
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import rasterio
import torch
from bench_counting import CLASSES, PAIRS, maps
from bench_counting import ours as counting
from bench_ingest import TILE_PX, potsdam
from bench_ingest import ours as ingesting
from bench_network import large_model, wide_stride
from bench_predict import small_windows, tiny_model, write_scene
from harness import Action, Case, Form, scratch
from numpy.typing import NDArray
from torch import Tensor

from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.components.predict.config import PredictConfig
from crossearth.components.predict.sliding import Precision, load_network, window_scores
from crossearth.components.predict.step import predict
from crossearth.data.catalog.labels import IGNORE
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.tiles import dataset
from crossearth.data.tiles.augment import Augmentation
from crossearth.data.tiles.manifest import read_manifest

Model = Callable[[], Path]


def write_map(ids_HW: NDArray[np.uint8], scene: Path, out: Path) -> None:
    with rasterio.open(scene) as source:
        profile = source.profile | {"count": 1, "dtype": "uint8", "compress": "lzw"}
    with rasterio.open(out, "w", **profile) as file:
        file.write(ids_HW, 1)


def terratorch(size_px: int, model: Model, windows: int, precision: Precision) -> Action:
    tiled_inference = import_module("terratorch.tasks.tiled_inference").tiled_inference
    scene, loaded = write_scene(size_px), load_network(model(), precision)
    config = loaded.network.config

    def run() -> None:
        with rasterio.open(scene) as file:
            x_13HW = torch.from_numpy(file.read()).float()[None]
        scores = tiled_inference(
            partial(window_scores, loaded),
            x_13HW,
            crop=config.crop_px,
            stride=config.stride_px,
            batch_size=windows,
        )
        write_map(scores[0].argmax(0).numpy().astype(np.uint8), scene, scratch("terratorch.tif"))

    return run


def torchgeo(size_px: int, model: Model, precision: Precision) -> Action:
    geo, samplers = import_module("torchgeo.datasets"), import_module("torchgeo.samplers")
    scene, loaded = write_scene(size_px), load_network(model(), precision)
    config = loaded.network.config

    def run() -> None:
        rasters = geo.RasterDataset(scene)
        sampler = samplers.GridGeoSampler(rasters, config.crop_px, config.stride_px)
        loader: Any = torch.utils.data.DataLoader(
            rasters, loaded.batch_size, sampler=sampler, collate_fn=geo.stack_samples
        )
        ids_HW = np.zeros((size_px, size_px), np.uint8)
        with rasterio.open(scene) as file:
            place = ~file.transform
        for batch in loader:
            found = window_scores(loaded, batch["image"]).argmax(1).numpy().astype(np.uint8)
            for bounds, chip in zip(batch["bounds"], found, strict=True):
                left, top = (round(value) for value in place * _corner(bounds))
                seen = ids_HW[top : top + config.crop_px, left : left + config.crop_px]
                seen[:] = chip[: seen.shape[0], : seen.shape[1]]
        write_map(ids_HW, scene, scratch("torchgeo.tif"))

    return run


def _corner(bounds: Any) -> tuple[float, float]:
    """Left and upper side of a chip."""
    across, down, _ = bounds
    return across.start, down.stop


def ours(size_px: int, model: Model, precision: Precision) -> Action:
    scene, config = write_scene(size_px), PredictConfig(precision=precision, device="cpu")
    return lambda: predict([scene], model(), scratch("ours.tif"), config)


def agreement(results: Mapping[str, object]) -> str:
    """Share of the pixels that two maps name alike."""
    found = {}
    for form, name in (("TerraTorch", "terratorch"), ("torchgeo", "torchgeo"), ("predict", "ours")):
        if form in results:
            with rasterio.open(scratch(f"{name}.tif")) as file:
                found[form] = file.read(1)
    same = {form: np.mean(ids == found["predict"]) for form, ids in found.items() if form != "predict"}
    return "px as predict has them: " + ", ".join(f"{form} {share:.1%}" for form, share in same.items())


def in_their_layout() -> Path:
    """The scene of bench_ingest.py, as torchgeo looks for Potsdam's."""
    folder = scratch("potsdam-torchgeo")
    if not folder.exists():
        (folder / "4_Ortho_RGBIR").mkdir(parents=True)
        scene = potsdam()
        name = "top_potsdam_2_10"
        (folder / "4_Ortho_RGBIR" / f"{name}_RGBIR.tif").symlink_to(scene / "images" / "2_10.tif")
        (folder / f"{name}_label.tif").symlink_to(scene / "masks" / "2_10.tif")
    return folder


def their_scene() -> Action:
    """A whole scene, as each item of torchgeo's data set is, in every epoch."""
    scenes = import_module("torchgeo.datasets").Potsdam2D(in_their_layout())
    return lambda: scenes[0]


def their_crop() -> Action:
    """A crop of the data module's training: the scene is read, then cut."""
    modules = import_module("torchgeo.datamodules")
    module = modules.Potsdam2DDataModule(batch_size=1, patch_size=TILE_PX, root=in_their_layout())
    module.setup("fit")

    def run() -> Tensor:
        sample = module.train_dataset[0]
        cut = module.train_aug({"image": sample["image"][None], "mask": sample["mask"][None, None].float()})
        return torch.as_tensor(cut["image"])

    return run


def our_crop() -> Action:
    """A crop of the tiles of that scene, augmented; none is held in memory."""
    folder = potsdam()
    catalog = load_catalog([folder / "catalog.yaml"], folder)
    (tiles,) = ingest(["scene"], catalog, folder, scratch("potsdam-tiles"), IngestConfig(workers=1))
    with patch.object(dataset, "HELD_BYTES", 0):
        source = dataset.TileDataset(read_manifest(tiles, "train"), range(CLASSES))
    stream, positions = dataset.TrainingStream(source, Augmentation(TILE_PX), seed=0), count()
    return lambda: stream[next(positions)]


def torchmetrics(kind: str) -> Action:
    predicted, label = maps(kind)
    counted = import_module("torchmetrics.functional.classification").multiclass_confusion_matrix

    def count() -> list[Tensor]:
        return [counted(predicted, label.long(), CLASSES, ignore_index=IGNORE) for _ in range(PAIRS)]

    return count


def mmseg(kind: str) -> Action:
    predicted, label = maps(kind)
    counted = import_module("mmseg.evaluation.metrics").IoUMetric.intersect_and_union
    return lambda: [counted(predicted, label, CLASSES, IGNORE) for _ in range(PAIRS)]


def mapped(size_px: int, model: Model, windows: int = 16, precision: Precision = "float32") -> Case:
    forms = {
        "TerraTorch": Form(lambda: terratorch(size_px, model, windows, precision)),
        "torchgeo": Form(lambda: torchgeo(size_px, model, precision)),
        "predict": Form(lambda: ours(size_px, model, precision)),
    }
    return Case(forms, "scene", 1, agreement, needs=("terratorch", "torchgeo"))


def counted(kind: str) -> Case:
    forms = {
        "torchmetrics": Form(lambda: torchmetrics(kind), PAIRS),
        "mmseg": Form(lambda: mmseg(kind), PAIRS),
        "here": Form(lambda: counting(kind), PAIRS),
    }
    return Case(forms, "pair", 9, needs=("mmseg", "torchmetrics"))


CASES = {
    "peers: scene of 6000 px, tiny": mapped(6000, tiny_model),
    "peers: scene of 3000 px, tiny, windows of 128 px": mapped(3000, small_windows),
    "peers: scene of 682 px, ViT-L": mapped(682, large_model, windows=1),
    # 196 windows: at the usual stride it is 306, and half an hour each
    "peers: scene of 6000 px, ViT-L, bfloat16, stride 448 px": mapped(
        6000, wide_stride, windows=1, precision="bfloat16"
    ),
    "peers: a Potsdam scene": Case(
        {"torchgeo, read": Form(their_scene), "ingest, 144 tiles written": Form(ingesting)},
        "scene",
        3,
        needs=("torchgeo",),
    ),
    "peers: a crop of a Potsdam scene": Case(
        {"torchgeo's data module": Form(their_crop), "here": Form(our_crop)}, "crop", 3, needs=("torchgeo",)
    ),
} | {f"peers: confusion matrix, {kind}": counted(kind) for kind in ("random", "blocks")}
