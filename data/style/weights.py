"""Where the weights of style engines lie on this machine."""

import os
from pathlib import Path

from crossearth.data.common.config import home_path


def style_weights_dir() -> Path | None:
    """$CROSSEARTH_STYLE_WEIGHTS: folder of the released style networks, for the engine `ghiasi`."""
    folder = os.environ.get("CROSSEARTH_STYLE_WEIGHTS")
    return home_path(Path(folder)) if folder else None
