"""One training step of the paper's ViT-L, batch 1, optimiser included: the plain network and loss, and ours.

Random weights, one drawn image of all classes. The backbone is frozen in every form. `rein` is the
segmentation loss alone, `full` the multi-task loss: on a plain step and on one whose image is styled.
"""

import reference_network as reference
import torch
from bench_network import NUM_CLASSES, image, large_model, plain_network
from harness import Action, Case, Form, device, on_gpu
from torch import Tensor

from crossearth.data.style.earth import EarthStyles, StyleConfig, StyleMoments
from crossearth.data.style.spectral import SpectralEngine
from crossearth.model.crossearth import CrossEarth, large_config
from crossearth.model.training.multitask import (
    BRANCHES,
    Ablation,
    LossDenominators,
    MultiTaskLoss,
    Styler,
    TaskConfig,
    parameter_groups,
)
from crossearth.model.weights.checkpoint import load

SIDE_PX = 512
NUM_POINTS = 12544


def label() -> Tensor:
    """(1, side, side) uint8: all classes, in blocks."""
    blocks = torch.randint(NUM_CLASSES, (8, 8), dtype=torch.uint8)
    return blocks.repeat_interleave(SIDE_PX // 8, 0).repeat_interleave(SIDE_PX // 8, 1)[None].to(device())


def plain() -> Action:
    state, sizes = plain_network(large_model())
    x_13HW, label_1HW = load(large_model(), device()).normalise(image(SIDE_PX)), label()
    trained = [
        value.requires_grad_()
        for name, value in state.items()
        if name.startswith(("backbone.reins", "decode_head"))
    ]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.05, foreach=False)

    def step() -> None:
        with torch.device(device()):
            _, trace = reference.forward(state, sizes, x_13HW)
            sum(reference.loss(trace, label_1HW, NUM_POINTS, {}).values(), torch.zeros(())).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def ours(ablation: Ablation, styled: bool = False, compiled: bool = False) -> Action:
    branches = BRANCHES[ablation]
    if ablation == "rein":
        network = load(large_model())
    else:
        network = CrossEarth(large_config(NUM_CLASSES, SIDE_PX, geospatial=True, masked_modelling=True))
    network.to(device()).train()
    styler = None
    if branches.style:
        engine = SpectralEngine().to(device())
        moments = StyleMoments(engine.dim)
        moments.add(engine.embed(torch.cat([image(64) for _ in range(4)])).cpu(), list("abcd"))
        earth = EarthStyles.from_moments(moments, engine.name)
        styler = Styler(engine, earth, StyleConfig(), float(styled))
    loss = MultiTaskLoss(network, branches, TaskConfig(), styler, seed=0)
    optimiser = torch.optim.AdamW(parameter_groups(network, 0.05), lr=1e-4, fused=True)
    image_13HW, label_1HW = image(SIDE_PX), label()
    whole = LossDenominators.of(
        label_1HW, network.config.num_tokens, TaskConfig().segmentation.weight_no_object
    )

    terms_of = torch.compile(loss) if compiled else loss

    def step() -> None:
        with torch.autocast(device(), torch.bfloat16):
            terms = terms_of(image_13HW, label_1HW, [0], whole)
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


CASES = {
    "training step ViT-L, 512 px": Case(
        {
            "plain": Form(plain),
            "rein, bf16": Form(lambda: ours("rein")),
            "full, bf16": Form(lambda: ours("full")),
            "full, bf16, styled": Form(lambda: ours("full", styled=True)),
            **on_gpu("full, bf16, compiled", Form(lambda: ours("full", compiled=True))),
        },
        "step",
        rounds=3,
    )
}
