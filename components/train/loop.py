"""The iterations of a training: steps, curves, checkpoints, scores on held-out tiles, signals."""

import contextlib
import itertools
import logging
import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import MofNCompleteColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.utils import get_total_norm

from crossearth.components.runtime.interrupts import EXIT_CODES, Interrupts
from crossearth.components.runtime.job_status import JobStatus
from crossearth.components.runtime.processes import Processes
from crossearth.components.runtime.tracking import Run
from crossearth.components.runtime.trial import METRIC
from crossearth.components.runtime.version import git_revision
from crossearth.components.train.effective_batch import BatchSampler, Gradients
from crossearth.components.train.panel import training_panel
from crossearth.components.train.setup import Job
from crossearth.components.train.state import Checkpoints, State
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import digest
from crossearth.data.common.finite import refuse_nonfinite
from crossearth.data.common.progress import LogLine, bar
from crossearth.data.tiles.augment import Augmentation
from crossearth.data.tiles.dataset import Batch, TileDataset, TrainingStream
from crossearth.data.tiles.readers import StuckError, reading
from crossearth.model.crossearth import CrossEarth
from crossearth.model.inference import predict_labels
from crossearth.model.scores import score
from crossearth.model.training.multitask import (
    BRANCHES,
    MultiTaskLoss,
    annealed_decay,
    learning_rate,
    parameter_groups,
)

# of a training, in its saved states
KEPT = ("skipped", "nonfinite", "best_score", "curves", "steps", "computed", "seconds")
NONFINITE_ALLOWED = 2  # steps in a row that are skipped; one more stops the training

log = logging.getLogger(__name__)


@dataclass
class Pace:
    """Seconds of the steps since the last point of the curves, and how many of them were spent on batches."""

    steps: int = 0
    waited: float = 0.0
    seconds: float = 0.0


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
        self.interrupts = Interrupts()
        self.best_score = -1.0
        self.loss = float("nan")  # of the last step, also of one that was skipped
        # how each part was computed, one entry while nothing changes: {"from": iteration, **computing}
        self.computed: list[dict[str, Any]] = []
        self.seconds = 0.0  # that the iterations took, those before a restart too
        self.git_revision = git_revision() if processes.is_main_process else ""
        self.curves: list[dict[str, float]] = []
        self.steps: list[dict[str, float]] = []  # since the last point of the curves
        self._resume()
        if job.config.compile:
            for block in network.backbone.blocks:
                block.compile()
        if job.styler is not None:
            job.styler.engine.to(processes.device)
        self.multi_task_loss = MultiTaskLoss(
            network, BRANCHES[job.config.ablation], job.config.tasks, job.styler, job.config.seed
        )
        self.gradients = Gradients(self.multi_task_loss, processes, job.config.precision == "bfloat16")
        self.stream = TrainingStream(
            TileDataset(job.manifest, job.remap, job.train_rows),
            Augmentation(job.config.crop_px, job.config.scale, photometric=job.config.photometric),
            job.config.seed,
        )

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
            for name in ("iteration", *KEPT):
                setattr(self, name, state.about[name])
        self._compute_on()
        resumed = {
            "the iteration to resume from": str(self.iteration),
            "the state to resume from": digest(state.about if state else {}),
        }
        self.processes.assert_equal(resumed)

    def _compute_on(self) -> None:
        """Notes how it is computed from here on, and says so where that changed."""
        before = self.computed[-1] if self.computed else {}
        now = self.processes.computing
        changed = [
            f"{name} {value} (before: {before.get(name)})"
            for name, value in now.items()
            if value != before.get(name)
        ]
        if not changed or self.iteration == self.config.iterations:
            return
        self.computed.append({"from": self.iteration, **now})
        if before and self.processes.is_main_process:
            log.warning(
                "resumed at iteration %d with %s: the same crops, summed in another order; the last digits "
                "of the weights are not those of a training that was never stopped",
                self.iteration,
                ", ".join(changed),
            )

    def _refuse_nonfinite(self) -> None:
        where = f"recipe {self.job.recipe.name}, iteration {self.iteration}"
        refuse_nonfinite(self.network.trained_parameters().items(), where, self._calmer())

    def _calmer(self) -> str:
        """Settings, not used so far, that may keep the loss finite."""
        bf16 = self.config.precision == "bfloat16"
        return "start anew with a lower lr" + (" or with precision: float32" if bf16 else "")

    def save(self) -> None:
        """Writes the state, in the first process.

        Raises:
            InputError: in every process, where a weight is not finite: the states before stay the last ones.
        """
        self._refuse_nonfinite()
        if self.processes.is_main_process:
            about = {name: getattr(self, name) for name in KEPT}
            self.checkpoints.save(self.iteration, self._state(), {**about, "git_revision": self.git_revision})

    @contextlib.contextmanager
    def loading(self) -> Iterator[Iterator[list[Batch]]]:
        """Batches from the iteration on, each a list of micro-batches; readers are started here."""
        config, rank, size = self.config, self.processes.rank, self.processes.size
        share = config.batch_size // size
        micro_batch = min(config.micro_batch or share, share)
        first, last = self.iteration, config.iterations
        positions = BatchSampler(first, last, config.batch_size, micro_batch, rank, size)
        with reading(self.stream, positions, config.workers, lambda: bool(self.interrupts.received)) as micro:
            yield iter(lambda: list(itertools.islice(micro, positions.per_iteration)), [])

    def fit(self, batches: Iterator[list[Batch]], run: Run | None, status: JobStatus) -> None:
        """Runs the remaining iterations; see `train` for what it raises."""
        pace, saved = Pace(), time.monotonic()
        name, total, first = self.job.recipe.name, self.config.iterations, self.processes.is_main_process
        line = LogLine(f"{name}: iteration", total, self.iteration, first)
        shown = bar(MofNCompleteColumn(), TimeRemainingColumn(), "{task.fields[loss]}", wanted=first)
        with self.gradients.shared(), self.interrupts as interrupts, shown as progress:
            task = progress.add_task(name, total=total, completed=self.iteration, loss="")
            while self.iteration < total:
                began = time.perf_counter()
                try:
                    batch = next(batches)
                except StuckError:
                    self.save()
                    raise SystemExit(EXIT_CODES[signal.Signals(interrupts.received)]) from None
                pace.waited += time.perf_counter() - began
                stop = self._iterate(batch, interrupts.received)
                took = time.perf_counter() - began
                pace.seconds += took
                self.seconds += took
                pace.steps += 1
                done = self.iteration == total
                if self.iteration % self.config.log_every == 0 or done:
                    self._record(pace, run)
                    pace = Pace()
                if self.job.held_rows and (self.iteration % self.config.validate_every == 0 or done):
                    self._validate(run)
                if run is not None and (self.iteration % self.config.panels_every == 0 or done):
                    with self.predicting():
                        panel = training_panel(self.multi_task_loss, batch[0], self.job.class_set)
                    run.log_image(panel, f"panels/{self.iteration:06d}.png")
                progress.update(task, completed=self.iteration, loss=f"loss {self.loss:.3f}")
                percent = 99 * self.iteration // total  # all of it once the model is written
                held = self.held_out_score()
                latest = {"loss": self.loss} | ({} if held is None else {METRIC: held})
                status.say(percent, progress.tasks[task].time_remaining, latest)
                line.update(self.iteration, f"loss {self.loss:.3f}")
                due = time.monotonic() - saved >= 60 * self.config.checkpoint_minutes
                # saved after the last iteration too: if the model cannot be written, no step is repeated
                if stop or done or due or self.iteration % self.config.checkpoint_every == 0:
                    self.save()
                    saved = time.monotonic()
                if stop:
                    raise SystemExit(EXIT_CODES[signal.Signals(stop)])
        if self.skipped == total:
            raise InputError(
                f"loss or gradient not finite in any of {self.skipped} iterations: nothing was trained",
                where=f"recipe {name}",
                next_step=self._calmer(),
            )

    def _iterate(self, batch: list[Batch], signal_number: int) -> int:
        """One optimiser step, or one that is skipped; returns the signal that any process received, or 0."""
        terms = self.gradients.backward(batch)
        names = sorted(terms)
        *values, signals = self.processes.sum([terms[name] for name in names] + [float(signal_number)])
        self.loss = sum(values)
        norm = float(get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None]))
        if np.isfinite([*values, norm]).all():
            self.nonfinite = 0
            config, end = self.config, self.config.poly_end
            lr = learning_rate(self.iteration, config.lr, config.schedule, end, config.warmup_iterations)
            for group in self.optimiser.param_groups:
                group["lr"] = lr
                if config.anneals_decay and group["weight_decay"]:
                    group["weight_decay"] = annealed_decay(self.iteration, config.weight_decay, end)
            self.optimiser.step()
            losses = {f"loss_{name}": value for name, value in zip(names, values, strict=True)}
            self.steps.append({**losses, "loss": self.loss, "gradient_norm": norm})
        else:
            self._skip()
        self.optimiser.zero_grad()
        self.iteration += 1
        # the sum only says that some process received a signal
        return (signal_number or int(signal.SIGTERM)) if signals else 0

    def _skip(self) -> None:
        self.skipped += 1
        self.nonfinite += 1
        batch_size, tiles = self.config.batch_size, self.stream.tiles
        positions = range(self.iteration * batch_size, (self.iteration + 1) * batch_size)
        rows = [tiles.indices[self.stream.tile(position)] for position in positions]
        tile_ids = ", ".join(self.job.manifest.rows[row]["tile_id"] for row in rows)
        log.warning(
            "iteration %d: loss or gradient is not finite, step skipped (%s)", self.iteration, tile_ids
        )
        if self.nonfinite > NONFINITE_ALLOWED:
            self._refuse_nonfinite()
            raise InputError(
                f"loss or gradient not finite {self.nonfinite} times in a row, last in {self.iteration}",
                where=f"tiles {tile_ids}",
                next_step=f"look at these tiles; {self._calmer()}",
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
            how = {
                "images_per_second": pace.steps * self.config.batch_size / pace.seconds,
                "data_wait_share": pace.waited / pace.seconds,
                "memory_gib": _memory_gib(self.processes.device),
            }
            curves = {name: value for name, value in point.items() if name != "iteration"}
            run.log_metrics(curves | how, self.iteration)

    @contextlib.contextmanager
    def predicting(self) -> Iterator[None]:
        """The network as it predicts, in the training's precision."""
        self.network.eval()
        bf16 = self.config.precision == "bfloat16"
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=bf16):
            yield
        self.network.train()

    def _validate(self, run: Run | None) -> None:
        """Scores the held-out tiles of the source, and keeps the parameters if they are the best so far."""
        from crossearth.model.metrics import ConfusionMatrix  # torchmetrics takes a second to import

        self._refuse_nonfinite()
        tiles = TileDataset(self.job.manifest, self.job.remap, self.job.held_rows)
        device = self.processes.device
        confusion = ConfusionMatrix(self.network.config.num_classes).to(device)
        with self.predicting():
            for place in range(self.processes.rank, len(tiles), self.processes.size):
                item = tiles[place]
                predicted = predict_labels(self.network, item["image"][None].to(device), batch_size=8)
                confusion.update(predicted[0], item["label"].to(device))
        counts = confusion.compute().cpu().numpy()
        found = float(np.nan_to_num(score(counts, self.job.class_set.primary_metric).primary_metric))
        self.curves.append({"iteration": self.iteration, "held_out_score": found})
        if run is not None:
            run.log_metrics({"held_out_score": found}, self.iteration)
        if found > self.best_score and self.processes.is_main_process:
            trained = {f"parameter.{k}": v for k, v in self.network.trained_parameters().items()}
            if self.checkpoints.save_best(self.iteration, trained, found):
                self.best_score = found

    def held_out_score(self) -> float | None:
        """The primary score, 0..1, on the source's held-out tiles of the weights that are selected."""
        found = [point["held_out_score"] for point in self.curves if "held_out_score" in point]
        if not found:
            return None
        return float(found[-1] if self.config.selection == "last" else self.best_score)

    def selected(self) -> tuple[CrossEarth, int]:
        """The network by the selection rule, and the iteration that it comes from."""
        if self.config.selection == "last":
            return self.network, self.iteration
        best = self.checkpoints.best()
        if best is None:
            raise InputError("the best state is gone", where=self.checkpoints.folder, next_step="train again")
        self._load(best)
        return self.network, int(best.about["iteration"])


def _memory_gib(device: torch.device) -> float:
    """Peak memory: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
