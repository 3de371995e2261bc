"""A map to look at in a browser: one HTML file, the map over the image, a slider, a legend with areas."""

from base64 import b64encode
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crossearth.components.runtime.pages import render

TEMPLATE = "quick_look.html"
QUALITY = 85


def write_quick_look(
    path: Path, image_HW3: NDArray[np.uint8], preview: Path, report: Mapping[str, Any], palette: list[str]
) -> None:
    """Writes the page: styles, script and pictures are in it, it asks no network.

    Args:
        image_HW3: what the network saw, thinned, of the size of the preview.
        preview: the map's PNG.
        report: the map's report, for the legend.
    """
    buffer = BytesIO()
    Image.fromarray(image_HW3).save(buffer, "WEBP", quality=QUALITY, method=0)
    values = {
        "report": report,
        "classes": [
            each | {"colour": colour} for each, colour in zip(report["classes"], palette, strict=True)
        ],
        "size": image_HW3.shape[1::-1],
        "image": _uri("image/webp", buffer.getvalue()),
        "overlay": _uri("image/png", preview.read_bytes()),
    }
    page = render("predict", TEMPLATE, values, {"hectares": _hectares})
    path.write_text(page, encoding="utf-8")


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"


def _hectares(area_m2: float | None) -> str:
    return "unknown" if area_m2 is None else f"{area_m2 / 1e4:,.4g}"
