"""A pass over a target beside the network alone on tiles in memory, and the report of all settings."""

import torch
from bench_network import NUM_CLASSES, large_model
from bench_predict import tiny_model
from domain_factory import write_domain
from harness import Action, Case, Form, fresh, scratch
from results_factory import write_benchmark

from crossearth.components.evaluate.scoring import score_target
from crossearth.components.report.step import report
from crossearth.components.runtime.processes import Processes
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.tiles.manifest import Manifest, read_image, read_manifest
from crossearth.model.crossearth import CrossEarth
from crossearth.model.inference import predict_labels, windows_per_pass
from crossearth.model.weights.checkpoint import load

TILES, TILE_PX = 4, 512


def target(tiles: int, tile_px: int) -> Manifest:
    folder = scratch(f"target-{tiles}-{tile_px}")
    if not folder.exists():
        # all alike: else 16 times the tiles are more than 16 times the pixels
        write_domain(folder, "target", "loveda", tiles=tiles, tile_px=tile_px, lower=None)
    return read_manifest(folder, "test")


def network_alone() -> Action:
    model, manifest = load(large_model()), target(TILES, TILE_PX)
    images = [torch.from_numpy(read_image(manifest, index))[None] for index in range(TILES)]
    batch = windows_per_pass(model)
    return lambda: [predict_labels(model, image_13HW, batch) for image_13HW in images]


def scoring(model: CrossEarth, tiles: int, tile_px: int) -> Action:
    alone, manifest = Processes(0, 1, torch.device("cpu")), target(tiles, tile_px)
    batch = windows_per_pass(model)
    return lambda: score_target(
        model, manifest, range(NUM_CLASSES), "mean", alone, batch_size=batch, readers=2, num_pictures=3
    )


def reporting(tiles: int, recipes: int | None = None) -> Action:
    catalog, scores = load_catalog(), scratch(f"scores-{tiles}-{recipes}")
    if not scores.exists():
        write_benchmark(scores, catalog, recipes, tiles=tiles)
    return lambda: report([scores], catalog, fresh("report"))


def num_settings(recipes: int) -> int:
    return sum(len(recipe.settings) for recipe in list(load_catalog().recipes().values())[:recipes])


CASES = {
    "evaluate ViT-L, 512 px": Case(
        {
            "network alone": Form(network_alone, TILES),
            "evaluate": Form(lambda: scoring(load(large_model()), TILES, TILE_PX), TILES),
        },
        "tile",
        rounds=3,
    ),
    "growth of evaluate": Case(
        {
            f"{tiles} tiles": Form(lambda tiles=tiles: scoring(load(tiny_model()), tiles, 256), tiles)  # type: ignore[misc]
            for tiles in (8, 32, 128)
        },
        "tile",
        rounds=3,
    ),
    "growth of report, settings": Case(
        {
            f"{num_settings(recipes)} settings": Form(
                lambda recipes=recipes: reporting(300, recipes),  # type: ignore[misc]
                num_settings(recipes),
            )
            for recipes in (1, 3, 14)
        },
        "setting",
        rounds=3,
    ),
    "growth of report, tiles": Case(
        {
            f"{tiles} tiles a target": Form(lambda tiles=tiles: reporting(tiles), tiles)  # type: ignore[misc]
            for tiles in (75, 300, 1200)
        },
        "tile",
        rounds=3,
    ),
}
