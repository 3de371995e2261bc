"""One of two processes of a training and of an evaluation, started by test_two_processes.py."""

import contextlib
import os
from pathlib import Path
from unittest import mock

import torch
from training_folder import NUMBERS, RECIPE

from crossearth.components.evaluate import step as evaluate_step
from crossearth.components.evaluate.step import EvaluateConfig
from crossearth.components.runtime.processes import Processes, join_processes
from crossearth.components.train import step
from crossearth.components.train.effective_batch import Gradients
from crossearth.components.train.loop import Training
from crossearth.components.train.setup import TrainConfig, make_network, prepare
from crossearth.components.train.state import Checkpoints
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.config import load_config
from crossearth.data.common.errors import InputError
from crossearth.data.tiles.dataset import Batch
from crossearth.model.crossearth import CrossEarth, crossearth_tiny
from crossearth.model.training.multitask import BRANCHES, MultiTaskLoss, TaskConfig
from crossearth.model.weights.checkpoint import state_digest

CATALOG = load_catalog()
CONFIG = load_config(TrainConfig, NUMBERS, "test")


def refusal(folder: Path, out: str, processes: Processes, network: CrossEarth) -> str:
    """What a training that begins with `network` is refused for."""
    with (
        mock.patch.object(step, "join_processes", lambda: contextlib.nullcontext(processes)),
        mock.patch.object(step, "make_network", lambda _: network),
    ):
        try:
            step.train(CATALOG.recipe(RECIPE), CATALOG, folder / "artifacts/domains", folder / out, CONFIG)
        except InputError as error:
            return str(error)
    return ""


def shift(network: CrossEarth, amount: float) -> None:
    """Changes one trained number."""
    with torch.no_grad():
        network.rein.delta.bias[0] += amount


def resume_from_differing_states(folder: Path, processes: Processes) -> str:
    job = prepare(CATALOG.recipe(RECIPE), CATALOG, folder / "artifacts/domains", CONFIG)
    out = f"model-{processes.rank}"  # as if each node had a disk of its own
    alone = Processes(0, 1, processes.device)
    training = Training(
        job, make_network(job), alone, Checkpoints(folder / f"{out}.checkpoints", 1, job.identity)
    )
    training.iteration = 3
    shift(training.network, processes.rank)
    training.save()
    return refusal(folder, out, processes, make_network(job))


def begin_with_differing_weights(folder: Path, processes: Processes) -> str:
    network = make_network(prepare(CATALOG.recipe(RECIPE), CATALOG, folder / "artifacts/domains", CONFIG))
    shift(network, processes.rank)
    return refusal(folder, "model", processes, network)


def share_gradients(processes: Processes) -> dict[str, object]:
    """Frozen and trained numbers of a process that began with its rank in them, and its gradients."""
    torch.manual_seed(0)
    network = crossearth_tiny(3, 64, frozen_backbone=True, masked_modelling=True, geospatial=True).train()
    with torch.no_grad():
        network.backbone.vit.cls_token.fill_(processes.rank)
    shift(network, processes.rank)
    before = float(network.rein.delta.bias[0])
    gradients = Gradients(MultiTaskLoss(network, BRANCHES["full"], TaskConfig(), None, 0), processes, False)
    torch.manual_seed(processes.rank)
    batch: Batch = {
        "image": torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8),
        "label": torch.randint(0, 3, (1, 64, 64), dtype=torch.uint8),
        "position": torch.tensor([processes.rank]),
    }
    with gradients.shared():
        frozen, trained = float(network.backbone.vit.cls_token.mean()), float(network.rein.delta.bias[0])
        network.backbone.vit.cls_token.data.zero_()
        gradients.backward([batch])
    grads = {name: each.grad for name, each in network.named_parameters() if each.grad is not None}
    return {
        "frozen": frozen,
        "trained": [before, trained],
        "gradients": state_digest(grads),
        "without": sorted(network.trained_parameters().keys() ^ grads.keys()),
    }


def score(folder: Path) -> None:
    with mock.patch.object(evaluate_step, "_track"):
        evaluate_step.evaluate(
            CATALOG.recipe(RECIPE),
            CATALOG,
            folder / "artifacts/domains",
            folder / "scored",
            folder / "together",
            EvaluateConfig(batch_size=2, device="cpu"),
        )


def main(rank: int, group: dict[str, str], folder: Path) -> dict[str, object]:
    """What the process found."""
    os.environ |= group | {"RANK": str(rank)}
    with join_processes() as processes:
        found = {
            "weights": begin_with_differing_weights(folder, processes),
            "states": resume_from_differing_states(folder, processes),
            **share_gradients(processes),
        }
    score(folder)
    return found
