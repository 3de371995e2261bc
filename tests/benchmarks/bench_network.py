"""Time and peak memory of the paper's ViT-L on one image, beside the plain float32 network.

    python tests/benchmarks/bench_network.py --size 512

Weights and image are random. Every form runs in a process of its own, so its peak memory (from reading the
weights on) is its own. Seconds are of the fastest pass, CPU seconds of all threads.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import reference_network as reference
import torch
from machine import machine_line, peak_mb
from torch import Tensor

from crossearth.components.predict import PredictConfig, load_network, window_scores
from crossearth.model.checkpoint import load, save
from crossearth.model.crossearth import crossearth_large
from crossearth.model.names import to_released

NUM_CLASSES = 7
FORMS = ("plain", "float32", "bfloat16")


def passes(form: str, model: Path, image_13HW: Tensor, repeats: int) -> tuple[Tensor, dict[str, float]]:
    """Scores of the last pass, and what a pass costs."""
    if form == "plain":
        network = load(model)
        state = {str(to_released(name)): tensor for name, tensor in network.state_dict().items()}
        config = network.config
        sizes = reference.Sizes(
            config.heads, config.taps, config.head_heads, config.num_points, config.norm_groups
        )
        x_13HW = network.normalise(image_13HW)

        def run() -> Tensor:
            with torch.inference_mode():
                return reference.forward(state, sizes, x_13HW)[0]

    else:
        loaded = load_network(model, PredictConfig(precision=form, device="cpu"))  # type: ignore[arg-type]

        def run() -> Tensor:
            return window_scores(loaded, image_13HW)

    scores_1KHW, costs = run(), []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        scores_1KHW = run()
        costs.append((time.perf_counter() - start, time.process_time() - cpu_start))
    seconds, cpu_seconds = (min(each) for each in zip(*costs, strict=True))
    return scores_1KHW, {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb()}


def main() -> None:
    """Prints one line per form, the ratios to the plain network, and the machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512, help="side of the image, px")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--run", nargs=2, metavar=("FORM", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.manual_seed(0)
    image_13HW = torch.randint(0, 256, (1, 3, given.size, given.size), dtype=torch.uint8)
    if given.run:
        form, folder = given.run[0], Path(given.run[1])
        scores_1KHW, cost = passes(form, folder, image_13HW, given.repeats)
        torch.save(scores_1KHW.argmax(1), folder / f"{form}.pt")
        print(json.dumps(cost))
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        meta = {"classes": list("abcdefg"), "palette": ["#808080"] * NUM_CLASSES, "provenance": "own"}
        save(crossearth_large(NUM_CLASSES), folder, meta)
        costs = {}
        for form in FORMS:
            command = [sys.executable, __file__, "--size", given.size, "--repeats", given.repeats]
            command += ["--run", form, folder]
            done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True)
            costs[form] = json.loads(done.stdout)
        labels = {form: torch.load(folder / f"{form}.pt") for form in FORMS}
    print(f"ViT-L, {given.size} x {given.size} px, batch 1, {torch.get_num_threads()} threads")
    for form, cost in costs.items():
        changed = (labels[form] != labels["plain"]).double().mean()
        print(
            f"{form:9} {cost['seconds']:6.2f} s {cost['cpu_seconds']:6.2f} CPU s"
            f" {cost['peak_mb']:6.0f} MB peak"
            f"  {costs['plain']['seconds'] / cost['seconds']:5.2f} x as fast"
            f"  {changed:.3%} of pixels of another class"
        )
    print(machine_line())


if __name__ == "__main__":
    main()
