"""What the code does only where there is a GPU, with a fake one; `tests/gpu` runs on a real one."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from crossearth.components.evaluate import scoring
from crossearth.components.evaluate.scoring import Tile
from crossearth.components.predict import step as predict_step
from crossearth.components.runtime import doctor, processes
from crossearth.components.runtime.device import choose_device
from crossearth.components.runtime.processes import join_processes
from crossearth.components.train.loop import _memory_gib
from crossearth.data.style import ghiasi
from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.inference import predict_labels


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Two GPUs; gives what torch.cuda is told to do."""
    done: list[object] = []
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_name": lambda device: (
            f"GPU {torch.device(device).index if type(device) is not int else device}"
        ),
        "set_device": done.append,
        "synchronize": lambda device: done.append(f"waited for {device}"),
        "max_memory_allocated": lambda device: 3 * 2**30,
        "is_bf16_supported": lambda: True,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return done


def test_a_process_takes_the_gpu_of_its_rank(told: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("auto") == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == "cuda:1"


def test_a_process_alone_computes_on_its_gpu(told: list[object]) -> None:
    with join_processes() as alone:
        assert told == [alone.device] == [torch.device("cuda:0")]
        assert alone.computing["device"] == "GPU 0"


@pytest.mark.parametrize(("gpu", "backend"), [(True, "nccl"), (False, "gloo")])
def test_processes_talk_by_what_their_device_can(
    gpu: bool, backend: str, told: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(processes, "_place", lambda: (1, 2))
    monkeypatch.setattr(processes, "_join", lambda backend, rank, size: joined.append(backend))
    monkeypatch.setattr(
        processes,
        "dist",
        SimpleNamespace(get_rank=lambda: 1, get_world_size=lambda: 2, destroy_process_group=lambda: None),
    )
    with join_processes() as group:
        assert (group.rank, group.size, group.device.type) == (1, 2, "cuda" if gpu else "cpu")
    assert joined == [backend]


def test_the_doctor_names_the_gpus(told: list[object]) -> None:
    assert [each.found for each in doctor._devices() if each.check == "devices"] == ["GPU 0, GPU 1"]


def test_the_processes_of_a_scene_take_all_gpus(told: list[object]) -> None:
    assert predict_step._devices("auto") == ["cuda:0", "cuda:1"]
    assert predict_step._devices("cpu") == ["cpu"]


def test_a_trainings_memory_is_that_of_the_gpu(told: list[object]) -> None:
    assert _memory_gib(torch.device("cuda:1")) == 3


def test_evaluate_waits_for_the_gpu_before_it_looks_at_the_clock(
    told: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda:0"))]))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor)
    monkeypatch.setattr(scoring, "predict_labels", lambda *_: told.append("computed"))
    tile = Tile(0, np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8), np.uint8), "")
    scoring._predict(model, [tile], 1, "none")
    assert told == ["computed", "waited for cuda:0"]


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_papers_style_networks_are_bfloat16_where_the_gpu_is(
    supported: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert ghiasi._fast_dtype(torch.device("cuda")) is dtype


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that computes shapes alone, and refuses tensors of another; torch has no autocast there."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    return torch.device("meta")


def test_a_network_makes_all_that_it_needs_on_its_own_device(meta: torch.device) -> None:
    model = crossearth_tiny(3, 64).eval().to(meta)
    image_B3HW = torch.zeros(2, 3, 64, 100, dtype=torch.uint8, device=meta)
    assert predict_labels(model, image_B3HW, 2).shape == (2, 64, 100)


def test_the_papers_style_networks_make_all_that_they_need_on_their_own_device(meta: torch.device) -> None:
    engine = ghiasi.GhiasiEngine(ghiasi.StyleTransfer(), ghiasi.StylePredictor()).to(meta)
    image_B3HW = torch.zeros(2, 3, 64, 64, device=meta)
    assert engine.transfer(image_B3HW, engine.embed(image_B3HW)).shape == image_B3HW.shape
