"""Trains the model of one recipe: in one process or in many, resumable at any iteration, tracked."""

import contextlib
import csv
import io
import logging
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from PIL import ImageColor
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader, Sampler

from crossearth.components.processes import Processes, join_processes
from crossearth.components.tracking import Run, start_run
from crossearth.components.training_state import Checkpoints, State
from crossearth.components.version import git_revision
from crossearth.data.augment import Augmentation
from crossearth.data.catalog import Catalog, ClassSet, Recipe
from crossearth.data.config import load_config
from crossearth.data.dataset import Batch, TileDataset, TrainingStream
from crossearth.data.errors import InputError
from crossearth.data.files import atomic_path, code_version, digest, sha256_file
from crossearth.data.labels import IGNORE
from crossearth.data.manifest import Manifest, held_out, read_manifest
from crossearth.data.style import EarthStyles, StyleConfig, style_engine
from crossearth.model import checkpoint
from crossearth.model.backbone import fit_state
from crossearth.model.crossearth import CrossEarth, NetworkConfig, build, large_config, tiny_config
from crossearth.model.inference import predict_labels
from crossearth.model.metrics import confusion_matrix
from crossearth.model.training import (
    BRANCHES,
    Ablation,
    MultiTask,
    Normalisers,
    Schedule,
    Styler,
    TaskConfig,
    learning_rate,
    parameter_groups,
)

NONFINITE_ALLOWED = 2  # steps in a row that are skipped; one more stops the training
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
CURVES_NAME = "curves.csv"
BACKBONE_CACHE = "backbones"
# how a training is computed, not what it computes: these may change between a kill and the resume
RUNTIME_FIELDS = (
    "micro_batch",
    "activation_checkpointing",
    "workers",
    "backbones_dir",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "panels_every",
)
POSITIVE_FIELDS = (
    "iterations",
    "batch_size",
    "micro_batch",
    "schedule_iterations",
    "validate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "panels_every",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """Numbers of a training; the defaults are the method's at 512 px (method.md section 3).

    At 1024 px the method has crop_px 1024, lr 6e-5 and schedule "warmup-poly".

    Attributes:
        network: "large" is the paper's, "tiny" one that a CPU trains from scratch.
        sizes: changes of single sizes of it, by the names of `NetworkConfig`.
        backbone: pretrained ViT, needed where it is frozen: a file, an address s3://bucket/key, or a name of
            timm's hub.
        backbones_dir: store a backbone there, once for all models, instead of inside each model's file.
        ablation: "full" is the method; "rein" the segmentation loss alone; the others lie between.
        iterations: optimiser steps.
        batch_size: crops per optimiser step, over all processes.
        micro_batch: crops per forward pass of one process, at most; gradients are accumulated. None = all.
        crop_px: side of the training crops, pixels.
        scale: least and largest short side of a resized tile, as a multiple of `crop_px`.
        photometric: whether colours are distorted.
        lr: base learning rate.
        schedule: "poly" (power 0.9), or "warmup-poly".
        schedule_iterations: iteration at which poly reaches 0; None = `iterations`.
        warmup_iterations: of "warmup-poly".
        weight_decay: of AdamW.
        style: numbers of Earth-Style Injection.
        tasks: numbers of the losses.
        precision: "bf16" runs the network under autocast; losses and parameters stay float32.
        activation_checkpointing: blocks are run again in the backward pass, not kept: less memory, more time.
        compile: the backbone's blocks go through torch.compile.
        workers: processes that read and augment; 0 = none beside the training.
        held_out_share: least share of the source's tiles, by whole scenes, that are not trained on; 0 = none.
        validate_every: iterations between scores on the held-out tiles.
        selection: "last" iterate (the authors'), or "best-source": best headline score on the held-out tiles.
        checkpoint_every: iterations between saved states.
        keep_checkpoints: how many of the last states are kept.
        log_every: iterations whose mean is one point of a curve.
        panels_every: iterations between sample pictures.
        allow_absent_classes: whether a class of the class set may be absent from the source's tiles.
        seed: of initial weights, order, augmentation, masks, styles and sampled points.
    """

    network: Literal["large", "tiny"] = "large"
    sizes: dict[str, Any] = field(default_factory=dict)
    backbone: str | None = None
    backbones_dir: Path | None = None
    ablation: Ablation = "full"
    iterations: int = 30_000
    batch_size: int = 1
    micro_batch: int | None = None
    crop_px: int = 512
    scale: tuple[float, float] = (0.5, 2.0)
    photometric: bool = True
    lr: float = 1e-4
    schedule: Schedule = "poly"
    schedule_iterations: int | None = 40_000
    warmup_iterations: int = 10_000
    weight_decay: float = 0.05
    style: StyleConfig = field(default_factory=StyleConfig)
    tasks: TaskConfig = field(default_factory=TaskConfig)
    precision: Literal["float32", "bf16"] = "bf16"
    activation_checkpointing: bool = False
    compile: bool = False
    workers: int = 4
    held_out_share: float = 0.1
    validate_every: int = 1000
    selection: Literal["last", "best-source"] = "last"
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    log_every: int = 50
    panels_every: int = 1000
    allow_absent_classes: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("workers", "seed", "warmup_iterations", *POSITIVE_FIELDS):
            value, least = getattr(self, name), int(name in POSITIVE_FIELDS)
            if value is not None and value < least:
                raise InputError(f"{name}: {value} is too small", expected=f"at least {least}")
        if not self.lr > 0 or not self.weight_decay >= 0:
            raise InputError(
                f"lr {self.lr}, weight_decay {self.weight_decay}", expected="lr > 0, weight_decay >= 0"
            )
        if not 0 <= self.held_out_share < 1:
            raise InputError(f"held_out_share: {self.held_out_share}", expected="a number in [0, 1)")
        if self.selection == "best-source" and not self.held_out_share:
            raise InputError("selection: best-source needs held-out tiles", expected="held_out_share > 0")
        if self.schedule == "warmup-poly" and self.poly_end <= self.warmup_iterations:
            raise InputError(
                f"warmup_iterations: {self.warmup_iterations} leaves nothing of {self.poly_end} iterations"
            )
        if BRANCHES[self.ablation].mim and self.tasks.mask_block_px > self.crop_px:
            raise InputError(
                f"tasks.mask_block_px: {self.tasks.mask_block_px} is larger than a crop",
                expected=f"at most crop_px, {self.crop_px}",
            )
        Augmentation(self.crop_px, self.scale)

    @property
    def poly_end(self) -> int:
        """Iteration at which the poly schedule reaches 0."""
        return self.schedule_iterations or self.iterations

    def network_config(self, num_classes: int) -> NetworkConfig:
        """Sizes of the network, with the modules that the ablation needs.

        Raises:
            InputError: `sizes` has an unknown key or sizes that do not fit together.
        """
        base = (large_config if self.network == "large" else tiny_config)(num_classes, self.crop_px)
        branches = BRANCHES[self.ablation]
        own = {
            "geospatial": branches.geospatial,
            "masked_modelling": branches.mim,
            "num_classes": num_classes,
        }
        return load_config(NetworkConfig, asdict(base) | self.sizes | own, "sizes")


@dataclass(frozen=True)
class Job:
    """A training, resolved: everything that determines its weights."""

    recipe: Recipe
    class_set: ClassSet
    config: TrainConfig
    manifest: Manifest
    remap: tuple[int, ...]
    train_rows: list[int]
    held_rows: list[int]
    styler: Styler | None
    network_config: NetworkConfig
    backbone: Path | None
    backbone_sha256: str

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a training to be resumed."""
        values = _plain(asdict(self.config))
        chosen = {name: value for name, value in values.items() if name not in RUNTIME_FIELDS}
        return {
            **chosen,
            "recipe": self.recipe.name,
            "classes": list(self.class_set.classes),
            "manifest": self.manifest.digest,
            "styles": self.styler.earth.digest if self.styler else "",
            "backbone": self.backbone_sha256,
        }

    @property
    def input_hash(self) -> str:
        """Identity of the run: of the inputs and of the code."""
        return digest([self.identity, code_version()])


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


def prepare(
    recipe: Recipe,
    catalog: Catalog,
    domains_dir: Path,
    config: TrainConfig,
    styles: Path | None = None,
    style_weights_dir: Path | None = None,
) -> Job:
    """Resolves and checks the inputs of a training; see `train` for what is refused."""
    source, class_set = catalog.domain(recipe.source), catalog.class_sets[recipe.class_set]
    manifest = read_manifest(catalog.domain_dir(domains_dir, source.name), "train")
    remap = catalog.remap(source.class_set, class_set.name)
    TileDataset(manifest, remap)
    smallest_px = min(min(row["width"], row["height"]) for row in manifest.rows)
    if config.crop_px > smallest_px:
        raise InputError(
            f"crop_px: {config.crop_px} is larger than the tiles of {source.name} ({smallest_px} px)",
            where=manifest.root,
            expected=f"at most {smallest_px}",
        )
    train_rows: list[int] = list(range(len(manifest)))
    held_rows: list[int] = []
    if config.held_out_share:
        train_rows, held_rows = held_out(manifest, config.held_out_share)
    _check_classes(manifest, train_rows, remap, class_set, config.allow_absent_classes)
    styler = None
    if BRANCHES[config.ablation].style:
        if styles is None:
            raise InputError(
                f"ablation {config.ablation!r} needs Earth styles", next_step="run `crossearth styles fit`"
            )
        engine = style_engine(config.style.engine, style_weights_dir)
        styler = Styler(engine, EarthStyles.load(styles, config.style.engine), config.style)
    network_config = config.network_config(len(class_set.classes))
    if network_config.frozen_backbone and config.backbone is None:
        raise InputError(
            "backbone: a frozen backbone needs pretrained weights",
            where=f"recipe {recipe.name}",
            next_step="set `backbone` to a DINOv2 ViT, or train it too: `sizes: {frozen_backbone: false}`",
        )
    backbone = _backbone(config, Path(domains_dir).parent / BACKBONE_CACHE)
    return Job(
        recipe,
        class_set,
        config,
        manifest,
        remap,
        train_rows,
        held_rows,
        styler,
        network_config,
        backbone,
        sha256_file(backbone) if backbone else "",
    )


def _backbone(config: TrainConfig, cache_dir: Path) -> Path | None:
    if config.backbone is None:
        return None
    from crossearth.model.release import fetch_backbone

    return fetch_backbone(config.backbone, cache_dir)


def _check_classes(
    manifest: Manifest, rows: Sequence[int], remap: Sequence[int], class_set: ClassSet, allow_absent: bool
) -> None:
    pixels = np.zeros(IGNORE + 1, dtype=np.int64)
    for index in rows:
        np.add.at(pixels, list(remap), manifest.rows[index]["class_pixels"])
    absent = [name for name, count in zip(class_set.classes, pixels, strict=False) if not count]
    if absent and not allow_absent:
        raise InputError(
            f"no pixel of {', '.join(absent)} among the {len(rows)} training tiles of {manifest.domain}",
            where=manifest.root,
            expected=f"all classes of class set {class_set.name}",
            next_step="set allow_absent_classes: true if that is meant; they will never be predicted",
        )


def make_network(job: Job) -> CrossEarth:
    """The network at its first iteration: seeded, with the pretrained backbone where one is given."""
    torch.manual_seed(job.config.seed)
    network = build(job.network_config)
    if job.backbone is not None:
        from crossearth.model.release import read_backbone

        state = fit_state(read_backbone(job.backbone), network.backbone, job.backbone)
        network.backbone.load_state_dict(state)
    network.activation_checkpointing = job.config.activation_checkpointing
    return network


def _is_done(out_dir: Path, job: Job) -> bool:
    try:
        return checkpoint.read_meta(out_dir).get("input_hash") == job.input_hash
    except InputError:
        return False


class Positions(Sampler[list[int]]):
    """Micro-batches of sample positions of one process, from an iteration on.

    Iteration i takes positions i*batch_size .. (i+1)*batch_size - 1 of the stream, in parts by rank.
    """

    def __init__(
        self, first: int, last: int, batch_size: int, micro_batch: int, rank: int, size: int
    ) -> None:
        self.iterations = range(first, last)
        self.batch_size, self.micro_batch = batch_size, micro_batch
        self.share = batch_size // size
        self.offset = rank * self.share

    @property
    def per_iteration(self) -> int:
        """Micro-batches of one iteration."""
        return -(-self.share // self.micro_batch)

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in self.iterations:
            first = iteration * self.batch_size + self.offset
            for start in range(0, self.share, self.micro_batch):
                yield list(range(first + start, first + min(start + self.micro_batch, self.share)))


@dataclass
class Pace:
    """Time since the last point of the curves, seconds."""

    steps: int = 0
    waited: float = 0.0
    began: float = field(default_factory=time.perf_counter)


class Training:
    """A training in progress: parameters, optimiser, iteration; steps, saves and scores itself."""

    def __init__(self, job: Job, network: CrossEarth, processes: Processes, checkpoints: Checkpoints) -> None:
        self.job, self.config, self.processes, self.checkpoints = job, job.config, processes, checkpoints
        if job.config.batch_size % processes.size:
            raise InputError(
                f"batch_size: {job.config.batch_size} crops cannot be shared by {processes.size} processes",
                expected=f"a multiple of {processes.size}",
            )
        self.network = network.to(processes.device).train()
        self.optimiser = torch.optim.AdamW(
            parameter_groups(network, job.config.weight_decay), lr=job.config.lr, fused=True
        )
        self.iteration, self.skipped, self.nonfinite = 0, 0, 0
        self.best_score = -1.0
        self.curves: list[dict[str, float]] = []
        self.steps: list[dict[str, float]] = []  # since the last point of the curves
        self._resume()
        if job.config.compile:
            for block in network.backbone.blocks:
                block.compile()
        if job.styler is not None:
            job.styler.engine.to(processes.device)
        self.multi_task = MultiTask(
            network, BRANCHES[job.config.ablation], job.config.tasks, job.styler, job.config.seed
        )
        self.loss = self._wrapped()
        self.stream = TrainingStream(
            TileDataset(job.manifest, job.remap, job.train_rows),
            Augmentation(job.config.crop_px, job.config.scale, photometric=job.config.photometric),
            job.config.seed,
        )

    def _wrapped(self) -> nn.Module:
        if self.processes.size == 1:
            return self.multi_task
        trained = self.network.trained_parameters()
        frozen = [name for name, _ in self.network.named_parameters() if name not in trained]
        frozen += [name for name, _ in self.network.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            self.multi_task, [f"network.{name}" for name in frozen]
        )
        return DistributedDataParallel(self.multi_task, broadcast_buffers=False)

    def _state(self) -> dict[str, Tensor]:
        """Trained parameters and the optimiser's moments, by name."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.network.trained_parameters().items():
            tensors[f"parameter.{name}"] = parameter
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def _load(self, state: State) -> None:
        for name, parameter in self.network.trained_parameters().items():
            with torch.no_grad():
                parameter.copy_(state.tensors[f"parameter.{name}"])
            moments = {
                key: state.tensors[f"{key}.{name}"].to(parameter.device)
                for key in ("exp_avg", "exp_avg_sq", "step")
                if f"{key}.{name}" in state.tensors
            }
            if moments:
                self.optimiser.state[parameter] = moments

    def _resume(self) -> None:
        state = self.checkpoints.latest()
        if state is not None:
            self._load(state)
            about = state.about
            self.iteration, self.skipped, self.nonfinite = (
                about[key] for key in ("iteration", "skipped", "nonfinite")
            )
            self.best_score, self.curves, self.steps = (
                about[key] for key in ("best_score", "curves", "steps")
            )
            if about["processes"] != self.processes.size and self.processes.is_first:
                log.warning(
                    "resumed on %d processes, started on %d: the same crops, summed in another order",
                    self.processes.size,
                    about["processes"],
                )
        self.processes.refuse_differing({"the iteration to resume from": str(self.iteration)})

    def save(self) -> None:
        """Writes the state, in the first process."""
        if self.processes.is_first:
            about = {
                "skipped": self.skipped,
                "nonfinite": self.nonfinite,
                "best_score": self.best_score,
                "curves": self.curves,
                "steps": self.steps,
                "processes": self.processes.size,
            }
            self.checkpoints.save(self.iteration, self._state(), about)

    @contextlib.contextmanager
    def loading(self) -> Iterator[Iterator[list[Batch]]]:
        """Batches from the iteration on, each a list of micro-batches; workers are started here."""
        config, processes = self.config, self.processes
        share = config.batch_size // processes.size
        positions = Positions(
            self.iteration,
            config.iterations,
            config.batch_size,
            min(config.micro_batch or share, share),
            processes.rank,
            processes.size,
        )
        loader = DataLoader(
            self.stream,
            batch_sampler=positions,
            num_workers=config.workers,
            pin_memory=processes.device.type == "cuda",
            prefetch_factor=4 if config.workers else None,
            worker_init_fn=_ignore_signals,
        )
        micro_batches = iter(loader)
        yield iter(
            lambda: [each for _, each in zip(range(positions.per_iteration), micro_batches, strict=False)], []
        )

    def fit(self, batches: Iterator[list[Batch]], run: Run | None) -> None:
        """Runs the remaining iterations; see `train` for what it raises."""
        pace = Pace()
        with _Interrupts() as interrupts, self._progress() as progress:
            task = progress.add_task(
                self.job.recipe.name, total=self.config.iterations, completed=self.iteration
            )
            while self.iteration < self.config.iterations:
                began = time.perf_counter()
                batch = next(batches)
                pace.waited += time.perf_counter() - began
                stop = self._iterate(batch, interrupts.received)
                pace.steps += 1
                done = self.iteration == self.config.iterations
                if self.iteration % self.config.log_every == 0 or done:
                    self._record(pace, run)
                    pace = Pace()
                if self.job.held_rows and (self.iteration % self.config.validate_every == 0 or done):
                    self._validate(run)
                if run is not None and (self.iteration % self.config.panels_every == 0 or done):
                    run.log_image(self._panel(batch[0]), f"panels/{self.iteration:06d}.png")
                progress.update(task, completed=self.iteration)
                if stop or (self.iteration % self.config.checkpoint_every == 0 and not done):
                    self.save()
                if stop:
                    raise SystemExit(EXIT_CODES[signal.Signals(stop)])

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=Console(stderr=True),
            disable=not (self.processes.is_first and sys.stderr.isatty()),
        )

    def _iterate(self, batch: list[Batch], signal_number: int) -> int:
        """One optimiser step, or one that is skipped; returns the signal that any process received, or 0."""
        try:
            terms = self._backward(batch)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise self._out_of_memory() from error
            raise
        names = sorted(terms)
        *values, signals = self.processes.sum([terms[name] for name in names] + [float(signal_number)])
        norm = float(get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None]))
        if np.isfinite([*values, norm]).all():
            self.nonfinite = 0
            for group in self.optimiser.param_groups:
                group["lr"] = self._lr()
            self.optimiser.step()
            losses = {f"loss_{name}": value for name, value in zip(names, values, strict=True)}
            self.steps.append({**losses, "loss": sum(values), "gradient_norm": norm})
        else:
            self._skip()
        self.optimiser.zero_grad()
        self.iteration += 1
        # the sum says that a signal came to some process, not which
        return (signal_number or int(signal.SIGTERM)) if signals else 0

    def _backward(self, batch: list[Batch]) -> dict[str, float]:
        """Gradients of the effective batch's loss; returns this process's share of the terms."""
        device, size = self.processes.device, self.processes.size
        whole = self._normalisers(batch)
        total: dict[str, Tensor] = {}
        for number, micro in enumerate(batch):
            image, label = (
                pixels.to(device, non_blocking=True) for pixels in (micro["image"], micro["label"])
            )
            waits: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if number < len(batch) - 1 and isinstance(self.loss, DistributedDataParallel):
                waits = self.loss.no_sync()  # only the last micro-batch exchanges gradients
            with waits:
                with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                    terms = self.loss(image, label, micro["position"].tolist(), whole)
                # DistributedDataParallel averages over processes, the terms are shares of a sum
                (size * torch.stack(list(terms.values())).sum()).backward()
            for name, term in terms.items():
                total[name] = total.get(name, torch.zeros((), device=device)) + term.detach()
        return dict(zip(total, torch.stack(list(total.values())).tolist(), strict=True))

    def _normalisers(self, batch: list[Batch]) -> Normalisers:
        """Of the effective batch, over all processes."""
        no_object = self.config.tasks.segmentation.weight_no_object
        parts = [Normalisers.of(micro["label"], self.network.config.num_tokens, no_object) for micro in batch]
        return Normalisers(*self.processes.sum([float(sum(column)) for column in zip(*parts, strict=True)]))

    def _lr(self) -> float:
        config = self.config
        return learning_rate(
            self.iteration, config.lr, config.schedule, config.poly_end, config.warmup_iterations
        )

    def _skip(self) -> None:
        self.skipped += 1
        self.nonfinite += 1
        batch_size, tiles = self.config.batch_size, self.stream.tiles
        positions = range(self.iteration * batch_size, (self.iteration + 1) * batch_size)
        rows = [tiles.indices[self.stream.draw.tile(position)] for position in positions]
        tile_ids = ", ".join(self.job.manifest.rows[row]["tile_id"] for row in rows)
        log.warning(
            "iteration %d: loss or gradient is not finite, step skipped (%s)", self.iteration, tile_ids
        )
        if self.nonfinite > NONFINITE_ALLOWED:
            raise InputError(
                f"loss or gradient not finite {self.nonfinite} times in a row, last in {self.iteration}",
                where=f"tiles {tile_ids}",
                next_step="look at these tiles; lower lr, or set precision: float32",
            )

    def _out_of_memory(self) -> InputError:
        config = self.config
        return InputError(
            f"out of memory on {self.processes.device}: network {config.network}, crop_px {config.crop_px}, "
            f"batch_size {config.batch_size}, micro_batch {config.micro_batch}, precision {config.precision}",
            where=f"recipe {self.job.recipe.name}, iteration {self.iteration}",
            next_step="lower micro_batch (the result stays the same), set activation_checkpointing: true, "
            "tasks.shared_pass: false or precision: bf16, or lower crop_px",
        )

    def _record(self, pace: Pace, run: Run | None) -> None:
        """One point of the curves: means over the steps since the last one."""
        point: dict[str, float] = {"iteration": self.iteration, "lr": self.optimiser.param_groups[0]["lr"]}
        if self.steps:
            point |= {name: float(np.mean([step[name] for step in self.steps])) for name in self.steps[0]}
        point["skipped"] = self.skipped
        self.steps = []
        self.curves.append(point)
        if run is not None:
            seconds = time.perf_counter() - pace.began
            how = {
                "images_per_second": pace.steps * self.config.batch_size / seconds,
                "data_wait_share": pace.waited / seconds,
                "memory_gib": _memory_gib(self.processes.device),
            }
            run.log_metrics(point | how, self.iteration)

    def _validate(self, run: Run | None) -> None:
        """Scores the held-out tiles of the source, and keeps the parameters if they are the best so far."""
        tiles = TileDataset(self.job.manifest, self.job.remap, self.job.held_rows)
        num_classes, device = self.network.config.num_classes, self.processes.device
        confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self.network.eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            for place in range(self.processes.rank, len(tiles), self.processes.size):
                item = tiles[place]
                predicted = predict_labels(self.network, item["image"][None].to(device), batch_size=8)
                confusion += confusion_matrix(predicted[0], item["label"].to(device), num_classes)
        self.network.train()
        score = _headline(self.processes.sum_tensor(confusion), self.job.class_set)
        self.curves.append({"iteration": self.iteration, "held_out_score": score})
        if run is not None:
            run.log_metrics({"held_out_score": score}, self.iteration)
        if score > self.best_score:
            self.best_score = score
            if self.processes.is_first:
                trained = {f"parameter.{k}": v for k, v in self.network.trained_parameters().items()}
                self.checkpoints.save_best(self.iteration, trained, score)

    def _panel(self, micro: Batch) -> np.ndarray:
        """Image, styled, masked, reconstruction, prediction, truth side by side, uint8 (H, W, 3)."""
        image, label, position = micro["image"][:1], micro["label"][0], int(micro["position"][0])
        self.network.eval()
        with torch.autocast(
            self.processes.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        ):
            pictures = self.multi_task.pictures(image.to(self.processes.device), position)
            predicted = predict_labels(self.network, image.to(self.processes.device))[0]
        self.network.train()
        colours = np.zeros((IGNORE + 1, 3), dtype=np.uint8)
        colours[: len(self.job.class_set.palette)] = [
            ImageColor.getrgb(c) for c in self.job.class_set.palette
        ]
        shown = [picture.permute(1, 2, 0).cpu().numpy() for picture in pictures]
        return np.concatenate([*shown, colours[predicted.cpu()], colours[label]], axis=1)

    def selected(self) -> tuple[CrossEarth, int]:
        """The network by the selection rule, and the iteration that it comes from."""
        if self.config.selection == "last":
            return self.network, self.iteration
        best = self.checkpoints.best()
        if best is None:
            raise InputError("the best state is gone", where=self.checkpoints.folder, next_step="train again")
        self._load(best)
        return self.network, int(best.about["iteration"])


def _ignore_signals(_: int) -> None:
    """A terminal's Ctrl-C reaches the readers too, but the training still needs the batch at hand."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)


class _Interrupts:
    """Turns SIGTERM and SIGINT into a number that the loop looks at between iterations."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in EXIT_CODES}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number


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
        "train": _plain(asdict(job.config)),
    }
    with atomic_path(out_dir / CURVES_NAME) as partial:
        partial.write_text(_table(training.curves), encoding="utf-8")
    checkpoint.save(network, out_dir, meta, job.config.backbones_dir)


def _headline(confusion_KK: Tensor, class_set: ClassSet) -> float:
    """mIoU over the classes present in the labels, or the foreground's IoU; 0..1, 0 where none is present."""
    hits = confusion_KK.diagonal().double()
    iou_K = hits / (confusion_KK.sum(0) + confusion_KK.sum(1) - hits)
    chosen = confusion_KK.sum(1) > 0
    if class_set.headline == "foreground":
        chosen[0] = False
    return float(iou_K[chosen].mean()) if chosen.any() else 0.0


def _memory_gib(device: torch.device) -> float:
    """Peak memory: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _table(points: Sequence[Mapping[str, float]]) -> str:
    """CSV of the curves; a point without a value has an empty cell."""
    columns = list(dict.fromkeys(name for point in points for name in point))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    return text.getvalue()


def _plain(value: Any) -> Any:
    """`value` as JSON has it: paths as text, tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names, as MLflow's parameters are."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat
