"""The optimiser's groups against those that the released construction gives the ViT-L model."""

import json
from pathlib import Path

import pytest
import torch

from crossearth.components.train.setup import TrainConfig
from crossearth.model.crossearth import CrossEarth, large_config
from crossearth.model.training.multitask import learning_rate, parameter_groups
from crossearth.model.weights.names import to_released

RECIPES = {
    "512": TrainConfig(),
    "1024": TrainConfig(crop_px=1024, lr=6e-5, schedule="warmup-poly"),
}


@pytest.mark.parametrize("size", ["512", "1024"])
def test_groups_equal_the_released_ones(parity_dir: Path, size: str) -> None:
    released = json.loads((parity_dir / "optim_groups_vitl.json").read_text())[size]
    config = RECIPES[size]
    with torch.device("meta"):
        network = CrossEarth(large_config(6, config.crop_px))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = parameter_groups(network, config.weight_decay)
    optimiser = torch.optim.AdamW(groups, lr=config.lr)
    ours = {
        to_released(names[id(parameter)]): (group["lr"], group["weight_decay"], list(parameter.shape))
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    assert ours == {name: (lr, decay, shape) for name, lr, decay, shape in released["groups"]}
    assert optimiser.defaults["betas"] == (0.9, 0.999)
    assert optimiser.defaults["eps"] == 1e-8
    assert (
        sum(parameter.numel() for parameter in network.trained_parameters().values())
        == released["n_trainable"]
    )


@pytest.mark.parametrize("size", ["512", "1024"])
def test_schedule_and_length_are_the_released_ones(parity_dir: Path, size: str) -> None:
    released = json.loads((parity_dir / "optim_groups_vitl.json").read_text())[size]
    config = RECIPES[size]
    assert config.iterations == released["train_cfg"]["max_iters"]
    poly = released["schedulers"][-1]
    assert config.poly_end == poly["end"]
    rate = [
        learning_rate(i, config.lr, config.schedule, config.poly_end, config.warmup_iterations)
        for i in (0, 30_000)
    ]
    begin = poly["begin"]
    first = released["schedulers"][0]
    factor = first["start_factor"] if first["type"] == "LinearLR" else 1
    base = released["groups"][0][1]
    assert rate[0] == pytest.approx(base * factor)
    assert rate[1] == pytest.approx(base * (1 - (30_000 - begin) / (poly["end"] - begin)) ** poly["power"])
