"""Results as `evaluate` writes them, drawn from random counts: reports need no training."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossearth.components.evaluate.results import (
    CURVES,
    Panel,
    RecipeResult,
    SettingResult,
    tile_file,
    write_results,
    write_tiles,
)
from crossearth.components.runtime.palette import colour_table
from crossearth.data.catalog.domains import Catalog, ClassSet, Recipe
from crossearth.data.common.files import csv_text, digest, write_text
from crossearth.model.scores import class_iou, outcome_counts, primary_iou


def write_fake_results(
    folder: Path,
    catalog: Catalog,
    recipe: Recipe,
    *,
    seed: int = 0,
    selection: str = "last",
    provenance: str = "synthetic",
    skill: float | None = None,
    tiles: int = 30,
    tile_px: int = 64,
    absent: tuple[int, ...] = (),
) -> RecipeResult:
    """Writes results of `recipe` into `folder`; `skill` 0..1 [default: more in-domain than outside].

    Labels and what the tiles hold depend on the target alone, predictions on recipe, seed and skill.
    """
    class_set = catalog.class_sets[recipe.class_set]
    settings = []
    for setting in recipe.settings:
        share = skill if skill is not None else (0.8 if setting.source == setting.target else 0.55)
        drawing = (recipe.name, seed, share, tiles, tile_px, absent)
        counts, panels = _target(folder, setting.target, class_set, *drawing)
        published = next((each for each in catalog.scores[setting.abbr] if each.method == "CrossEarth"), None)
        if provenance != "publisher":
            published = None
        rows = [
            {
                "tile_id": f"{setting.target}_{index:03d}",
                "scene": f"scene{index // 5}",
                "iou": None if np.isnan(value) else float(value),
                "hits": outcome[0].tolist(),
                "predicted": outcome[1].tolist(),
                "labelled": outcome[2].tolist(),
            }
            for index, outcome in enumerate(outcome_counts(counts))
            for value in [primary_iou(class_iou(outcome), class_set.primary_metric)]
        ]
        tiles_sha256 = write_tiles(folder / tile_file(setting.target), rows)
        settings.append(
            SettingResult(
                setting=setting,
                key=digest([recipe.name, setting.abbr, seed, share]),
                manifest_digest=digest(setting.target),
                provenance=provenance,
                published=published.miou / 100 if published else None,
                published_iou=tuple(iou / 100 for iou in published.per_class_iou)
                if published and published.per_class_iou
                else None,
                confusion=tuple(map(tuple, counts.sum(0).tolist())),
                tiles=tiles,
                tiles_sha256=tiles_sha256,
                scenes=(tiles + 4) // 5,
                ignored_pixels=0,
                seconds=1.5,
                network_seconds=1.4,
                worst=panels[:2],
                best=panels[2:],
            )
        )
    result = RecipeResult(
        recipe=recipe.name,
        recipe_hash=digest([recipe.name, seed, skill]),
        seed=seed,
        selection=selection,
        class_set=class_set.name,
        classes=class_set.classes,
        palette=class_set.palette,
        primary_metric=class_set.primary_metric,
        model_sha256=digest([recipe.name, seed, "weights"]),
        lineage={
            "git_revision": "0000000",
            "machine": "x86_64, 2 CPUs",
            "device": "cpu",
            "code": "0" * 16,
            "timing": {"seconds": 75.0},
            "model": {
                "iteration": 80,
                "train": {"iterations": 80},
                "parameters": {"trained": 1_234_567, "all": 345_678_901},
            },
        },
        settings=tuple(settings),
        folder=folder,
    )
    write_results(result)
    points = [{"iteration": step, "loss": 3 / (1 + step / 20) + seed / 10} for step in range(10, 81, 10)]
    write_text(folder / CURVES, csv_text(points))
    return result


def _target(
    folder: Path,
    target: str,
    class_set: ClassSet,
    recipe: str,
    seed: int,
    skill: float,
    tiles: int,
    tile_px: int,
    absent: tuple[int, ...],
) -> tuple[np.ndarray, tuple[Panel, ...]]:
    """Confusion (N, K, K) of a target's tiles, and two worst and two best panels."""
    num = len(class_set.classes)
    rng = np.random.default_rng(int(digest(target)[:8], 16))
    present = [index for index in range(num) if index not in absent]
    blocks = rng.choice(present, size=(tiles, tile_px // 8, tile_px // 8))
    label = blocks.repeat(8, 1).repeat(8, 2).astype(np.uint8)
    noise = np.random.default_rng(int(digest([recipe, seed])[:8], 16))
    level = np.clip(skill + 0.2 * noise.standard_normal((tiles, 1, 1)), 0.05, 0.98)
    guessed = noise.choice(present, size=label.shape)
    predicted = np.where(noise.random(label.shape) < level, label, guessed).astype(np.uint8)
    cell = label.reshape(tiles, -1).astype(np.int64) * num + predicted.reshape(tiles, -1)
    counts = np.stack([np.bincount(row, minlength=num * num).reshape(num, num) for row in cell])
    ious = primary_iou(class_iou(outcome_counts(counts)), class_set.primary_metric)
    ranked = [int(index) for index in np.argsort(ious)]
    colours = colour_table(class_set.palette)
    (folder / "panels" / target).mkdir(parents=True, exist_ok=True)
    panels = []
    names = {"worst-1": ranked[0], "worst-2": ranked[1], "best-1": ranked[-1], "best-2": ranked[-2]}
    for name, index in names.items():
        truth = colours[label[index]]
        strip = np.concatenate([truth // 2 + 60, truth, colours[predicted[index]]], axis=1)
        file = f"panels/{target}/{name}.png"
        Image.fromarray(strip.repeat(2, 0).repeat(2, 1)).save(folder / file)
        panels.append(Panel(file, f"{target}_{index:03d}", float(ious[index])))
    return counts, tuple(panels)


def write_benchmark(
    folder: Path, catalog: Catalog, recipes: int | None = None, **options: Any
) -> list[RecipeResult]:
    """Fake results of the catalog's first `recipes` recipes (all if None), one folder each."""
    chosen = list(catalog.recipes().values())[:recipes]
    return [write_fake_results(folder / recipe.name, catalog, recipe, **options) for recipe in chosen]
