"""COCO's JSON: one file for many images, shapes as polygons or run lengths."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths
from shapely import MultiPolygon

from crossearth.data.annotations.documents import entry, parse_json, points
from crossearth.data.annotations.shapes import Bitmap, Shape, outline
from crossearth.data.annotations.source import LabelSource
from crossearth.data.common.config import shown
from crossearth.data.common.errors import InputError
from crossearth.data.raster.archives import Member, read
from crossearth.data.raster.reader import Raster


@dataclass(frozen=True)
class CocoFile:
    """What a COCO file says.

    Attributes:
        parts: name of an image's file -> its labels.
        names: how many shapes have which name.
    """

    parts: dict[str, LabelSource]
    names: dict[str, int]


def read_file(member: Member) -> CocoFile:
    """Reads a COCO file; run lengths stay as they are until an image is read.

    Raises:
        InputError: broken JSON, with line and column; an entry that lacks something, by its number; boxes
            without shapes.
    """
    found = parse_json(read(member), member)
    name_of = {
        entry(each, "id", int, f"{member}: categories[{number}]"): entry(
            each, "name", str, f"{member}: categories[{number}]"
        )
        for number, each in enumerate(entry(found, "categories", list, member))
    }
    images: dict[Any, dict[str, Any]] = {}
    for number, each in enumerate(entry(found, "images", list, member)):
        where = f"{member}: images[{number}]"
        key = entry(each, "id", (int, str), where)
        if key in images:
            raise InputError(f"a second image of the id {key!r}", where=where)
        size = [each.get("width"), each.get("height")]
        images[key] = {"file": entry(each, "file_name", str, where), "size": size, "shapes": []}
    counts: Counter[str] = Counter()
    for number, each in enumerate(entry(found, "annotations", list, member)):
        where = f"{member}: annotations[{number}]"
        key, category = entry(each, "image_id", (int, str), where), entry(each, "category_id", int, where)
        if key not in images or category not in name_of:
            what = f"image_id {key!r}" if key not in images else f"category_id {category}"
            raise InputError(f"{what} is nowhere in the file", where=where)
        drawn = each.get("segmentation")
        if not drawn or not isinstance(drawn, list | dict):
            raise InputError(
                f"segmentation: {shown(drawn)}",
                where=where,
                expected="polygons or run lengths: boxes alone say of no pixel what it is",
            )
        counts[name_of[category]] += 1
        images[key]["shapes"].append([number, name_of[category], drawn])
    parts: dict[str, LabelSource] = {}
    for each in images.values():
        if each["file"] in parts:
            raise InputError(f"the image {each['file']!r} twice", where=member)
        parts[each["file"]] = LabelSource(str(member), (), json.dumps(each))
    return CocoFile(parts, dict(counts))


def shapes(source: LabelSource, image: Raster) -> list[Shape]:
    """The shapes of one image.

    Raises:
        InputError: they are of an image of another size; a shape that is none, by its number.
    """
    part = json.loads(source.part)
    size = image.dataset.width, image.dataset.height
    if all(isinstance(side, int) for side in part["size"]) and tuple(part["size"]) != size:
        raise InputError(
            f"labels of {part['size'][0]} x {part['size'][1]} px for an image of {size[0]} x {size[1]} px",
            where=f"{source}: {part['file']}",
            expected=f"the size of {image.where}",
        )
    return [
        Shape(name, _area(drawn, size, f"{source}: annotations[{number}]: segmentation"))
        for number, name, drawn in part["shapes"]
    ]


def _area(drawn: Any, size: tuple[int, int], where: str) -> Any:
    if isinstance(drawn, list):
        rings = drawn if isinstance(drawn[0], list) else [drawn]
        parts = [outline(points(ring, where)) for ring in rings]
        return MultiPolygon(parts) if len(parts) > 1 else parts[0]
    width, height = size
    counts = drawn.get("counts")
    if drawn.get("size") != [height, width]:
        raise InputError(f"size: {shown(drawn.get('size'))}", where=where, expected=f"[{height}, {width}]")
    try:
        if isinstance(counts, list):
            packed = run_lengths.frPyObjects(
                {"size": [height, width], "counts": _checked(counts)}, height, width
            )
        else:
            packed = {"size": [height, width], "counts": str(counts).encode("ascii")}
        mask_HW = run_lengths.decode(packed).astype(bool)
    except (ValueError, TypeError, OverflowError, UnicodeEncodeError) as error:
        raise InputError(f"no run lengths: {error}", where=where) from error
    if not mask_HW.any():
        return Bitmap(0, 0, np.zeros((0, 0), bool))
    rows, cols = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(cols[0])
    return Bitmap(left, top, mask_HW[top : rows[-1] + 1, left : cols[-1] + 1])


def _checked(counts: list[Any]) -> list[int]:
    if not all(isinstance(count, int) and 0 <= count < 2**32 for count in counts):
        raise ValueError("counts are whole numbers from 0")
    return counts
