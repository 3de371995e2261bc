"""What bfloat16 changes on the maps of a trained network: the mini preset, trained on drawn tiles."""

from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from harness import Action, Case, Form, scratch

from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.components.predict.sliding import load_network, window_scores
from crossearth.components.synthesize.step import SynthesizeConfig, synthesize
from crossearth.components.train.setup import TrainConfig
from crossearth.components.train.step import train
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.config import load_config
from crossearth.data.tiles.manifest import read_image, read_manifest

RECIPE, DATASET, TARGET = "potsdam-rgb", "vaihingen", "vaihingen-irrg"
TILES = 16


def trained_model() -> Path:
    """Folder of the recipe's model, trained and with what it is scored on beside it."""
    folder, domains, archives = scratch("trained"), scratch("domains"), scratch("archives")
    if not folder.exists():
        preset = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())["presets"]["mini"]
        catalog = load_catalog()
        synthesize(["potsdam", DATASET], archives, SynthesizeConfig(), 0)
        ingest(
            ["potsdam-rgb", TARGET],
            catalog,
            archives,
            domains,
            load_config(IngestConfig, preset["ingest"], "mini"),
        )
        config = load_config(TrainConfig, {**preset["train"], "ablation": "rein"}, "mini")
        train(catalog.recipe(RECIPE), catalog, domains, folder, config)
    return folder


def mapping(precision: str) -> Action:
    loaded = load_network(trained_model(), precision, "cpu")  # type: ignore[arg-type]
    manifest = read_manifest(load_catalog().domain_dir(scratch("domains"), TARGET), "test")
    images = [torch.from_numpy(read_image(manifest, index)) for index in range(TILES)]
    images_B3HW = torch.stack(images)
    return lambda: window_scores(loaded, images_B3HW)


def changed(results: Mapping[str, object]) -> str:
    float32, bfloat16 = (torch.as_tensor(scores).argmax(1) for scores in results.values())
    return f"pixels of another class: {(float32 != bfloat16).double().mean():.3%}"


CASES = {
    "precision of a trained network": Case(
        {form: Form(lambda form=form: mapping(form), TILES) for form in ("float32", "bfloat16")},  # type: ignore[misc]
        "tile",
        compare=changed,
    )
}
