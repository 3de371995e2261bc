"""labelme's JSON: a file an image, beside it or in a folder of its own."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from shapely import Point, Polygon

from crossearth.data.annotations.documents import entry, parse_json, points
from crossearth.data.annotations.shapes import Bitmap, Shape, refuse_other_size
from crossearth.data.annotations.source import LabelSource
from crossearth.data.common.errors import InputError
from crossearth.data.raster.archives import read
from crossearth.data.raster.reader import Raster


def shapes(source: LabelSource, image: Raster) -> list[Shape]:
    """The shapes of one image; InputError: broken JSON, another size of image, a shape without an area."""
    found = parse_json(read(source.files[0]), source)
    drawn = entry(found, "shapes", list, source)
    size = image.dataset.width, image.dataset.height
    theirs = found.get("imageWidth") or size[0], found.get("imageHeight") or size[1]
    refuse_other_size(theirs, image, source)
    return [
        Shape(entry(each, "label", str, where), _area(each, where))
        for number, each in enumerate(drawn)
        for where in [f"{source}: shapes[{number}]"]
    ]


def _area(shape: Any, where: str) -> Any:
    kind = shape.get("shape_type") or "polygon"
    drawn = entry(shape, "points", list, where)
    if kind == "polygon":
        return Polygon(points(drawn, where))
    if kind in ("rectangle", "circle", "mask"):
        (x, y), (right, bottom) = points(drawn, where, 2)[:2]
        if kind == "circle":
            return Point(x, y).buffer(float(np.hypot(right - x, bottom - y)))
        if kind == "rectangle":
            return Polygon([(x, y), (right, y), (right, bottom), (x, bottom)])
        return Bitmap(round(x), round(y), _mask(entry(shape, "mask", str, where), where))
    raise InputError(
        f"a {kind}",
        where=where,
        expected="polygon, rectangle, circle or mask: others have no area",
        next_step="draw it as one of these in labelme, or remove it there",
    )


def _mask(text: str, where: str) -> Any:
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as picture:
            return np.asarray(picture.convert("L")) > 0
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"mask: {error}", where=where, expected="a PNG in base64") from error
