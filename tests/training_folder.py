"""A user's folder with an ingested source and numbers that train in seconds."""

import os
import sys
from pathlib import Path
from typing import Any

import yaml
from domain_factory import write_domain

from crossearth.data.catalog.loader import load_catalog

RECIPE = "loveda-urban"
NUMBERS: dict[str, Any] = {
    "network": "tiny",
    "ablation": "+mim",
    "sizes": {"embed": 48, "channels": 16, "mask_channels": 16, "decoder_layers": 1, "norm_groups": 4},
    "iterations": 8,
    "batch_size": 4,
    "crop_px": 32,
    "scale": [1.0, 2.0],
    "precision": "float32",
    "schedule_iterations": 10_000,
    "workers": 0,
    "log_every": 1,
    "checkpoint_every": 5,
    "tasks": {"mask_block_px": 16, "segmentation": {"num_points": 32}},
}


def write_folder(folder: Path, **changes: Any) -> None:
    """Writes the domain, where it is not there, and params.yaml."""
    domain = load_catalog().domain_dir(folder / "artifacts/domains", RECIPE)
    if not domain.is_dir():
        write_domain(domain, RECIPE, "loveda", split="train")
    preset = {"train": NUMBERS | changes}
    (folder / "params.yaml").write_text(yaml.safe_dump({"preset": "test", "presets": {"test": preset}}))


def environment() -> dict[str, str]:
    """Of a shell in which this interpreter's environment is active."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
