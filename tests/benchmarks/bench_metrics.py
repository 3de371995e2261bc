"""Speed of counting, of a pass over a target and of the report.

    python tests/benchmarks/bench_metrics.py [counting] [evaluation] [report]

The authors' metric (float histograms of both maps and of their agreement) was measured at 21 to 24 pairs of
1024 x 1024 per second on two cores of the reference machine; counting must be at least 8 times as fast.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

from crossearth.components import report as report_step
from crossearth.components.processes import Processes
from crossearth.components.report import report
from crossearth.components.scoring import score_target
from crossearth.data.catalog import load_catalog
from crossearth.data.manifest import read_manifest
from crossearth.model.crossearth import build, large_config, tiny_config
from crossearth.model.metrics import confusion_matrix

sys.path.insert(0, str(Path(__file__).parents[1]))
from domain_factory import write_domain
from results_factory import write_benchmark

PAIR_PX = 1024
AUTHORS_PAIRS_PER_SECOND = 24
REPEATS = 50


def counting() -> None:
    """Pairs of label maps per second, for random maps, one class, and maps as the network gives them."""
    generator = torch.Generator().manual_seed(0)
    for num_classes in (2, 6, 7):
        maps = torch.randint(num_classes, (2, PAIR_PX, PAIR_PX), generator=generator).to(torch.uint8)
        maps[1, :100] = 255
        blocky = maps[:, ::32, ::32].repeat_interleave(32, 1).repeat_interleave(32, 2).contiguous()
        for kind, (predicted, label) in (
            ("random", maps),
            ("blocks", blocky),
            ("one class", torch.zeros_like(maps)),
        ):
            confusion_matrix(predicted, label, num_classes)
            started = time.perf_counter()
            for _ in range(REPEATS):
                confusion_matrix(predicted, label, num_classes)
            speed = REPEATS / (time.perf_counter() - started)
            factor = speed / AUTHORS_PAIRS_PER_SECOND
            print(f"{num_classes} classes, {kind:9}: {speed:6.0f} pairs/s, {factor:5.1f} x the authors'")


def evaluation() -> None:
    """Share of a pass over a target that is spent outside the network."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = {
        "tiny": (tiny_config(7), 128, 48),
        "ViT-L": (large_config(7), 512, 3 if device.type == "cpu" else 96),
    }
    for name, (config, tile_px, tiles) in networks.items():
        model = build(config).eval().to(device)
        with tempfile.TemporaryDirectory() as folder:
            write_domain(Path(folder), "target", "loveda", 7, tiles=tiles, tile_px=tile_px)
            manifest = read_manifest(Path(folder), "test")
            scored = score_target(
                model,
                manifest,
                range(7),
                "mean",
                Processes(0, 1, device),
                batch_size=8,
                readers=2,
                num_pictures=3,
            )
        outside, speed = 1 - scored.network_seconds / scored.seconds, tiles / scored.seconds
        print(f"{name}: {speed:.1f} tiles of {tile_px} px per second, {outside:.1%} outside the network")


def reporting() -> None:
    """Seconds of a report of 32 settings with 300 tiles each."""
    report_step._track = lambda *_: None
    catalog = load_catalog()
    with tempfile.TemporaryDirectory() as folder:
        write_benchmark(Path(folder) / "scores", catalog, tiles=300)
        started = time.perf_counter()
        report([Path(folder) / "scores"], catalog, Path(folder) / "report")
        print(f"report of {len(catalog.settings)} settings: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    chosen = {"counting": counting, "evaluation": evaluation, "report": reporting}
    for part in sys.argv[1:] or chosen:
        chosen[part]()
