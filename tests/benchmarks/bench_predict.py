"""What mapping a scene costs beyond the network: time per window, memory, and pixels that bfloat16 changes.

    python tests/benchmarks/bench_predict.py --size 6000
    python tests/benchmarks/bench_predict.py --model artifacts/models/potsdam-rgb --scene scene.tif
    python tests/benchmarks/bench_predict.py --size 20000 --memory

CPU seconds are of the whole process, so that they hold on a machine that others use too.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import rasterio
import torch
from machine import peak_mb
from rasterio.transform import Affine
from rasterio.windows import Window
from torch import Tensor, nn

from crossearth.components import predict as step
from crossearth.components.predict import PredictConfig, predict
from crossearth.components.processes import choose_device
from crossearth.model.checkpoint import save
from crossearth.model.crossearth import NetworkConfig, crossearth_tiny, large_config

NUM_CLASSES = 7


class Pixelwise(nn.Module):
    """Costs nothing, with the windows of the paper's larger network: what remains is the mapping."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.mix = nn.Parameter(torch.randn(config.num_classes, 3))

    def forward(self, image_B3HW: Tensor) -> Tensor:
        return torch.einsum("kc,bchw->bkhw", self.mix, image_B3HW.float()).sigmoid()


@dataclass(frozen=True)
class Cost:
    """Of something done to a number of windows."""

    seconds: float
    cpu_seconds: float

    @staticmethod
    def of(action: object, repeats: int = 1) -> "Cost":
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            action()  # type: ignore[operator]
        return Cost((time.perf_counter() - start) / repeats, (time.process_time() - cpu_start) / repeats)

    def per_window(self, windows: int) -> dict[str, float]:
        return {
            "ms_per_window": round(1000 * self.seconds / windows, 2),
            "cpu_ms_per_window": round(1000 * self.cpu_seconds / windows, 2),
        }


def write_scene(path: Path, size: int) -> Path:
    """A striped RGB scene of smooth noise, written a few rows at a time."""
    generator = np.random.default_rng(0)
    profile = {
        "driver": "GTiff",
        "width": size,
        "height": size,
        "count": 3,
        "dtype": "uint8",
        "compress": "zstd",
    }
    with rasterio.open(
        path, "w", crs="EPSG:32633", transform=Affine(0.5, 0, 4e5, 0, -0.5, 5e6), **profile
    ) as scene:
        for top in range(0, size, 64):
            cells = generator.integers(0, 248, (3, 2, size // 32 + 1), dtype=np.uint8)
            rows = cells.repeat(32, axis=1).repeat(32, axis=2)[:, : min(64, size - top), :size]
            noise = generator.integers(0, 8, rows.shape, dtype=np.uint8)
            scene.write(rows + noise, window=Window(0, top, size, rows.shape[1]))
    return path


def map_once(scene: Path, model: Path, out: Path, config: PredictConfig) -> dict[str, object]:
    """Maps the scene; its cost per window beside that of the network on ready tensors."""
    loaded = step.load_network(model, config)
    crop_px, batch = loaded.network.config.crop_px, config.batch_size
    windows_B3HW = torch.randint(0, 256, (batch, 3, crop_px, crop_px), dtype=torch.uint8)
    windows_B3HW = windows_B3HW.to(choose_device(config.device))

    def network_alone() -> None:
        step.window_scores(loaded, windows_B3HW).sum().item()

    network_alone()
    alone = Cost.of(network_alone, repeats=max(3, 64 // batch))
    before_mb = peak_mb()
    mapping = Cost.of(lambda: predict([scene], model, out, config))
    num_windows = step.num_windows(step.open_scene(scene).grid, loaded.network)
    return {
        "seconds": round(mapping.seconds, 1),
        "windows": num_windows,
        **mapping.per_window(num_windows),
        "network_alone": alone.per_window(batch),
        "peak_mb_beyond_the_network": round(peak_mb() - before_mb),
    }


def share_changed(one: Path, two: Path) -> float:
    """Share of the pixels at which two maps differ."""
    with rasterio.open(one) as first, rasterio.open(two) as second:
        windows = [window for _, window in first.block_windows(1)]
        changed = sum(np.count_nonzero(first.read(1, window=w) != second.read(1, window=w)) for w in windows)
        return changed / (first.width * first.height)


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=6000, help="side of the synthetic scene, px")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--crop", type=int, default=128, help="window of the random tiny network, px")
    parser.add_argument("--model", type=Path, help="a trained model instead of a random tiny one")
    parser.add_argument("--scene", type=Path, help="a scene instead of a synthetic one")
    parser.add_argument("--memory", action="store_true", help="a network that costs nothing, 1024 px windows")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        network = crossearth_tiny(NUM_CLASSES, given.crop)
        meta = {
            "classes": list("abcdefg"),
            "palette": ["#808080"] * NUM_CLASSES,
            "provenance": "own",
        }
        model = given.model or save(network, folder / "model", meta)
        if given.memory:
            step.load = lambda *_: Pixelwise(large_config(NUM_CLASSES, 1024))
        scene = given.scene or write_scene(folder / "scene.tif", given.size)
        config = PredictConfig(batch_size=given.batch)
        result: dict[str, object] = {"threads": torch.get_num_threads(), "batch": given.batch}
        precisions = ("float32",) if given.memory else ("float32", "bfloat16")
        for precision in precisions:
            out = folder / f"{precision}.tif"
            result[precision] = map_once(scene, model, out, replace(config, precision=precision))
        if len(precisions) == 2:
            changed = share_changed(*(folder / f"{precision}.tif" for precision in precisions))
            result["share_of_pixels_changed_by_bfloat16"] = changed
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
