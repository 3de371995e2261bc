"""The style engines on one image, embedding and transfer together as the injection takes them.

The baseline of `ghiasi` is the paper's networks as their equations say: float32, planes apart, torch's
instance norm. Random weights. The baseline of `spectral` is the embedding alone.
"""

from unittest.mock import patch

import torch
from harness import Action, Case, Form, device, on_gpu
from torch import Tensor
from torch.nn import functional as F

from crossearth.data.style import ghiasi
from crossearth.data.style.earth import StyleEngine
from crossearth.data.style.ghiasi import GhiasiEngine, StylePredictor, StyleTransfer
from crossearth.data.style.spectral import SpectralEngine

SIDES_PX = (512, 1024)


def plain(side_px: int) -> Action:
    transfer, predictor = StyleTransfer().eval().to(device()), StylePredictor().eval().to(device())
    x_13HW = torch.rand(1, 3, side_px, side_px, device=device())

    @torch.no_grad()
    def run() -> object:
        with patch.object(ghiasi, "_instance_norm", F.instance_norm):
            return transfer(x_13HW, predictor(x_13HW))

    return run


def injected(engine: StyleEngine, side_px: int, compiled: bool = False) -> Action:
    engine.to(device())
    x_13HW = torch.rand(1, 3, side_px, side_px, device=device()) * 255

    def run() -> Tensor:
        return engine.transfer(x_13HW, engine.embed(x_13HW))

    return torch.compile(run) if compiled else run


def embedded(engine: StyleEngine, side_px: int) -> Action:
    engine.to(device())
    x_13HW = torch.rand(1, 3, side_px, side_px, device=device()) * 255
    return lambda: engine.embed(x_13HW)


def ghiasi_engine() -> GhiasiEngine:
    return GhiasiEngine(StyleTransfer(), StylePredictor())


def ghiasi_case(side_px: int) -> Case:
    forms = {
        "plain": Form(lambda: plain(side_px)),
        "engine": Form(lambda: injected(ghiasi_engine(), side_px)),
        **on_gpu("engine, compiled", Form(lambda: injected(ghiasi_engine(), side_px, compiled=True))),
    }
    return Case(forms, "image")


def spectral_case(side_px: int) -> Case:
    forms = {
        "embed": Form(lambda: embedded(SpectralEngine(), side_px)),
        "embed and transfer": Form(lambda: injected(SpectralEngine(), side_px)),
    }
    return Case(forms, "image", rounds=9)


CASES = {f"style ghiasi, {side} px": ghiasi_case(side) for side in SIDES_PX} | {
    f"style spectral, {side} px": spectral_case(side) for side in SIDES_PX
}
