"""How far new scenes lie from what a model has seen, without a label of theirs.

Windows of the training's crop are held against the model's `reference.json`, see `reference.py` for how its
two thresholds were measured. Scenes drift where less than `LIMIT` of their windows lie within the training's
styles, or more than `LIMIT` of their pixels are of low confidence: on more imagery like the source's own
these are about 95 % and 5 %. All scenes together give the verdict: small scenes of one source differ, too.
The Earth's styles are those that the training injected: windows within them, but not within the training's,
are what a model trained with them should bear best.

Legend: B windows, K classes, H W pixels.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import PositiveInt
from rasterio.errors import NotGeoreferencedWarning

from crossearth.components.evaluate.results import metric_name
from crossearth.components.predict.config import Bands, Gsd, Precision
from crossearth.components.predict.remote import Source, raster_of
from crossearth.components.predict.sliding import Loaded, load_network, window_scores
from crossearth.components.predict.step import scene_files
from crossearth.components.predict.strips import Scene, open_scene, open_view
from crossearth.components.predict.strips import View as SceneView
from crossearth.components.runtime.device import choose_device
from crossearth.components.runtime.memory import enough_memory
from crossearth.components.runtime.pages import render
from crossearth.components.runtime.tables import TextTable, View
from crossearth.components.runtime.tracking import start_run
from crossearth.components.styles.coverage import Space
from crossearth.components.watch.reference import (
    LOW,
    WITHIN,
    Reference,
    Seen,
    grid,
    is_telling,
    read_reference,
)
from crossearth.data.common.config import Rising, checked
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import digest, write_json, write_text
from crossearth.data.common.progress import progress_bar
from crossearth.data.common.spaced import evenly
from crossearth.data.raster.reader import gdal
from crossearth.data.style.earth import StyleEngine, style_engine
from crossearth.model.weights.checkpoint import read_meta, trained_reading

LIMIT = 0.5
TABLE_NAME, PAGE_NAME, TEMPLATE = "watch.json", "watch.html", "template.html"
ALL = "all scenes"


@checked
class WatchConfig:
    """How scenes are looked at.

    Attributes:
        bands, value_range, gsd, precision, device, backbone: as in `PredictConfig`.
        batch_size: windows per pass of the network; None = as many as keep the device busy.
        windows: of one scene, at most; evenly spaced ones.
    """

    bands: Bands | None = None
    value_range: Rising | None = None
    gsd: Gsd = "auto"
    precision: Precision = "auto"
    device: str = "auto"
    backbone: Path | None = None
    batch_size: PositiveInt | None = None
    windows: PositiveInt = 64


@dataclass(frozen=True)
class Finding:
    """What was found of a scene, or of all; None where a scene has no window that holds data.

    Attributes:
        windows: that were looked at.
        within_training, within_earth: shares of them, 0..1; of the Earth's None where none were injected.
        low_confidence: share of the pixels, 0..1.
        band_shift: mean of each band minus the training's, in standard deviations of the training's pixels.
    """

    scene: str
    windows: int
    within_training: float | None
    within_earth: float | None
    low_confidence: float | None
    band_shift: tuple[float | None, ...]

    @property
    def drifts(self) -> bool:
        """By this module's rule."""
        if self.within_training is None or self.low_confidence is None:
            return False
        return self.within_training < LIMIT or self.low_confidence > LIMIT

    @property
    def reason(self) -> str:
        """What the verdict rests on."""
        return (
            f"{_per_cent(self.within_training)} % of the windows lie within the training's styles, "
            f"{_per_cent(self.low_confidence)} % of the pixels are of low confidence"
        )

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.within_training is None:
            return "no data"
        return "drift" if self.drifts else "fine"


@dataclass(frozen=True)
class Watched:
    """What `watch` found.

    Attributes:
        all: of all scenes together.
        scenes: of each.
        errors: scenes that cannot be read.
        files: that were written.
    """

    all: Finding
    scenes: tuple[Finding, ...]
    errors: tuple[InputError, ...]
    files: tuple[Path, ...]


def watch(
    scenes: Sequence[str | Source],
    model: Path,
    out_dir: Path,
    config: WatchConfig = WatchConfig(),  # noqa: B008 frozen
    own: bool = True,
) -> Watched:
    """Writes `out_dir/watch.json` and the page `watch.html`, and logs the shares to MLflow.

    There a model has a run `watch RECIPE`, with a point for each call: a curve over time.

    Args:
        scenes: raster files, folders of them, searched with everything in them, or addresses.
        model: a model folder or file.
        own: whether the scenes are files of the user's own, see `open_raster`.

    Raises:
        InputError: no scene, none that can be read as the training's files were (see `open_scene`), or none
            that holds data; a model without a `reference.json`, or with another model's; out of memory.
    """
    meta = read_meta(model)
    folder = model if model.is_dir() else model.parent
    reference = read_reference(folder, meta.get("input_hash", ""))
    trained = trained_reading(meta)
    readable: list[Scene] = []
    errors: list[InputError] = []
    batch = config.batch_size or "found by itself"
    used = f"{choose_device(config.device)}: batch_size {batch}, precision {config.precision}"
    with gdal(), warnings.catch_warnings(), enough_memory(model, used, "choose another --device"):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        for source in scene_files(scenes, config.bands):
            try:
                path = raster_of(source)
                readable.append(open_scene(path, trained, config.bands, config.value_range, own, config.gsd))
            except InputError as error:
                errors.append(error)
        if not readable:
            raise InputError("\n".join(map(str, errors)))
        loaded = load_network(model, config.precision, config.device, config.backbone, config.batch_size)
        device = next(loaded.network.parameters()).device
        engine = style_engine(reference.engine).to(device)
        found, total = [], Seen()
        for scene in progress_bar(readable, "watch", len(readable)):
            try:
                seen = _look(scene, reference, engine, loaded, config)
            except InputError as error:
                errors.append(error)
                continue
            found.append(_finding(str(scene.path), seen, reference))
            total += seen
    if not len(total):
        raise InputError(
            "\n".join(map(str, errors)) or "no scene has a window half of which holds data",
            where="" if errors else ", ".join(str(scene) for scene in scenes),
        )
    all_scenes = _finding(ALL, total, reference)
    written = _write(out_dir, str(model), meta, reference, all_scenes, found, errors)
    _track(meta, all_scenes, written)
    return Watched(all_scenes, tuple(found), tuple(errors), tuple(written))


def refuse_drift(watched: Watched, model: str) -> None:
    """Ends a pipeline's step, and with it the run, where the scenes drift.

    Raises:
        InputError: they do.
    """
    if watched.all.drifts:
        raise InputError(
            f"the scenes drift: {watched.all.reason}",
            where=model,
            next_step="look at the page; label some scenes and score the model on them, or set fail: false",
        )


def _look(
    scene: Scene, reference: Reference, engine: StyleEngine, loaded: Loaded, config: WatchConfig
) -> Seen:
    """Measures windows of a scene, a batch of one size at a time."""
    (height, width), px = scene.seen, reference.window_px
    seen = Seen()
    with open_view(scene) as shown:
        windows = list(_read(shown, evenly(grid(height, width, px), config.windows), px))
    for first in range(0, len(windows), loaded.batch_size):
        batch = np.stack(windows[first : first + loaded.batch_size])
        seen.add(torch.from_numpy(batch).to(engine.device), engine, partial(window_scores, loaded))
    return seen


def _read(
    shown: SceneView, corners: Sequence[tuple[int, int]], px: int
) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Windows (3, H, W) as the network sees them, black where nothing is valid; those that hold data."""
    for top, left in corners:
        # beyond the borders of a small scene it is mirrored, as for a map
        window_3HW, seen_HW = shown.look((top, top + px), (left, left + px))
        window_3HW = np.where(seen_HW, window_3HW, 0).astype(np.uint8)
        if is_telling(window_3HW):
            yield window_3HW


def _finding(name: str, seen: Seen, reference: Reference) -> Finding:
    if not len(seen):
        return Finding(name, 0, None, None, None, (None, None, None))
    within_earth = None
    if reference.earth is not None:
        space = Space.of(np.asarray(reference.earth.mean), np.asarray(reference.earth.covariance))
        within_earth = space.share_within_earth(space.project(seen.points))
    mean, _ = seen.bands
    shift = (mean - reference.band_mean) / np.maximum(reference.band_std, 1.0)  # of 255 levels
    return Finding(
        scene=name,
        windows=len(seen),
        within_training=float((reference.training.distances(seen.points) <= reference.farthest).mean()),
        within_earth=within_earth,
        low_confidence=seen.low_confidence(reference.confidence),
        band_shift=tuple(float(each) for each in shift),
    )


def view(watched: Watched) -> View:
    """What was found, for the command line; the last row is of all scenes."""
    findings = [*watched.scenes, watched.all]
    columns = ["scene", "windows", "training %", "Earth %", "low conf. %", "band 1", "2", "3", "verdict"]
    rows = [
        [
            each.scene,
            each.windows,
            *map(_per_cent, (each.within_training, each.within_earth, each.low_confidence)),
            *("–" if shift is None else f"{shift:+.1f}" for shift in each.band_shift),
            each.verdict,
        ]
        for each in findings
    ]
    table = TextTable(
        columns,
        rows,
        title="within styles; shift of bands in standard deviations of the training's",
        numbers=columns[1:-1],
        spare=("3", "2", "band 1", "windows", "Earth %"),
        sections={len(rows) - 2},
    )
    flat = [facts(each) for each in findings]
    return View(table, flat, {"all": flat[-1], "scenes": flat[:-1], "errors": list(map(str, watched.errors))})


def _per_cent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}"


def facts(finding: Finding) -> dict[str, Any]:
    """A finding as one flat row, for CSV and JSON."""
    row = asdict(finding)
    shifts = {f"band_{place}_shift": each for place, each in enumerate(row.pop("band_shift"), 1)}
    return row | shifts | {"verdict": finding.verdict}


def _write(
    out_dir: Path,
    model: str,
    meta: dict[str, Any],
    reference: Reference,
    all_scenes: Finding,
    scenes: Sequence[Finding],
    errors: Sequence[InputError],
) -> list[Path]:
    recipe, when = meta.get("recipe"), datetime.now(UTC).isoformat(timespec="seconds")
    table, page = out_dir / TABLE_NAME, out_dir / PAGE_NAME
    both = {"sha256": meta["sha256"], "when": when, "limit": LIMIT}
    found = {
        "model": model,
        "recipe": recipe,
        "drifts": all_scenes.drifts,
        "farthest": reference.farthest,
        "confidence": reference.confidence,
        "all": facts(all_scenes),
        "scenes": [facts(each) for each in scenes],
        "errors": [str(error) for error in errors],
    }
    write_json(table, both | found)
    shown = {
        "model": recipe or model,
        "reference": reference,
        "within": WITHIN,
        "low": LOW,
        "all": all_scenes,
        "scenes": scenes,
        "errors": errors,
    }
    write_text(page, render("watch", TEMPLATE, both | shown))
    return [table, page]


def _track(meta: dict[str, Any], found: Finding, written: Sequence[Path]) -> None:
    """A point of the curves of the model's watch; a server that is away costs a warning."""
    recipe = meta.get("recipe") or "model"
    tags = {"step": "watch", "recipe": recipe, "drift": str(found.drifts).lower()}
    row = facts(found) | {"drifts": found.drifts}
    numbers = {
        metric_name("watch", key): value for key, value in row.items() if isinstance(value, int | float)
    }
    with start_run(f"watch {recipe}", key=digest(["watch", meta["sha256"]]), tags=tags) as run:
        run.log_metrics(numbers, int(time.time()))
        for path in written:
            run.log_artifact(path, "watch")
