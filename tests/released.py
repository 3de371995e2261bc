"""Checkpoints as mmengine writes them, without mmengine: its classes are imitated by their paths."""

import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class HistoryBuffer:
    """Pickles like mmengine's: its state holds numpy arrays and its own methods by name."""

    def __init__(self) -> None:
        self._log_history = np.arange(4.0)
        self._count_history = np.ones(4)

    def mean(self) -> float:
        return float(self._log_history.mean())

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "statistics_methods": {"mean": HistoryBuffer.mean},
            "last": self._log_history[-1],
        }


class ConfigDict(dict):  # type: ignore[type-arg]
    """A dictionary subclass, as configurations are."""


@contextmanager
def mmengine_modules() -> Iterator[None]:
    """While open, the two classes above live where mmengine's do."""
    homes = {"mmengine.logging.history_buffer": HistoryBuffer, "mmengine.config.config": ConfigDict}
    modules = {"mmengine": types.ModuleType("mmengine")}
    for home, kind in homes.items():
        modules[home.rpartition(".")[0]] = types.ModuleType(home.rpartition(".")[0])
        modules[home] = types.ModuleType(home)
        setattr(modules[home], kind.__name__, kind)
        kind.__module__ = home
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def write_released(
    path: Path, state: dict[str, Tensor], classes: tuple[str, ...] = (), *, legacy: bool = False
) -> None:
    """Writes `state` as an mmengine checkpoint, in torch's zip format or in the one before it."""
    weights = OrderedDict(state)
    weights._metadata = OrderedDict(version=1)  # type: ignore[attr-defined]
    checkpoint = {
        "meta": {
            "cfg": "model = dict(type='EncoderDecoder')\n",
            "dataset_meta": {"classes": classes, "palette": [[10 * i, 20, 30] for i in range(len(classes))]},
            "epoch": 0,
            "iter": 30000,
            "mmengine_version": "0.10.4",
            "time": "20240101_000000",
            "hook": ConfigDict(lr=1e-4),
        },
        "state_dict": weights,
        "message_hub": {
            "log_scalars": OrderedDict({"train/loss": HistoryBuffer()}),
            "resumed_keys": OrderedDict(),
        },
        "param_schedulers": [{"last_step": np.int64(3), "gamma": np.float64(0.9)}],
    }
    with mmengine_modules():
        torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
