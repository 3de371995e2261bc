"""The paper's ViT-L on one image: the plain network, and ours in its two precisions; on a GPU compiled, too.

The weights are random: all classes are about as likely everywhere, so that which of them wins says nothing of
a precision. bench_precision.py asks that of a trained network.
"""

from dataclasses import replace
from pathlib import Path

import reference_network as reference
import torch
from harness import Action, Case, Form, device, on_gpu, scratch
from torch import Tensor

from crossearth.components.predict.sliding import load_network, window_scores
from crossearth.model.crossearth import CrossEarth, large_config
from crossearth.model.weights.checkpoint import load, save
from crossearth.model.weights.names import to_released

NUM_CLASSES = 7
ABOUT = {"classes": list("abcdefg"), "palette": ["#808080"] * NUM_CLASSES, "provenance": "own"}


def large_model() -> Path:
    """Folder of a ViT-L with random weights."""
    folder = scratch("vit-large")
    if not folder.exists():
        save(CrossEarth(large_config(NUM_CLASSES)), folder, ABOUT)
    return folder


def wide_stride() -> Path:
    """The same; windows overlap by an eighth."""
    folder = scratch("vit-large-448")
    if not folder.exists():
        save(CrossEarth(replace(large_config(NUM_CLASSES), stride_px=448)), folder, ABOUT)
    return folder


def plain_network(model: Path) -> tuple[dict[str, Tensor], reference.Sizes]:
    """Weights by released names, and sizes, of a model, for the plain network."""
    network = load(model, device())
    config = network.config
    sizes = reference.Sizes(
        config.heads, config.taps, config.head_heads, config.num_points, config.norm_groups
    )
    return {str(to_released(name)): value for name, value in network.state_dict().items()}, sizes


def image(side_px: int) -> Tensor:
    """(1, 3, side_px, side_px) uint8."""
    return torch.randint(0, 256, (1, 3, side_px, side_px), dtype=torch.uint8).to(device())


def plain(side_px: int) -> Action:
    state, sizes = plain_network(large_model())
    x_13HW = load(large_model(), device()).normalise(image(side_px))

    def run() -> Tensor:
        with torch.inference_mode(), torch.device(device()):
            return reference.forward(state, sizes, x_13HW)[0]

    return run


def ours(side_px: int, precision: str, compiled: bool = False) -> Action:
    loaded = load_network(large_model(), precision, device())  # type: ignore[arg-type]
    if compiled:
        loaded = replace(loaded, network=torch.compile(loaded.network))  # type: ignore[arg-type]
    image_13HW = image(side_px)
    return lambda: window_scores(loaded, image_13HW)


def case(side_px: int) -> Case:
    forms = {
        "plain": Form(lambda: plain(side_px)),
        "float32": Form(lambda: ours(side_px, "float32")),
        "bfloat16": Form(lambda: ours(side_px, "bfloat16")),
        **on_gpu("bfloat16, compiled", Form(lambda: ours(side_px, "bfloat16", compiled=True))),
    }
    return Case(forms, "image")


CASES = {"network ViT-L, 512 px": case(512)}
