"""Earth statistics to train with, drawn instead of fitted."""

from pathlib import Path

import torch

from crossearth.data.style.earth import EarthStyles, style_engine


def write_styles(path: Path) -> Path:
    """Those of the spectral engine, around one random picture."""
    engine = style_engine("spectral")
    generator = torch.Generator().manual_seed(9)
    mean = engine.embed(torch.rand(1, 3, 64, 64, generator=generator) * 255)[0]
    factor = 0.1 * torch.eye(engine.dim, dtype=torch.float64)
    return EarthStyles(mean.double(), factor @ factor.T, factor, engine.name, 100, "0" * 64).save(path)
