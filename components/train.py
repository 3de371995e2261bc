"""Trains the model of one recipe: in one process or in many, resumable at any iteration, tracked."""

import contextlib
import csv
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crossearth.components.processes import Processes, join_processes
from crossearth.components.tracking import Run, start_run
from crossearth.components.training_loop import Training
from crossearth.components.training_setup import Job, TrainConfig, make_network, plain, prepare
from crossearth.components.training_state import Checkpoints
from crossearth.components.version import git_revision
from crossearth.data.domains import Catalog, Recipe
from crossearth.data.errors import InputError
from crossearth.data.files import atomic_path, code_version, digest
from crossearth.model import checkpoint

CURVES_NAME = "curves.csv"

log = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    catalog: Catalog,
    domains_dir: Path,
    out_dir: Path,
    config: TrainConfig | None = None,
    styles: Path | None = None,
    style_weights_dir: Path | None = None,
) -> Path:
    """Trains the model of `recipe` on its source's train split.

    Under torchrun every process takes its share of each batch and the first one writes. An interrupted
    training (SIGTERM, SIGINT, a crash) leaves its states in `<out_dir>.checkpoints`, from where the next call
    goes on; they are removed when the model is written. A model of the same inputs in `out_dir` stays.

    Args:
        recipe: source domain and class set.
        catalog: has them.
        domains_dir: ingested domains.
        out_dir: the model's folder.
        config: defaults if None.
        styles: Earth statistics, needed by ablations with style.
        style_weights_dir: folder of the style networks' weights, for engine "ghiasi".

    Returns:
        `out_dir`, with `model.safetensors`, `model.json` and `curves.csv`.

    Raises:
        InputError: source not ingested, empty, with tiles smaller than the crop or without some class;
            backbone or styles absent or wrong; an unfinished training with other inputs; a loss that is not
            finite three times in a row (with the tiles); out of memory; no space for checkpoints.
        SystemExit: 143 after SIGTERM, 130 after SIGINT; the state was saved.
    """
    job = prepare(recipe, catalog, domains_dir, config or TrainConfig(), styles, style_weights_dir)
    out_dir = Path(out_dir)
    with join_processes() as processes:
        checkpoints = Checkpoints(
            out_dir.with_name(f"{out_dir.name}.checkpoints"), job.config.keep_checkpoints, job.identity
        )
        if processes.share_first(_is_done(out_dir, job)):
            log.info("%s: trained already from the same inputs", out_dir)
            if processes.is_first:
                checkpoints.clear()
            return out_dir
        network = make_network(job)
        if processes.size > 1:
            processes.refuse_differing(
                {
                    "the configuration": digest(job.identity),
                    "the code": code_version(),
                    "the initial weights": checkpoint.state_digest(network.state_dict()),
                }
            )
        training = Training(job, network, processes, checkpoints)
        with training.loading() as batches, _tracking(job, processes) as run:
            training.fit(batches, run)
            if processes.is_first:
                _write_model(out_dir, training)
                if run is not None:
                    run.log_artifact(out_dir, "model")
        if processes.is_first:
            checkpoints.clear()
    return out_dir


def _is_done(out_dir: Path, job: Job) -> bool:
    try:
        return checkpoint.read_meta(out_dir).get("input_hash") == job.input_hash
    except InputError:
        return False


@contextlib.contextmanager
def _tracking(job: Job, processes: Processes) -> Iterator[Run | None]:
    """The MLflow run, in the first process."""
    if not processes.is_first:
        yield None
        return
    tags = {
        "step": "train",
        "recipe": job.recipe.name,
        "settings": ", ".join(setting.abbr for setting in job.recipe.settings),
        "git_revision": git_revision(),
        "manifest_digests": f"{job.manifest.domain}/{job.manifest.split}: {job.manifest.digest}",
        "seed": str(job.config.seed),
        "selection": job.config.selection,
        "provenance": job.manifest.provenance,
    }
    with start_run(job.recipe.name, key=job.input_hash, tags=tags, params=_flat(asdict(job.config))) as run:
        yield run


def _write_model(out_dir: Path, training: Training) -> None:
    job = training.job
    network, iteration = training.selected()
    meta = {
        "classes": list(job.class_set.classes),
        "palette": list(job.class_set.palette),
        "provenance": job.manifest.provenance,
        "recipe": job.recipe.name,
        "source": job.recipe.source,
        "class_set": job.class_set.name,
        "settings": [setting.abbr for setting in job.recipe.settings],
        "selection": job.config.selection,
        "iteration": iteration,
        "skipped": training.skipped,
        "held_out_score": training.best_score if job.held_rows else None,
        "seed": job.config.seed,
        "input_hash": job.input_hash,
        "code": code_version(),
        "manifest": job.manifest.digest,
        "styles": job.styler.earth.digest if job.styler else "",
        "train": plain(asdict(job.config)),
    }
    with atomic_path(out_dir / CURVES_NAME) as partial:
        partial.write_text(_table(training.curves), encoding="utf-8")
    checkpoint.save(network, out_dir, meta, job.config.backbones_dir)


def _table(points: Sequence[Mapping[str, float]]) -> str:
    """CSV of the curves; a point without a value has an empty cell."""
    columns = list(dict.fromkeys(name for point in points for name in point))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    return text.getvalue()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names, as MLflow's parameters are."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat
