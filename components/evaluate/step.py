"""Scores one trained model on the test split of all its targets; what is scored already is left as it is."""

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt

from crossearth.components.evaluate.predictions import FORMATS, picture_strip, prediction_writer
from crossearth.components.evaluate.results import (
    CURVES,
    DETAILS,
    Panel,
    RecipeResult,
    SettingResult,
    metric_name,
    nan_to_none,
    per_cent,
    read_picture,
    read_results,
    tile_file,
    weakest,
    write_results,
    write_tiles,
)
from crossearth.components.evaluate.scoring import ScoredTile, TargetScores, score_target
from crossearth.components.runtime.code import code_digest
from crossearth.components.runtime.device import choose_device
from crossearth.components.runtime.memory import enough_memory
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.places import DOMAINS, MODELS, SCORES
from crossearth.components.runtime.processes import join_processes
from crossearth.components.runtime.tracking import start_run
from crossearth.components.runtime.version import git_revision, torch_version
from crossearth.data.catalog.domains import TIMING_SUFFIX, Catalog, ClassSet, Recipe, Setting
from crossearth.data.common.config import checked, listed
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_dir, digest, markdown_table, read_json, write_text
from crossearth.data.tiles.manifest import Manifest, read_domain
from crossearth.model.inference import Tta, windows_per_pass
from crossearth.model.scores import OTHER_SCORES
from crossearth.model.weights.checkpoint import load, read_meta

PUBLISHED_METHOD = "CrossEarth"


@checked
class EvaluateConfig:
    """How a model is scored.

    Attributes:
        batch_size: sliding windows per forward pass, over as many tiles as that takes; None = so many as keep
            the device busy.
        tta: "d4" = scores are the mean over the 8 flips and quarter turns of a window; "none" as the authors.
        device: torch device, "auto" = the GPU if there is one.
        readers: threads that read and hash tiles while the network works.
        panels: how many best and how many worst tiles of a target are kept as pictures.
        predictions: also write every tile's class ids: "png", or "geotiff" with its place on the ground.
    """

    batch_size: PositiveInt | None = None
    tta: Tta = "none"
    device: str = "auto"
    readers: PositiveInt = 2
    panels: NonNegativeInt = 3
    predictions: Literal["none", "png", "geotiff"] = "none"


@dataclass(frozen=True)
class Target:
    """A target as this recipe sees it: `remap` turns the domain's class ids into the recipe's."""

    manifest: Manifest
    remap: tuple[int, ...]
    key: str


def run(
    params: Params, catalog: Catalog, name: str, model: Path | None = None, seed: int | None = None
) -> Path:
    """Scores the recipe `name` in the working folder: its own model, that of another seed, or another one."""
    recipe = catalog.recipe(name)
    place = f"{recipe.name}{params.seed_suffix(seed)}"
    config = params.config(EvaluateConfig, "evaluate")
    return evaluate(recipe, catalog, DOMAINS, model or MODELS / place, SCORES / place, config)


def evaluate(
    recipe: Recipe,
    catalog: Catalog,
    domains_dir: Path,
    model_dir: Path,
    out_dir: Path,
    config: EvaluateConfig | None = None,
) -> Path:
    """Scores the model in `model_dir` on all settings of `recipe`.

    Under torchrun, every process takes its share of each target's tiles and the first one writes.

    Args:
        model_dir: a trained or converted model.
        out_dir: the results' folder; results of the same inputs that stand there are kept.

    Returns:
        `out_dir`, with `details.json`, `scores.csv`, `tiles/`, `panels/` and maybe `predictions/`.

    Raises:
        InputError: not a model; other classes than the recipe's; a target that was not ingested; tiles that
            are gone or changed (listed); a target without a labelled pixel; another evaluation into
            `out_dir` is running; out of memory.
    """
    config, out_dir = config or EvaluateConfig(), Path(out_dir)
    class_set = catalog.class_sets[recipe.class_set]
    meta = _meta(model_dir, recipe, class_set)
    targets = {
        setting.target: _target(catalog, class_set, domains_dir, setting.target, meta, config)
        for setting in recipe.settings
    }
    result = _describe(recipe, class_set, meta, config, model_dir, out_dir)
    used = f"{choose_device(config.device)}: batch_size {config.batch_size or 'found by itself'}"
    lower = (
        "use a machine or a device with more memory"
        if config.batch_size == 1
        else "lower batch_size of `evaluate` in params.yaml, 1 is the least (the scores stay the same)"
    )
    with (
        join_processes() as processes,
        processes.file_lock(out_dir, f"an evaluation of {recipe.name}"),
        enough_memory(f"recipe {recipe.name}", used, lower),
    ):
        scored = _scored_before(out_dir, config)
        done = set(processes.broadcast(list(scored)))  # the first process keeps what all went through
        model, batch_size = None, config.batch_size
        for setting in recipe.settings:
            target = targets[setting.target]
            if target.key not in done:
                done.add(target.key)
                model = model or load(model_dir, device=choose_device(config.device))
                # one for all processes, whose devices may have more or less room: tiles are dealt out by it
                batch_size = batch_size or int(processes.broadcast(windows_per_pass(model)))
                place = out_dir / "predictions" / setting.target
                scores = score_target(
                    model,
                    target.manifest,
                    target.remap,
                    class_set.primary_metric,
                    processes,
                    batch_size=batch_size,
                    tta=config.tta,
                    readers=config.readers,
                    num_pictures=config.panels,
                    on_prediction=prediction_writer(place, target.manifest, class_set, config.predictions),
                )
                if processes.is_main_process:
                    scored[target.key] = _keep(out_dir, setting, target, scores, class_set)
            if processes.is_main_process:
                named = tuple(
                    _name(scored[of.key], each, catalog, meta, of.manifest)
                    for each in recipe.settings
                    if (of := targets[each.target]).key in scored
                )
                result = replace(result, settings=named)
                write_results(result)
                _keep_curves(model_dir, out_dir)
        if processes.is_main_process:
            _track(result, meta, {name: target.manifest for name, target in targets.items()})
    return out_dir


def _meta(model_dir: Path, recipe: Recipe, class_set: ClassSet) -> dict[str, Any]:
    meta = read_meta(model_dir)
    if tuple(meta["classes"]) != class_set.classes:
        raise InputError(
            f"a model of the classes {listed(meta['classes'])}",
            where=model_dir,
            expected=f"class set {class_set.name} of recipe {recipe.name}: {listed(class_set.classes)}",
        )
    return meta


def _target(
    catalog: Catalog,
    class_set: ClassSet,
    domains_dir: Path,
    name: str,
    meta: dict[str, Any],
    config: EvaluateConfig,
) -> Target:
    manifest = read_domain(catalog, domains_dir, name, "test")
    remap = catalog.remap(catalog.domain(name).class_set, class_set.name)
    inputs = {
        "weights": meta["sha256"],
        "backbone": meta["backbone"],
        "network": meta["network"],
        "manifest": manifest.digest,
        "remap": remap,
        "primary_metric": class_set.primary_metric,
        "palette": class_set.palette,
        "config": asdict(replace(config, device="auto", readers=1)),
        "code": code_digest("evaluate"),
        "torch": torch_version(),
    }
    return Target(manifest, remap, digest(inputs))


def _describe(
    recipe: Recipe,
    class_set: ClassSet,
    meta: dict[str, Any],
    config: EvaluateConfig,
    model_dir: Path,
    out_dir: Path,
) -> RecipeResult:
    device = choose_device(config.device)
    timing = model_dir.with_name(f"{model_dir.name}{TIMING_SUFFIX}")  # none where the training was elsewhere
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs"
    if device.startswith("cuda"):
        machine += f", {torch.cuda.get_device_name(device)}"
    return RecipeResult(
        recipe=recipe.name,
        recipe_hash=meta.get("input_hash") or meta["sha256"],
        seed=meta.get("seed"),
        selection=meta.get("selection", "released"),
        class_set=class_set.name,
        classes=class_set.classes,
        palette=class_set.palette,
        primary_metric=class_set.primary_metric,
        model_sha256=meta["sha256"],
        lineage={
            "code": code_digest("evaluate"),
            "git_revision": git_revision(),
            "torch": torch.__version__,
            "machine": machine,
            "threads": torch.get_num_threads(),
            "device": device,
            "evaluate": asdict(config),
            "timing": read_json(timing) if timing.is_file() else {},
            "model": {key: value for key, value in meta.items() if key not in ("classes", "palette")},
        },
        folder=out_dir,
    )


def _scored_before(out_dir: Path, config: EvaluateConfig) -> dict[str, SettingResult]:
    """Results in `out_dir` by key, where all of their files are there; a damaged one counts as none."""
    scored: dict[str, SettingResult] = {}
    with suppress(InputError):
        before = read_results(out_dir)
        for each in before.settings:
            with suppress(InputError):
                tiles = before.tile_table(each)["tile_id"].to_pylist()
                for panel in (*each.worst, *each.best):
                    read_picture(out_dir / panel.file)
                place = out_dir / "predictions" / each.setting.target
                suffix, _ = FORMATS.get(config.predictions, ("", ""))
                if not suffix or all((place / f"{tile}{suffix}").is_file() for tile in tiles):
                    scored[each.key] = each
    return scored


def _keep_curves(model_dir: Path, out_dir: Path) -> None:
    """The curves of the training beside its scores, for the report; a converted model has none."""
    curves = model_dir / CURVES
    if curves.is_file():
        write_text(out_dir / CURVES, curves.read_text(encoding="utf-8"))
    else:
        (out_dir / CURVES).unlink(missing_ok=True)


def _keep(
    out_dir: Path, setting: Setting, target: Target, scores: TargetScores, class_set: ClassSet
) -> SettingResult:
    """Writes a target's tiles and pictures; returns the rest of its results."""
    rows = target.manifest.rows
    tile_rows = [_tile_row(rows[tile.index], tile) for tile in scores.tiles]
    panels: dict[str, list[Panel]] = {"worst": [], "best": []}
    with atomic_dir(out_dir / "panels" / setting.target) as folder:
        for rank, pictures in (("worst", scores.worst), ("best", scores.best)):
            for number, picture in enumerate(pictures, 1):
                name = f"{rank}-{number}.png"
                picture_strip(picture, class_set).save(folder / name, optimize=False)
                tile_id = rows[picture.tile.index]["tile_id"]
                panels[rank].append(Panel(f"panels/{setting.target}/{name}", tile_id, picture.tile.iou))
    return SettingResult(
        setting=setting,
        key=target.key,
        manifest_digest=target.manifest.digest,
        provenance=target.manifest.provenance,
        published=None,
        published_iou=None,
        confusion=tuple(tuple(row) for row in scores.confusion.tolist()),
        tiles=len(scores.tiles),
        tiles_sha256=write_tiles(out_dir / tile_file(setting.target), tile_rows),
        scenes=len({row["scene"] for row in rows}),
        ignored_pixels=sum(row["width"] * row["height"] for row in rows) - int(scores.confusion.sum()),
        seconds=round(scores.seconds, 3),
        network_seconds=round(scores.network_seconds, 3),
        worst=tuple(panels["worst"]),
        best=tuple(panels["best"]),
    )


def _name(
    result: SettingResult, setting: Setting, catalog: Catalog, meta: dict[str, Any], manifest: Manifest
) -> SettingResult:
    """The numbers of a target under a setting's name, published scores only beside publishers' data."""
    provenance = weakest([meta["provenance"], manifest.provenance])
    known = catalog.scores[setting.abbr] if provenance == "publisher" else ()
    published = next((each for each in known if each.method == PUBLISHED_METHOD), None)
    score = published.miou / 100 if published else None
    per_class = published.per_class_iou if published else None
    per_class = tuple(iou / 100 for iou in per_class) if per_class else None
    return replace(result, setting=setting, provenance=provenance, published=score, published_iou=per_class)


def _tile_row(row: dict[str, Any], tile: ScoredTile) -> dict[str, Any]:
    counts = dict(zip(("hits", "predicted", "labelled"), tile.counts.tolist(), strict=True))
    return {"tile_id": row["tile_id"], "scene": row["scene"], "iou": nan_to_none(tile.iou), **counts}


def _track(result: RecipeResult, meta: dict[str, Any], manifests: Mapping[str, Manifest]) -> None:
    """Logs the scores, and the targets' `manifests`, into the run of the training."""
    metrics: dict[str, float] = {}
    for each in result.settings:
        scores, target = result.scores(each), each.setting.target
        metrics[metric_name(result.metric_key, target)] = scores.primary_metric
        others = {name: getattr(scores, value) for name, (value, _) in OTHER_SCORES.items()}
        metrics |= {metric_name(name, target): value for name, value in others.items()}
        per_class = zip(result.classes, scores.iou, strict=True)
        metrics |= {metric_name("iou", target, name): iou for name, iou in per_class}
    metrics |= result.summary()
    tags = {
        "recipe": result.recipe,
        "settings": ", ".join(each.setting.abbr for each in result.settings),
        "targets": ", ".join(each.setting.target for each in result.settings),
        "provenance": meta["provenance"],
        "selection": result.selection,
        "seed": "none" if result.seed is None else str(result.seed),
        "scored_with": str(result.lineage["git_revision"]),
    }
    rows = [
        [each.setting.abbr, each.setting.gap, per_cent(result.scores(each).primary_metric)]
        for each in result.settings
    ]
    table = markdown_table(["setting", "gap", f"{result.metric} %"], rows)
    if "synthetic" in {each.provenance for each in result.settings}:
        table = f"Synthetic miniatures: not comparable with published scores.\n\n{table}"
    with start_run(result.recipe, key=result.recipe_hash, tags=tags, adds=True) as run:
        for name, of in manifests.items():
            run.log_dataset(f"{name} {of.split}", of.digest, of.root, "testing", len(of))
        run.log_metrics(metrics)
        run.describe(table)
        for name in (DETAILS, "scores.csv"):
            run.log_artifact(result.folder / name, "scores")
        run.log_artifact(result.folder / "panels", "panels")
