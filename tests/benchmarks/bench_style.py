"""Images per second of the style engines, against the paper's networks run the plain way.

    python tests/benchmarks/bench_style.py
    python tests/benchmarks/bench_style.py --engine spectral --threads 1
    python tests/benchmarks/bench_style.py --stylize 64

Rates are of embedding and transfer together, as the injection of one image takes them. The best of several
runs is printed, and CPU seconds beside it, so that they hold on a machine that others use too. Weights are
random: they do not change the time.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import rasterio
import torch
from machine import machine_line
from torch import Tensor, nn
from torch.nn import functional as F

from crossearth.components.stylize import StylizeConfig, stylize
from crossearth.data import ghiasi
from crossearth.data.ghiasi import GhiasiEngine, StylePredictor, StyleTransfer
from crossearth.data.manifest import write_manifest
from crossearth.data.spectral import SpectralEngine
from crossearth.data.style import EarthStyles, StyleMoments
from crossearth.data.tiles import Grid, describe, scene_writer

REPEATS = 4


def cost(action: Callable[[], object], repeats: int = REPEATS) -> dict[str, float]:
    """Best wall seconds and CPU seconds of one call, after one to warm up."""
    action()
    runs = []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        action()
        runs.append((time.perf_counter() - start, time.process_time() - cpu_start))
    wall, cpu = (min(values) for values in zip(*runs, strict=True))
    return {"seconds": round(wall, 4), "cpu_seconds": round(cpu, 4), "images_per_second": round(1 / wall, 2)}


def plain(networks: nn.ModuleDict, x_B3HW: Tensor) -> Callable[[], Tensor]:
    """The networks as their equations say: float32, planes apart, torch's instance norm."""

    @torch.no_grad()
    def run() -> Tensor:
        fused, ghiasi._instance_norm = ghiasi._instance_norm, F.instance_norm
        try:
            return networks["transfer"](x_B3HW / 255, networks["predictor"](x_B3HW / 255))
        finally:
            ghiasi._instance_norm = fused

    return run


def bench_ghiasi(side: int) -> dict[str, object]:
    torch.manual_seed(0)
    x_B3HW = torch.rand(1, 3, side, side) * 255
    networks = nn.ModuleDict({"transfer": StyleTransfer(), "predictor": StylePredictor()}).eval()
    before = cost(plain(networks, x_B3HW))
    engine = GhiasiEngine(StyleTransfer(), StylePredictor())
    after = cost(lambda: engine.transfer(x_B3HW, engine.embed(x_B3HW)))
    return {
        "plain float32": before,
        f"engine {str(engine.dtype).removeprefix('torch.')}": after,
        "times faster": round(before["seconds"] / after["seconds"], 2),
    }


def bench_spectral(side: int) -> dict[str, object]:
    engine = SpectralEngine()
    x_B3HW = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    e_BD = engine.embed(x_B3HW) + 0.1

    def injected() -> None:
        engine.embed(x_B3HW)
        engine.transfer(x_B3HW, e_BD)

    return {"embed": cost(lambda: engine.embed(x_B3HW)), "embed and transfer": cost(injected)}


def bench_stylize(tiles: int, side: int) -> dict[str, object]:
    """The whole step, files included, and what of it the compute alone takes."""
    generator = np.random.default_rng(0)
    engine = SpectralEngine()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        moments = StyleMoments(engine.dim)
        rows = []
        grid = Grid(side, side, rasterio.Affine.identity(), None)
        for index in range(tiles):
            image = generator.integers(0, 256, (3, side, side), np.uint8)
            path = f"train/images/{index}.tif"
            with scene_writer(root / "domains" / "bench" / path, grid, 3) as writer:
                writer.write(image)
            moments.add(engine.embed(torch.from_numpy(image)[None]), [f"{index:064x}"])
            where = {"scene": str(index), "tile_id": str(index), "split": "train", "image": path, "label": ""}
            window = {"col_off": 0, "row_off": 0, "width": side, "height": side}
            place = {
                "crs": "",
                "transform": list(grid.transform)[:6],
                "gsd_m": 0.0,
                "bands": ["red", "green", "blue"],
            }
            rows.append({**where, **window, **place, **describe(image, None, None, 0)})
        write_manifest(root / "domains" / "bench", "bench", "train", "", "synthetic", rows)
        styles = EarthStyles.from_moments(moments, engine.name).save(root / "earth.safetensors")
        with mock.patch("crossearth.components.stylize.start_run"):  # files are timed, not a tracking server
            start = time.perf_counter()
            stylize("bench", root / "domains", styles, root / "stylized", StylizeConfig())
            seconds = time.perf_counter() - start
    compute = bench_spectral(side)["embed and transfer"]
    return {"tiles": tiles, "tiles_per_second": round(tiles / seconds, 2), "compute alone": compute}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("ghiasi", "spectral"), action="append")
    parser.add_argument(
        "--size", type=int, action="append", help="side of the images, pixels [default: 512, 1024]"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--stylize", type=int, metavar="TILES", help="time the whole step over so many tiles")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, object] = {"machine": machine_line(), "threads": arguments.threads}
    sides = arguments.size or [512, 1024]
    if arguments.stylize:
        results["stylize"] = {side: bench_stylize(arguments.stylize, side) for side in sides}
    else:
        for engine in arguments.engine or ("ghiasi", "spectral"):
            bench = bench_ghiasi if engine == "ghiasi" else bench_spectral
            results[engine] = {side: bench(side) for side in sides}
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
