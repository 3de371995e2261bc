"""Mapping of one scene, beside the network alone on as many ready windows. Random weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from bench_network import ABOUT, NUM_CLASSES, large_model
from harness import Action, Case, Form, scratch
from rasterio.transform import Affine
from rasterio.windows import Window
from torch import Tensor, nn

from crossearth.components.predict.config import PredictConfig
from crossearth.components.predict.sliding import Loaded, load_network, plan, window_scores
from crossearth.components.predict.step import predict
from crossearth.components.predict.strips import open_scene
from crossearth.model.crossearth import NetworkConfig, crossearth_tiny
from crossearth.model.weights.checkpoint import save

CROP_PX = 256
SPECKLE = 0.1  # gives some 4000 polygons a megapixel, fifty times as many as models of the road sets
PART = 0.05


def write_scene(size_px: int) -> Path:
    """A striped RGB scene of smooth noise, written a few rows at a time."""
    path = scratch(f"scene-{size_px}.tif")
    if path.exists():
        return path
    generator = np.random.default_rng(0)
    size = {"width": size_px, "height": size_px, "count": 3, "dtype": "uint8"}
    place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 4e5, 0, -0.5, 5e6)}
    with rasterio.open(path, "w", driver="GTiff", compress="zstd", **size, **place) as scene:
        for top in range(0, size_px, 64):
            cells = generator.integers(0, 248, (3, 2, size_px // 32 + 1), dtype=np.uint8)
            rows = cells.repeat(32, axis=1).repeat(32, axis=2)[:, : min(64, size_px - top), :size_px]
            noise = generator.integers(0, 8, rows.shape, dtype=np.uint8)
            scene.write(rows + noise, window=Window(0, top, size_px, rows.shape[1]))
    return path


def tiny_model() -> Path:
    """Folder of a tiny network with random weights."""
    folder = scratch("tiny")
    return folder if folder.exists() else save(crossearth_tiny(NUM_CLASSES, CROP_PX), folder, ABOUT)


def small_windows() -> Path:
    """The tiny network with windows of 128 px, as the demonstration has it."""
    folder = scratch("tiny-128")
    return folder if folder.exists() else save(crossearth_tiny(NUM_CLASSES, 128), folder, ABOUT)


def network_alone(size_px: int, model: Callable[[], Path], share: float = 1) -> Action:
    """share: of the scene's windows that are computed."""
    loaded = load_network(model())
    config, batch = loaded.network.config, loaded.batch_size
    number = round(share * plan(open_scene(write_scene(size_px)), config, batch).num_windows)
    windows_B3HW = torch.randint(0, 256, (batch, 3, config.crop_px, config.crop_px), dtype=torch.uint8)

    def run() -> None:
        for first in range(0, number, batch):
            window_scores(loaded, windows_B3HW[: number - first])

    return run


def mapping(size_px: int, model: Callable[[], Path] = tiny_model, **options: Any) -> Action:
    scene, folder, config = write_scene(size_px), model(), PredictConfig(**options)
    return lambda: predict([scene], folder, scratch(f"map-{size_px}.tif"), config)


def case(size_px: int, model: Callable[[], Path]) -> Case:
    forms = {
        "network alone": Form(lambda: network_alone(size_px, model)),
        "predict": Form(lambda: mapping(size_px, model)),
        "predict, with polygons": Form(lambda: mapping(size_px, model, vector=Path(".gpkg"))),
    }
    return Case(forms, "scene", rounds=3)


class Constant(nn.Module):
    """A network that costs nothing: what remains is what a scene takes.

    speckle: how far scores scatter from px to px; 0 = maps of a few large regions.
    """

    def __init__(self, config: NetworkConfig, batch_size: int, speckle: float) -> None:
        super().__init__()
        self.config, self.weight = config, nn.Parameter(torch.zeros(1))
        torch.manual_seed(0)
        coarse_BK44 = torch.rand(batch_size, config.num_classes, 4, 4)
        self.scores_BKHW = nn.functional.interpolate(coarse_BK44, size=config.crop_px, mode="bilinear")
        noise_BKHW = nn.functional.avg_pool2d(torch.rand_like(self.scores_BKHW), 3, 1, 1)
        self.scores_BKHW += speckle * noise_BKHW

    def forward(self, windows_B3HW: Tensor) -> Tensor:
        return self.scores_BKHW[: len(windows_B3HW)]


def cheap(model: Path, speckle: float = 0) -> Loaded:
    loaded = load_network(model)
    network = Constant(loaded.network.config, loaded.batch_size, speckle)
    return replace(loaded, network=network)  # type: ignore[arg-type]


def beside_the_network(size_px: int, **options: Any) -> Action:
    """A scene through `Constant`, its map full of small regions."""
    scene, folder = write_scene(size_px), tiny_model()
    loaded, config = cheap(folder, SPECKLE), PredictConfig(**options)
    return lambda: predict([scene], folder, scratch(f"map-{size_px}.tif"), config, loaded=loaded)


def mapping_cheaply(size_px: int) -> Action:
    """A scene that no block of is stored, through `Constant`."""
    scene, folder = scratch(f"sparse-{size_px}.tif"), tiny_model()
    if not scene.exists():
        size = {"width": size_px, "height": size_px, "count": 3, "dtype": "uint8"}
        place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 4e5, 0, -0.5, 5e6)}
        tiles = {"tiled": True, "sparse_ok": True, "bigtiff": "yes"}
        with rasterio.open(scene, "w", driver="GTiff", **size, **place, **tiles):
            pass
    loaded = cheap(folder)
    return lambda: predict([scene], folder, scratch(f"sparse-map-{size_px}.tif"), loaded=loaded)


CASES = {
    "predict a scene of 6000 px, tiny": case(6000, tiny_model),
    "predict a scene of 2048 px, ViT-L": case(2048, large_model),
    "beside the network, scene of 6000 px, tiny": Case(
        {
            "network alone, on a part": Form(lambda: network_alone(6000, tiny_model, PART), 36 * PART),
            "scene": Form(lambda: beside_the_network(6000), 36),
            "scene, with polygons": Form(lambda: beside_the_network(6000, vector=Path(".gpkg")), 36),
        },
        "megapixel",
        rounds=2,
    ),
    "windows a pass, scene of 3000 px, windows of 128 px": Case(
        {
            name: Form(lambda batch=batch: mapping(3000, small_windows, batch_size=batch))  # type: ignore[misc]
            for name, batch in (("1", 1), ("found by itself", None))
        },
        "scene",
        rounds=3,
    ),
    "tta": Case(
        {
            tta: Form(lambda tta=tta: mapping(512, tta=tta))  # type: ignore[misc]
            for tta in ("none", "d4")
        },
        "scene",
        rounds=3,
    ),
    "memory of predict, without a network": Case(
        {
            f"{size} px": Form(lambda size=size: mapping_cheaply(size), (size / 1000) ** 2)  # type: ignore[misc]
            for size in (4_000, 40_000)
        },
        "megapixel",
        rounds=1,
    ),
    "memory of predict, with polygons and confidence": Case(
        {
            f"{size} px": Form(
                lambda size=size: beside_the_network(size, vector=Path(".gpkg"), confidence=True),  # type: ignore[misc]
                (size / 1000) ** 2,
            )
            for size in (4_000, 20_000)
        },
        "megapixel",
        rounds=1,
    ),
    "growth of predict": Case(
        {
            f"{size} px": Form(lambda size=size: mapping(size), (size / 1000) ** 2)  # type: ignore[misc]
            for size in (1000, 2000, 4000)
        },
        "megapixel",
        rounds=3,
    ),
}
