"""The network as other programs run it: one window of values 0..1 in, a probability per class out."""

import torch
from torch import Tensor, nn

from crossearth.model.crossearth import CrossEarth


class WindowClassifier(nn.Module):
    """A trained network and what `predict` does around it, without what only training uses.

    Values outside 0..1 are clipped, and all are rounded to whole 255ths: the network sees the bytes that it
    was trained on. It normalises them itself.

    Args:
        network: in evaluation mode; loses its heads that only training uses.
    """

    def __init__(self, network: CrossEarth) -> None:
        super().__init__()
        network.image_token = network.reconstruction = None
        if not network.config.inject_at_inference:
            network.gse = network.injector = None
        self.network = network.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) float32 0..1, S = the config's `crop_px` -> (B, K, S, S) float32, sum over K is 1."""
        scores_BKSS = self.network((image.clamp(0, 1) * 255).round())
        return scores_BKSS / scores_BKSS.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


@torch.no_grad()  # with gradients the deformable attention would take the way of `grid_sample`
def trace(window: WindowClassifier) -> torch.export.ExportedProgram:
    """The network as a graph that needs none of our code; any number of windows at a time."""
    side = window.network.config.crop_px
    batch = torch.export.Dim("batch", min=1)
    example_23SS = torch.zeros(2, 3, side, side)  # of 1 the graph would take that for a constant
    return torch.export.export(window, (example_23SS,), dynamic_shapes=({0: batch},), strict=False)
