"""Loading of training crops: its speed alone, and what it adds to the steps of the mini preset."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from unittest.mock import patch

import torch
import yaml
from domain_factory import write_domain
from harness import Action, Case, Form, fresh, scratch

from crossearth.components.runtime.processes import Processes
from crossearth.components.train.loop import Training
from crossearth.components.train.setup import TrainConfig, make_network, prepare
from crossearth.components.train.state import Checkpoints
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.config import load_config
from crossearth.data.style.earth import EarthStyles, StyleMoments
from crossearth.data.style.spectral import SpectralEngine
from crossearth.data.tiles import dataset
from crossearth.data.tiles.augment import Augmentation
from crossearth.data.tiles.manifest import Manifest, read_manifest
from crossearth.data.tiles.readers import reading

ROOT = Path(__file__).parents[2]
CROPS, CROP_PX = 16, 1024
RECIPE = "loveda-urban"
STEPS = 10


def tiles(tile_px: int) -> Manifest:
    """The recipe's source, drawn."""
    folder = load_catalog().domain_dir(scratch(f"tiles-{tile_px}"), RECIPE)
    if not folder.exists():
        write_domain(folder, RECIPE, "loveda", tiles=12, tile_px=tile_px, split="train")
    return read_manifest(folder, "train")


def loading(workers: int) -> Action:
    """Crops of 1024 px from tiles of 1024 px, as half of the paper's recipes take them; none is held."""
    with patch.object(dataset, "HELD_BYTES", 0):
        source = dataset.TileDataset(tiles(CROP_PX), range(7))
    stream = dataset.TrainingStream(source, Augmentation(CROP_PX), seed=0)

    opened = ExitStack()
    batches = opened.enter_context(reading(stream, ([position] for position in count()), workers))

    def run(held: ExitStack = opened) -> None:  # with it the readers would end
        for _ in range(CROPS):
            next(batches)

    return run


def training(loads: bool) -> Action:
    """Steps of the mini preset, on the crops of the loader or on the first ones again and again."""
    tiles(128)
    preset = yaml.safe_load((ROOT / "params.yaml").read_text())["presets"]["mini"]["train"]
    config = replace(load_config(TrainConfig, preset, "mini"), iterations=10_000)
    engine = SpectralEngine()
    moments = StyleMoments(engine.dim)
    moments.add(engine.embed(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)), list("abcd"))
    styles = EarthStyles.from_moments(moments, engine.name).save(scratch("mini") / "earth.safetensors")
    catalog = load_catalog()
    job = prepare(catalog.recipe(RECIPE), catalog, scratch("tiles-128"), config, styles)
    states = Checkpoints(fresh("states"), 1, job.identity)
    steps = Training(job, make_network(job), Processes(0, 1, torch.device("cpu")), states)
    context = steps.loading()
    batches = context.__enter__()
    first: list[dataset.Batch] = next(batches)

    def run(held: object = context) -> float:
        began, waited = time.perf_counter(), 0.0
        for _ in range(STEPS):
            asked = time.perf_counter()
            batch = next(batches) if loads else first
            waited += time.perf_counter() - asked
            steps._iterate(batch, 0)
        return waited / (time.perf_counter() - began)

    run()
    return run


def data_wait(results: Mapping[str, object]) -> str:
    """Share of the time of a step in which it waits for its crops."""
    return f"data wait: {results['loader']:.1%} of a step"


CASES = {
    "loading crops of 1024 px": Case(
        {"in the process": Form(lambda: loading(0), CROPS), "2 workers": Form(lambda: loading(2), CROPS)},
        "crop",
    ),
    "training step mini": Case(
        {
            "same crops again": Form(lambda: training(loads=False), STEPS),
            "loader": Form(lambda: training(loads=True), STEPS),
        },
        "step",
        compare=data_wait,
    ),
}
