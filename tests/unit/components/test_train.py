"""A whole training at a tiny size: what is refused, what is survived, what changes its bytes."""

import csv
import errno
import json
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from unittest.mock import Mock

import pytest
import torch
from children import running_children
from domain_factory import write_domain
from earth_styles import write_styles
from safetensors import safe_open
from torch import Tensor

from crossearth.components.cli import model_commands
from crossearth.components.runtime import code
from crossearth.components.runtime.code import code_digest
from crossearth.components.runtime.interrupts import EXIT_CODES
from crossearth.components.runtime.version import torch_version
from crossearth.components.train import loop as training_loop
from crossearth.components.train import setup as training_setup
from crossearth.components.train import state as training_state
from crossearth.components.train import step
from crossearth.components.train.loop import Training
from crossearth.components.train.setup import TrainConfig, prepare
from crossearth.components.train.step import train
from crossearth.data.catalog.domains import Catalog, Recipe
from crossearth.data.common import files
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import file_lock, sha256_file
from crossearth.data.raster.reading import Reading
from crossearth.data.style.earth import StyleConfig
from crossearth.data.tiles.augment import Augmentation
from crossearth.data.tiles.dataset import TrainingStream
from crossearth.data.tiles.manifest import read_manifest, write_manifest
from crossearth.model.layers.lora import LoraConfig
from crossearth.model.training.losses import SegmentationLossConfig
from crossearth.model.training.multitask import BRANCHES, MultiTaskLoss, TaskConfig, learning_rate
from crossearth.model.weights import checkpoint
from crossearth.model.weights.checkpoint import read_meta, trained_reading

RECIPE = "loveda-urban"
NUMBERS: dict[str, Any] = {
    "network": "tiny",
    "sizes": {
        "embed": 48,
        "depth": 4,
        "num_tokens": 8,
        "channels": 16,
        "mask_channels": 16,
        "decoder_layers": 1,
        "encoder_ffn": 16,
        "decoder_ffn": 16,
        "norm_groups": 4,
        "reconstruction_channels": 4,
        "reconstruction_px": 16,
    },
    "iterations": 6,
    "batch_size": 4,
    "crop_px": 32,
    "scale": (1.0, 2.0),
    "lr": 1e-3,
    "precision": "float32",
    "schedule_iterations": None,
    "workers": 0,
    "log_every": 2,
    "checkpoint_every": 2,
    "panels_every": 100,
    "style": StyleConfig(block_px=16),
    "style_probability": 0.5,
    "tasks": TaskConfig(mask_block_px=16, segmentation=SegmentationLossConfig(num_points=32)),
}
Train = Callable[..., Path]


@pytest.fixture(scope="module")
def recipe(catalog: Catalog) -> Recipe:
    return catalog.recipe(RECIPE)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Path:
    """The source domain, and Earth statistics."""
    folder = tmp_path_factory.mktemp("work")
    write_domain(catalog.domain_dir(folder / "domains", RECIPE), RECIPE, "loveda", split="train")
    write_styles(folder / "earth.safetensors")
    return folder


def trains(work: Path, catalog: Catalog, recipe: Recipe, folder: Path, patch: pytest.MonkeyPatch) -> Train:
    """Trains into `folder`, without MLflow."""
    patch.setattr(step, "start_run", lambda *_, **__: NoRun())
    patch.setattr(step, "_is_tracked", lambda *_: True)

    def call(out: str = "model", **changes: Any) -> Path:
        config = TrainConfig(**(NUMBERS | changes))
        return train(recipe, catalog, work / "domains", folder / out, config, work / "earth.safetensors")

    return call


@pytest.fixture
def run(
    work: Path, catalog: Catalog, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Train:
    """Trains into a folder of this test."""
    return trains(work, catalog, recipe, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def whole(work: Path, catalog: Catalog, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of a training that nobody disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        return trains(work, catalog, recipe, tmp_path_factory.mktemp("whole"), patch)()


class NoRun:
    """Stands for MLflow, which has tests of its own."""

    def __enter__(self) -> Mock:
        return Mock()

    def __exit__(self, *_: object) -> None:
        return None


def stop_at(iteration: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training dies in that iteration, once."""
    iterate = Training._iterate

    def dying(self: Training, *arguments: Any) -> int:
        if self.iteration == iteration:
            monkeypatch.setattr(Training, "_iterate", iterate)
            raise RuntimeError("killed")
        return iterate(self, *arguments)

    monkeypatch.setattr(Training, "_iterate", dying)


def spoil(iterations: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of these iterations is not a number."""
    forward = MultiTaskLoss.forward

    def spoiled(self: MultiTaskLoss, *arguments: Any) -> dict[str, Tensor]:
        terms = forward(self, *arguments)
        first = arguments[2][0] // NUMBERS["batch_size"]
        return {name: term * float("nan") for name, term in terms.items()} if first in iterations else terms

    monkeypatch.setattr(MultiTaskLoss, "forward", spoiled)


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def curve(folder: Path, column: str = "loss") -> list[float]:
    with (folder / "curves.csv").open(newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def test_the_loss_falls(run: Train) -> None:
    losses = curve(run(iterations=20))
    assert losses[-1] < losses[0]


def test_the_same_inputs_give_the_same_bytes_and_another_seed_others(run: Train, whole: Path) -> None:
    assert written(run("a")) == written(whole)
    other = written(run("b", seed=1))
    assert all(other[name] != content for name, content in written(whole).items())


@pytest.mark.parametrize("photometric", [True, False])
def test_schedule_decay_and_augmentation_are_the_configs(
    photometric: bool, run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, fitted = Training.fit, []
    monkeypatch.setattr(Training, "fit", lambda self, *given: fitted.append(self) or fit(self, *given))
    warmup = {"schedule": "warmup-poly", "warmup_iterations": 3, "schedule_iterations": 10}
    folder = run(photometric=photometric, weight_decay=0.03, **warmup)
    # each point of the curves is after the second of two steps
    expected = [learning_rate(done, NUMBERS["lr"], "warmup-poly", 10, 3) for done in (1, 3, 5)]
    assert curve(folder, "lr") == pytest.approx(expected)
    (training,) = fitted
    assert [group["weight_decay"] for group in training.optimiser.param_groups] == [0.03, 0]
    augmentation = Augmentation(NUMBERS["crop_px"], NUMBERS["scale"], photometric=photometric)
    assert training.stream.augment == augmentation


@pytest.mark.parametrize("killed_at", [1, 3, 4])
def test_a_killed_training_goes_on_to_the_same_bytes(
    killed_at: int, run: Train, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(killed_at, monkeypatch)
    with pytest.raises(RuntimeError, match="killed"):
        run()
    assert written(run()) == written(whole)


def test_only_the_last_states_are_kept_and_none_after_the_end(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(5, monkeypatch)
    with pytest.raises(RuntimeError, match="killed"):
        run(checkpoint_every=1, keep_checkpoints=2)
    states = tmp_path / "model.checkpoints"
    assert sorted(path.name for path in states.iterdir()) == [
        "step_00000004.safetensors",
        "step_00000005.safetensors",
    ]
    run(checkpoint_every=1, keep_checkpoints=2)
    assert not states.exists()


def test_a_slow_training_saves_by_the_clock(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod is gone a second after it is asked to leave."""
    hours = iter(range(0, 10**9, 3600))
    monkeypatch.setattr(training_loop.time, "monotonic", lambda: next(hours))
    for minutes, states in ((10, ["step_00000003.safetensors", "step_00000004.safetensors"]), (10**6, [])):
        stop_at(4, monkeypatch)
        with pytest.raises(RuntimeError, match="killed"):
            run(f"model{minutes}", checkpoint_every=100, checkpoint_minutes=minutes)
        found = tmp_path.glob(f"model{minutes}.checkpoints/*.safetensors")
        assert sorted(path.name for path in found) == states


def test_a_state_cut_off_by_a_crash_is_passed_over(
    run: Train,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stop_at(5, monkeypatch)
    with pytest.raises(RuntimeError, match="killed"):
        run()
    state = tmp_path / "model.checkpoints/step_00000004.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    assert written(run()) == written(whole)
    assert "step_00000004.safetensors: not a readable checkpoint" in caplog.text


def test_another_config_does_not_go_on_with_the_states_of_this_one(
    run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(4, monkeypatch)
    with pytest.raises(RuntimeError, match="killed"):
        run()
    with pytest.raises(InputError, match=r"lr: 0.001 there, 0.002 now"):
        run(lr=2e-3)
    changed = {
        "style": StyleConfig(block_px=16),
        "style_probability": 0.1,
        "sizes": NUMBERS["sizes"] | {"heads": 4},
    }
    with pytest.raises(
        InputError, match=r"in sizes\.heads: nothing there, 4 now; style_probability: 0.5 there, 0.1 now\n"
    ):
        run(**changed)
    apart = replace(NUMBERS["tasks"], shared_pass=False)
    run(micro_batch=2, activation_checkpointing=True, tasks=apart)  # how it is computed may change


@pytest.mark.parametrize("name", ["code_digest", "torch_version"])
def test_another_code_or_torch_does_not_go_on_with_the_states_of_this_one(
    name: str, run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_loop, "git_revision", lambda: "abc1234")
    stop_at(4, monkeypatch)
    with pytest.raises(RuntimeError, match="killed"):
        run()
    now = code_digest("train") if name == "code_digest" else torch_version()
    with monkeypatch.context() as changed, pytest.raises(InputError) as refused:
        changed.setattr(training_setup, name, lambda *_: "other")
        run()
    key = name.partition("_")[0]
    assert f"differ in {key}: '{now}' there, 'other' now" in str(refused.value)
    assert ("git abc1234" in str(refused.value)) is (key == "code")
    folder = tmp_path / "model.checkpoints"
    assert f"to start anew: mv {folder} {folder}.old" in str(refused.value)
    meta = read_meta(run())  # as it was: goes on
    assert meta[key] == now
    with monkeypatch.context() as changed:
        changed.setattr(training_setup, name, lambda *_: "other")
        assert read_meta(run())["input_hash"] != meta["input_hash"]


def test_code_that_is_edited_while_a_training_runs_is_not_the_models(
    run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, sha256 = code_digest("train"), sha256_file
    monkeypatch.setattr(code, "sha256_file", lambda path: "edited" if path.suffix == ".py" else sha256(path))
    assert read_meta(run(iterations=1))["code"] == before


def test_the_model_says_on_how_many_threads_each_part_was_computed(
    run: Train, whole: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    threads = torch.get_num_threads()
    stop_at(5, monkeypatch)
    with pytest.raises(RuntimeError, match="killed"):
        run()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads + 1)
        meta = read_meta(run())
    first, second = meta["computed"]
    assert (first["from"], first["threads"], first["processes"]) == (0, threads, 1)
    assert second == {**first, "from": 4, "threads": threads + 1}
    assert f"resumed at iteration 4 with threads {threads + 1} (before: {threads})" in caplog.text
    assert run().is_dir() and read_meta(whole)["input_hash"] == meta["input_hash"]


def test_another_training_of_the_recipe_is_not_disturbed(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(4, monkeypatch)
    with pytest.raises(RuntimeError, match="killed"):
        run()
    monkeypatch.setattr(files, "PATIENCE_S", 0.0)
    before = written(tmp_path / "model.checkpoints")
    running = rf"a training of {RECIPE} is running already: process {os.getpid()} on "
    with file_lock(tmp_path / "model", "this"), pytest.raises(InputError, match=running):
        run(lr=2e-3)
    assert written(tmp_path / "model.checkpoints") == before
    run()


def test_what_is_trained_stays(run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run()
    monkeypatch.setattr(step, "make_network", lambda job: pytest.fail("trained again"))
    assert run() == folder


def test_a_model_that_cannot_be_read_is_trained_again_and_named(
    run: Train, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run(iterations=1)
    whole = written(folder)
    (folder / "model.json").write_text("{")
    assert written(run(iterations=1)) == whole
    assert "model.json: not JSON" in caplog.text


def test_a_model_whose_weights_were_damaged_is_trained_again(run: Train) -> None:
    folder = run(iterations=1)
    whole = written(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert written(run(iterations=1)) == whole


def test_a_pods_log_shows_how_far_it_is(
    run: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    run()
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "iteration" in line)
    assert re.fullmatch(rf"{RECIPE}: iteration (\d+)/\1, loss \d+\.\d{{3}}, done", line)


def test_accumulated_gradients_are_those_of_the_whole_batch(run: Train, whole: Path) -> None:
    for changes in ({"micro_batch": 1}, {"activation_checkpointing": True}):
        assert curve(run(next(iter(changes)), **changes)) == pytest.approx(curve(whole), rel=1e-4)


def test_a_step_without_a_finite_loss_is_skipped_and_counted(
    run: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoil({1, 2, 4}, monkeypatch)
    folder = run()
    assert read_meta(folder)["skipped"] == 3
    assert curve(folder, "skipped") == [1, 2, 3]
    assert "iteration 1: loss or gradient is not finite, step skipped (scene" in caplog.text


@pytest.mark.parametrize(("precision", "advised"), [("float32", False), ("bfloat16", True)])
def test_a_training_whose_every_step_is_skipped_is_none(
    precision: str, advised: bool, run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil({0, 1}, monkeypatch)
    with pytest.raises(InputError, match="nothing was trained") as refused:
        run(iterations=2, precision=precision)
    assert ("precision: float32" in str(refused.value)) is advised  # not what is set already
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "changes", [{}, {"held_out_share": 0.3, "validate_every": 3, "selection": "best-source"}]
)
def test_weights_that_are_not_finite_end_the_training_and_are_no_state(
    changes: dict[str, Any], run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_of = torch.optim.AdamW.step

    def spoiling(self: torch.optim.AdamW, *given: Any) -> None:
        step_of(self, *given)
        if len(stepped := [*steps, None]) == 3:
            self.param_groups[0]["params"][0].data.view(-1)[0] = float("nan")
        steps[:] = stepped

    steps: list[None] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", spoiling)
    with pytest.raises(InputError, match=r"(?s)iteration [34]: weights that are not finite: .*a lower lr"):
        run(**changes)
    assert [path.name for path in (tmp_path / "model.checkpoints").glob("*")] == ["step_00000002.safetensors"]
    assert not (tmp_path / "model").exists()


def test_three_in_a_row_stop_with_the_tiles(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil({2, 3, 4}, monkeypatch)
    with pytest.raises(InputError, match=r"(?s)tiles scene\d.*3 times in a row, last in 4.*lower lr"):
        run()
    assert not (tmp_path / "model").exists()


def test_out_of_memory_names_the_fields_to_change(run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: Any) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(MultiTaskLoss, "forward", forward)
    with pytest.raises(InputError, match=r"(?s)batch_size 4.*micro_batch.*activation_checkpointing"):
        run()


def test_what_is_set_already_is_not_advised(run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MultiTaskLoss, "forward", mock.Mock(side_effect=torch.OutOfMemoryError("no memory")))
    apart = replace(NUMBERS["tasks"], shared_pass=False)
    with pytest.raises(InputError, match=r"next: start anew with a lower crop_px$"):
        run(micro_batch=1, activation_checkpointing=True, precision="bfloat16", tasks=apart)


def test_memory_may_run_out_after_the_loss(run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(InputError, match=r"(?s)out of memory.*micro_batch"):
        run()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("place", ["CrossEarth", "to", "AdamW"])
def test_memory_may_run_out_before_the_first_step(
    error: Exception, place: str, run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    owner = {"CrossEarth": training_setup, "to": torch.nn.Module, "AdamW": torch.optim}[place]
    monkeypatch.setattr(owner, place, full)
    with pytest.raises(InputError, match=r"(?s)loveda-urban: out of memory on cpu: .*set micro_batch: 1"):
        run()


def test_an_error_of_another_kind_is_no_lack_of_memory(run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(training_setup, "CrossEarth", broken)
    with pytest.raises(RuntimeError, match="broken"):
        run()


def test_a_reader_that_the_system_kills_is_a_matter_of_memory(
    run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(TrainingStream, "__getitem__", killed)
    with pytest.raises(InputError, match=r"(?s)one of 1 workers was ended.*out of memory, lower workers"):
        run(workers=1)
    assert not running_children()


def test_a_loss_beyond_all_numbers_stops_with_the_tiles(run: Train) -> None:
    with pytest.raises(InputError, match=r"(?s)tiles scene\d.*3 times in a row.*lower lr"):
        run(tasks=replace(NUMBERS["tasks"], weight_seg=3e38))


def test_a_network_in_bfloat16_has_parameters_in_float32(run: Train, whole: Path) -> None:
    reduced = run(precision="bfloat16")
    assert curve(reduced) != curve(whole)
    assert curve(reduced) == pytest.approx(curve(whole), rel=0.05)
    with safe_open(reduced / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118


def test_compiled_blocks_give_the_same_curve(
    run: Train, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = mock.Mock(side_effect=partial(torch.compile, backend="eager"))  # no minute of a C++ compiler
    monkeypatch.setattr(torch, "compile", compiled)
    assert curve(run("compiled", compile=True)) == pytest.approx(curve(whole), rel=1e-4)
    assert compiled.call_count == NUMBERS["sizes"]["depth"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_tile_that_cannot_be_read_is_said_without_a_traceback(
    workers: int, run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: Any) -> None:
        raise InputError("damaged", where="tile.tif", next_step="ingest again")

    monkeypatch.setattr(TrainingStream, "__getitem__", damaged)
    with pytest.raises(InputError) as refused:
        run(workers=workers)
    assert str(refused.value) == "tile.tif: damaged\n  next: ingest again"
    assert not running_children(), "they would outlive the training"


def test_another_meaning_of_the_labels_is_another_training(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_meta(run(iterations=1))["input_hash"]
    remap = Catalog.remap
    monkeypatch.setattr(Catalog, "remap", lambda *given: (*reversed(remap(*given)),))
    assert read_meta(run(iterations=1))["input_hash"] != first


@pytest.mark.parametrize(
    ("name", "value", "readers"),
    [
        ("style_probability", 0.9, {"+style", "+style+mim", "full"}),
        ("style", replace(NUMBERS["style"], alpha=0.1), {"+style", "+style+mim", "full"}),
        ("tasks", replace(NUMBERS["tasks"], mask_ratio=0.1), {"+mim", "+style+mim", "full"}),
        ("tasks", replace(NUMBERS["tasks"], inject_plain=False), {"full"}),
        ("tasks", replace(NUMBERS["tasks"], weight_seg=0.5), {*BRANCHES}),
        ("lora", LoraConfig(rank=4), set()),
    ],
)
def test_identity_has_the_parameters_that_are_read(
    name: str, value: object, readers: set[str], work: Path, catalog: Catalog, recipe: Recipe
) -> None:
    def identity(**changes: object) -> str:
        config = TrainConfig(**(NUMBERS | changes))
        return prepare(recipe, catalog, work / "domains", config, work / "earth.safetensors").input_hash

    assert {
        each for each in BRANCHES if identity(ablation=each, **{name: value}) != identity(ablation=each)
    } == readers


def test_tiles_whose_classes_had_another_order_are_refused(
    run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes_of = Catalog.classes_of
    monkeypatch.setattr(Catalog, "classes_of", lambda *given: classes_of(*given)[::-1])
    with pytest.raises(InputError, match=r"(?s)ingested with the classes background, building.*ingest"):
        run()


def full_disk(failures: Iterator[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_path = training_state.atomic_path

    def atomic(path: Path) -> Any:
        if next(failures):
            raise OSError(errno.ENOSPC, "No space left on device")
        return atomic_path(path)

    monkeypatch.setattr(training_state, "atomic_path", atomic)


def test_a_full_disk_at_one_checkpoint_is_a_warning(
    run: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full_disk(iter([False, True, False, True, False, False]), monkeypatch)
    run(checkpoint_every=1)
    assert caplog.text.count("No space left on device") == 2
    assert "the previous one is kept" in caplog.text


def test_a_disk_that_is_too_full_for_the_model_loses_no_iteration(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"checkpoint_every": 100}
    whole = written(run("whole", **changes))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as filled, pytest.raises(OSError, match="No space left"):
        filled.setattr(checkpoint, "save_file", full)
        run(**changes)
    monkeypatch.setattr(Training, "_iterate", lambda *_: pytest.fail("trained again"))
    assert written(run(**changes)) == whole


def test_a_disk_that_stays_full_stops_the_training(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(iter([False, True, True, True]), monkeypatch)
    with pytest.raises(InputError, match=r"(?s)No space left.*3 times in a row.*free some space"):
        run(checkpoint_every=1)
    assert (tmp_path / "model.checkpoints/step_00000001.safetensors").exists()


def test_the_best_state_on_the_sources_held_out_scenes(run: Train) -> None:
    changes = {"held_out_share": 0.3, "validate_every": 1, "selection": "best-source"}
    folder = run(**changes)
    scores = curve(folder, "held_out_score")
    meta = read_meta(folder)
    assert len(scores) == 6
    assert meta["held_out_score"] == max(scores)
    assert meta["iteration"] == 1 + scores.index(max(scores))
    # the rule chooses among the same iterates
    assert curve(run("last", **changes | {"selection": "last"}), "held_out_score") == scores


def test_a_best_state_that_was_not_written_is_not_claimed(
    run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"held_out_share": 0.3, "validate_every": 3, "selection": "best-source"}
    save_best = training_state.Checkpoints.save_best
    scores = iter([0.2, 0.5])
    monkeypatch.setattr(training_loop, "score", lambda *_: SimpleNamespace(primary_metric=next(scores)))
    monkeypatch.setattr(
        training_state.Checkpoints,
        "save_best",
        lambda self, iteration, *given: iteration == 3 and save_best(self, iteration, *given),
    )
    meta = read_meta(run(**changes))
    assert (meta["iteration"], meta["held_out_score"]) == (3, 0.2)


def test_a_signal_in_the_last_validation_loses_nothing(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"held_out_share": 0.3, "validate_every": 100, "checkpoint_every": 100}
    validate = Training._validate

    def stopped(self: Training, *given: Any) -> None:
        validate(self, *given)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Training, "_validate", stopped)
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(EXIT_CODES[signal.Signals(number)]))
    try:
        with pytest.raises(SystemExit):
            run(**changes)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "model.checkpoints/step_00000006.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_px": 64}, r"(?s)crop_px: 64 is larger than the tiles of loveda-urban \(48 px\).*at most 48"),
        ({"tasks": TaskConfig(mask_block_px=64)}, r"(?s)mask_block_px: 64 is larger.*crop_px, 32"),
        ({"selection": "best-source"}, "best-source needs held-out tiles"),
        ({"network": "large", "sizes": {}}, r"(?s)a frozen backbone needs pretrained weights.*DINOv2"),
        ({"style": StyleConfig(block_px=64)}, r"(?s)style.block_px: 64 is larger.*crop_px, 32"),
        ({"sizes": {**NUMBERS["sizes"], "image_px": 64}}, r"(?s)image_px: 64.*crop_px, 32"),
        ({"sizes": {**NUMBERS["sizes"], "depth": 5}}, r"(?s)taps: \[0, 1, 2, 3\].*4 as the last"),
        ({"sizes": {"embd": 48}}, r"(?s)unknown key 'embd'.*'embed'"),
    ],
)
def test_wrong_numbers_are_refused_and_leave_nothing(
    changes: dict[str, Any], message: str, run: Train, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        run(**changes)
    assert not any(tmp_path.iterdir())


def test_a_class_that_never_occurs_is_refused_unless_allowed(
    catalog: Catalog, recipe: Recipe, work: Path, tmp_path: Path, run: Train, caplog: pytest.LogCaptureFixture
) -> None:
    write_domain(catalog.domain_dir(tmp_path / "few", RECIPE), RECIPE, "loveda", split="train", absent=2)
    styles = work / "earth.safetensors"

    def fit(**changes: Any) -> Path:
        config = TrainConfig(**(NUMBERS | {"iterations": 1} | changes))
        return train(recipe, catalog, tmp_path / "few", tmp_path / "model", config, styles)

    with pytest.raises(InputError, match=r"(?s)no pixel of forest, agriculture.*allow_absent_classes"):
        fit()
    assert fit(allow_absent_classes=True).is_dir()


def test_a_model_reads_as_its_sources_manifest_says_whatever_became_of_the_catalog(
    catalog: Catalog, recipe: Recipe, work: Path, tmp_path: Path, run: Train
) -> None:
    edited = replace(catalog.domain(RECIPE), band_indexes=(3, 2, 1), value_range=(0.0, 9.0))
    domains = tmp_path / "domains"
    shutil.copytree(work / "domains", domains)
    written = read_manifest(catalog.domain_dir(domains, RECIPE), "train")
    deep = Reading((4, 3, 2), "uint16", (0.0, 3000.0), 0.0, 10.0)
    write_manifest(
        written.root, written.domain, "train", written.classes, written.provenance, deep, written.rows
    )
    meta = read_meta(
        train(
            recipe,
            replace(catalog, domains={**catalog.domains, RECIPE: edited}),
            domains,
            tmp_path / "deep",
            TrainConfig(**(NUMBERS | {"iterations": 1})),
            work / "earth.safetensors",
        )
    )
    assert trained_reading(meta) == deep


def test_a_source_that_was_not_ingested(run: Train, catalog: Catalog, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="crossearth ingest"):
        train(recipe, catalog, tmp_path / "none", tmp_path / "model", TrainConfig(**NUMBERS))


def test_signals_are_answered_between_iterations(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = written(run("whole", checkpoint_every=100))
    iterate = Training._iterate

    def interrupted(self: Training, *arguments: Any) -> int:
        if self.iteration == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return iterate(self, *arguments)

    monkeypatch.setattr(Training, "_iterate", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run(checkpoint_every=100)
    assert stopped.value.code == 143
    monkeypatch.setattr(Training, "_iterate", iterate)
    assert written(run(checkpoint_every=100)) == whole


def test_logging_stays_quiet(run: Train, caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
    with caplog.at_level(logging.WARNING):
        run()
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


def test_seeds_stand_side_by_side(work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_commands, "_say_licence", lambda _: None)
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(
        step, "train", lambda *given: asked.append((given[3].name, given[4].seed)) or given[3]
    )
    model_commands.train([RECIPE], seeds="0,1,7")
    model_commands.train([RECIPE])
    assert asked == [(RECIPE, 0), (f"{RECIPE}@seed1", 1), (f"{RECIPE}@seed7", 7), (RECIPE, 0)]
    (tmp_path / "params.yaml").write_text("preset: a\nseed: 7\npresets: {a: {}}\n")
    model_commands.train([RECIPE], seeds="0,7")
    assert asked[-2:] == [(f"{RECIPE}@seed0", 0), (RECIPE, 7)]


@pytest.mark.parametrize("seeds", ["", "1,", "1,1", "-1", "1.5", "one", str(2**63), "9" * 5000])
def test_wrong_seeds_are_refused(seeds: str) -> None:
    with pytest.raises(InputError, match=r"--seeds: .*\n.*different whole numbers"):
        model_commands.train([RECIPE], seeds=seeds)


def test_a_model_says_its_size_and_beside_it_lies_how_long_it_took(run: Train) -> None:
    folder = run(iterations=2)
    parameters = read_meta(folder)["parameters"]
    assert 0 < parameters["trained"] < parameters["all"]
    assert json.loads(folder.with_name(f"{folder.name}.timing.json").read_text())["seconds"] > 0
