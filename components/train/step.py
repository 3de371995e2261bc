"""Trains the model of one recipe: in one process or in many, resumable at any iteration, tracked."""

import contextlib
import csv
import logging
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path

import torch
from pydantic_core import to_jsonable_python

from crossearth.components.runtime import trial
from crossearth.components.runtime.code import code_digest
from crossearth.components.runtime.job_status import JobStatus
from crossearth.components.runtime.memory import enough_memory
from crossearth.components.runtime.params import Params, nested
from crossearth.components.runtime.places import DOMAINS, EARTH_STYLES, MODELS, TRIALS
from crossearth.components.runtime.processes import Processes, join_processes
from crossearth.components.runtime.tracking import KEY_TAG, Run, connect, find_run, start_run, tracking_uri
from crossearth.components.runtime.version import git_revision, torch_version
from crossearth.components.train.loop import Training
from crossearth.components.train.setup import Job, TrainConfig, flat, make_network, prepare
from crossearth.components.train.state import Checkpoints
from crossearth.components.watch.reference import make_reference, write_reference
from crossearth.data.catalog.domains import STATES_SUFFIX, TIMING_SUFFIX, Catalog, Recipe
from crossearth.data.common.errors import InputError, without_credentials
from crossearth.data.common.files import csv_text, digest, sha256_file, write_json, write_text
from crossearth.data.style.earth import style_engine
from crossearth.model.method import described
from crossearth.model.weights import checkpoint

CURVES_NAME = "curves.csv"
MODEL_TAG = "model_sha256"  # a run that has it has all of the training

log = logging.getLogger(__name__)


def config_of(params: Params, recipe: Recipe, seed: int | None = None) -> TrainConfig:
    """The parameters of a recipe's training, with the seed of all steps or another one."""
    config = params.config(TrainConfig, "train", recipe.name)
    return replace(config, seed=params.seed if seed is None else seed)


def place(params: Params, recipe: Recipe, seed: int | None = None) -> tuple[TrainConfig, Path]:
    """Parameters and folder of a recipe's training in the working folder.

    A trial of a tuning (`runtime.trial`) has its own values, and a folder of its own: others of the same
    recipe run at the same time.

    Raises:
        InputError: wrong parameters; a trial of an unknown one or with a wrong value, or one without tiles
            held out that it could be scored on.
    """
    config, folder = config_of(params, recipe, seed), MODELS
    values = trial.trial_values()
    if values:
        folder = TRIALS / digest(values)[:8]
        try:
            config = config_of(params.with_values(recipe.name, nested(values)), recipe, seed)
        except InputError as error:
            raise InputError(str(error), where=f"the trial's variables ${trial.PREFIX}...") from error
        expect_score(config, f"${trial.variable('held_out_share')}")
    return config, folder / f"{recipe.name}{params.seed_suffix(config.seed)}"


def expect_score(config: TrainConfig, where: object) -> None:
    """Refuses a training whose parameters nothing could be chosen by.

    Raises:
        InputError: it holds no tiles of its source out.
    """
    if not config.held_out_share:
        raise InputError(
            "held_out_share is 0: there is no score to choose by, and a target must not decide",
            where=where,
            expected="held_out_share above 0, for example 0.2: the share of the source's tiles, in whole "
            "scenes, that are scored and not trained on",
            next_step="write train: {held_out_share: 0.2} into the grid's file",
        )


def run(params: Params, catalog: Catalog, name: str, seed: int | None = None) -> Path:
    """Trains the recipe `name` in the working folder; another seed than params.yaml's stands beside it."""
    recipe = catalog.recipe(name)
    config, out_dir = place(params, recipe, seed)
    return train(recipe, catalog, DOMAINS, out_dir, config, EARTH_STYLES)


def train(
    recipe: Recipe,
    catalog: Catalog,
    domains_dir: Path,
    out_dir: Path,
    config: TrainConfig | None = None,
    styles: Path | None = None,
) -> Path:
    """Trains the model of `recipe` on its source's train split.

    Under torchrun every process takes its share of each batch and the first one writes. An interrupted
    training (SIGTERM, SIGINT, a crash) leaves its states in `<out_dir>.checkpoints`, from where the next call
    goes on; they are removed when the model is written. A model of the same inputs in `out_dir` stays, and is
    tracked where the server was away at its end.

    Args:
        out_dir: the model's folder.
        styles: Earth statistics, needed by ablations with style.

    Returns:
        `out_dir`, with `model.safetensors`, `model.json`, `curves.csv` and, where the source has tiles
        enough, `reference.json`, which `watch` holds new scenes against.

    Raises:
        InputError: source not ingested, empty, with tiles smaller than the crop or without some class;
            backbone or styles absent or wrong; another training of this recipe is running; an unfinished one
            with other inputs, code or torch; a loss that is not finite three times in a row (with the tiles),
            weights that are not; out of memory; no space for checkpoints.
        SystemExit: 143 after SIGTERM, 130 after SIGINT; the state was saved.
    """
    job = prepare(recipe, catalog, domains_dir, config or TrainConfig(), styles)
    out_dir = Path(out_dir)
    with (
        join_processes() as processes,
        processes.file_lock(out_dir, f"a training of {recipe.name}"),
        JobStatus(processes.is_main_process) as status,
    ):
        checkpoints = Checkpoints(
            out_dir.with_name(f"{out_dir.name}{STATES_SUFFIX}"), job.config.keep_checkpoints, job.identity
        )
        if processes.broadcast(processes.is_main_process and _is_done(out_dir, job)):
            log.info("%s: trained already from the same inputs", out_dir)
            if processes.is_main_process:
                checkpoints.clear()
                _send_again(out_dir, job)
                status.say(100, 0, _score(out_dir))
            return out_dir
        with _memory(job, processes):
            _run(job, processes, checkpoints, out_dir, status)
        if processes.is_main_process:
            checkpoints.clear()
            status.say(100, 0, _score(out_dir))
    return out_dir


def _score(out_dir: Path) -> dict[str, float]:
    """What a model is chosen by, if tiles of its source were held out."""
    found = checkpoint.read_meta(out_dir)["held_out_score"]
    return {} if found is None else {trial.METRIC: found}


def _run(job: Job, processes: Processes, checkpoints: Checkpoints, out_dir: Path, status: JobStatus) -> None:
    network = make_network(job)
    if processes.size > 1:
        processes.assert_equal(
            {
                "the code": code_digest("train"),
                "the version of torch": torch_version(),
                "the configuration": digest(job.identity),
                "the initial weights": checkpoint.state_digest(network.state_dict()),
            }
        )
    training = Training(job, network, processes, checkpoints)
    tracking = _tracking(job) if processes.is_main_process else contextlib.nullcontext()
    with training.loading() as batches, tracking as run:
        training.fit(batches, run, status)
        if processes.is_main_process:
            _write_model(out_dir, training)
            if run is not None:
                _log_model(run, out_dir, job)


@contextlib.contextmanager
def _memory(job: Job, processes: Processes) -> Iterator[None]:
    """If memory runs out inside this block, the error names the fields to change."""
    config, where = job.config, f"recipe {job.recipe.name}"
    used = (
        f"{processes.device}: network {config.network}, crop_px {config.crop_px}, "
        f"batch_size {config.batch_size}, micro_batch {config.micro_batch}, precision {config.precision}"
    )
    same = {
        "micro_batch: 1": config.micro_batch != 1 and config.batch_size > processes.size,
        "activation_checkpointing: true": not config.activation_checkpointing,
        "tasks.shared_pass: false": config.tasks.shared_pass,
    }
    left = ", ".join(name for name, helps in same.items() if helps)
    anew = "a lower crop_px" if config.precision == "bfloat16" else "precision: bfloat16 or a lower crop_px"
    next_step = (f"set {left} (the result stays the same), or " if left else "") + f"start anew with {anew}"
    with enough_memory(where, used, next_step):
        try:
            yield
        except BrokenProcessPool as error:
            raise InputError(
                f"one of {config.workers} workers was ended",
                where=where,
                next_step="if the system ran out of memory, lower workers (the result stays the same)",
            ) from error


def _is_done(out_dir: Path, job: Job) -> bool:
    if not (out_dir / checkpoint.META_NAME).exists():
        return False
    try:
        meta = checkpoint.read_meta(out_dir)
    except InputError as error:
        log.warning("trained anew, for the model that is here cannot be read: %s", error)
        return False
    return meta.get("input_hash") == job.input_hash and meta["sha256"] == sha256_file(
        out_dir / checkpoint.WEIGHTS_NAME
    )


@contextlib.contextmanager
def _tracking(job: Job) -> Iterator[Run]:
    tags = {
        "step": "train",
        "recipe": job.recipe.name,
        "settings": ", ".join(setting.abbr for setting in job.recipe.settings),
        "git_revision": git_revision(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "manifest_digests": f"{job.manifest.domain}/{job.manifest.split}: {job.manifest.digest}",
        "seed": str(job.config.seed),
        "selection": job.config.selection,
        "method": described(to_jsonable_python(job.config)),
        "backbone_licence": job.pretrained.licence if job.pretrained else "",
        "provenance": job.manifest.provenance,
    }
    with start_run(job.recipe.name, key=job.input_hash, tags=tags, params=flat(asdict(job.config))) as run:
        source, name = job.manifest, f"{job.manifest.domain} {job.manifest.split}"
        run.log_dataset(name, source.digest, source.root, "training", len(source))
        yield run


def _log_model(run: Run, out_dir: Path, job: Job) -> None:
    """Sends the model, and then the tags by which an evaluation finds the run and `_is_tracked` the model."""
    run.log_artifact(out_dir, "model")
    meta = checkpoint.read_meta(out_dir)
    of_parts = ", ".join(str(part["threads"]) for part in meta["computed"])  # between stops
    run.set_tags({KEY_TAG: job.input_hash, MODEL_TAG: meta["sha256"], "threads": of_parts})


def _send_again(out_dir: Path, job: Job) -> None:
    """Logs a finished training again if the server missed its end; some points are then logged twice."""
    try:
        if _is_tracked(out_dir, job):
            return
        with (out_dir / CURVES_NAME).open(newline="", encoding="utf-8") as file:
            points = [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]
        with _tracking(job) as run:
            for point in points:
                run.log_metrics(point, int(point.pop("iteration")))
            _log_model(run, out_dir, job)
    except Exception as error:  # tracking may fail in any way, and what is trained is trained
        log.warning(
            "%s: not tracked, the same command tries again: %s", out_dir, without_credentials(str(error))
        )


def _is_tracked(out_dir: Path, job: Job) -> bool:
    """Whether the server has all of the training."""
    tags = {KEY_TAG: job.input_hash, MODEL_TAG: checkpoint.read_meta(out_dir)["sha256"]}
    return find_run(connect(tracking_uri()), tags) is not None


def _write_model(out_dir: Path, training: Training) -> None:
    job = training.job
    network, iteration = training.selected()
    parameters = to_jsonable_python(job.config)
    earth = job.styler.earth if job.styler else None
    meta = {
        "classes": list(job.class_set.classes),
        "palette": list(job.class_set.palette),
        "provenance": job.manifest.provenance,
        "recipe": job.recipe.name,
        "source": job.recipe.source,
        "reading": asdict(job.manifest.reading),
        "class_set": job.class_set.name,
        "settings": [setting.abbr for setting in job.recipe.settings],
        "selection": job.config.selection,
        "iteration": iteration,
        "skipped": training.skipped,
        "held_out_score": training.held_out_score(),
        "seed": job.config.seed,
        "input_hash": job.input_hash,
        "code": job.identity["code"],
        "torch": job.identity["torch"],
        "parameters": {
            "trained": sum(value.numel() for value in network.trained_parameters().values()),
            "all": sum(value.numel() for value in network.parameters()),
        },
        "computed": training.computed,
        "manifest": job.manifest.digest,
        "styles": earth.digest if earth else "",
        "method": described(parameters),
        "pretrained": asdict(job.pretrained) if job.pretrained else None,
        "train": parameters,
    }
    engine = job.styler.engine if job.styler else style_engine("spectral").to(training.processes.device)
    with training.predicting(), torch.inference_mode():
        crop_px, key = job.config.crop_px, job.input_hash
        reference = make_reference(job.manifest, crop_px, engine, earth, network, key)
    write_text(out_dir / CURVES_NAME, csv_text(training.curves))
    write_reference(out_dir, reference)
    checkpoint.save(network, out_dir, meta, job.config.backbones_dir)
    # beside the model, whose bytes are those of every training with the same inputs
    write_json(out_dir.with_name(f"{out_dir.name}{TIMING_SUFFIX}"), {"seconds": round(training.seconds, 1)})
