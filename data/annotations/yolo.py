"""YOLO's segmentation labels: a text file an image, a shape a line, in shares of the image's sides."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from shapely import Polygon

from crossearth.data.annotations.documents import points
from crossearth.data.annotations.shapes import Shape
from crossearth.data.annotations.source import LabelSource
from crossearth.data.common.config import parse_yaml, shown
from crossearth.data.common.errors import InputError
from crossearth.data.raster.archives import Member, read
from crossearth.data.raster.reader import Raster

BOX = 5  # numbers of a line that is a box: class, middle and sides
# exporters round: a point may lie a little outside
SLACK = 0.01


def read_names(member: Member) -> dict[str, str]:
    """Number -> name of a class, of YOLO's data.yaml or of a list, a name a line; InputError: it has none."""
    text = _text(member)
    if member.path.lower().endswith(".txt"):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return {str(number): name for number, name in enumerate(lines)}
    found: Any = parse_yaml(text, member)
    names = found.get("names") if isinstance(found, Mapping) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping) or not all(isinstance(number, int) for number in names):
        raise InputError(
            f"names: {shown(names)}", where=member, expected="names: [a, b], or names: {0: a, 1: b}"
        )
    return {str(number): str(name) for number, name in names.items()}


def shapes(source: LabelSource, image: Raster, names: Mapping[str, str] | None) -> list[Shape]:
    """The shapes of one image; without names a shape's name is its number.

    Raises:
        InputError: a line that is no shape, by its number; a class that has no name.
    """
    size = np.array([image.dataset.width, image.dataset.height], float)
    found = []
    for number, line in enumerate(_text(source.files[0]).splitlines(), 1):
        where = f"{source}: line {number}"
        words = line.split()
        if not words:
            continue
        if len(words) == BOX:
            raise InputError("a box", where=where, expected="shapes: boxes alone say of no pixel what it is")
        try:
            kind, values = str(int(words[0])), [float(word) for word in words[1:]]
        except ValueError as error:
            raise InputError(
                f"{line[:60]!r}", where=where, expected="a class's number, then x y x y ... from 0 to 1"
            ) from error
        ring = points(values, where)
        if ring.min() < -SLACK or ring.max() > 1 + SLACK:
            raise InputError(
                f"a point at {ring.min():g} or {ring.max():g}",
                where=where,
                expected="shares of the sides, 0 to 1",
            )
        if names is not None and kind not in names:
            raise InputError(
                f"class {kind} has no name", where=where, expected=f"one of {shown(dict(names))}"
            )
        found.append(Shape(kind if names is None else names[kind], Polygon(ring * size)))
    return found


def _text(member: Member) -> str:
    try:
        return read(member).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not text: {error}", where=member) from error
