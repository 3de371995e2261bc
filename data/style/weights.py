"""Where the weights of the style engine `ghiasi` lie on this machine."""

import os
from pathlib import Path

from crossearth.data.common.config import home_path

TRANSFER_FILE, PREDICTOR_FILE = "checkpoint_transformer.pth", "checkpoint_stylepredictor.pth"


def style_weights_dir() -> Path | None:
    """$CROSSEARTH_STYLE_WEIGHTS: folder of the released style networks, for the engine `ghiasi`."""
    folder = os.environ.get("CROSSEARTH_STYLE_WEIGHTS")
    return home_path(Path(folder)) if folder else None
