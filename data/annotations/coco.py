"""COCO's JSON: one file for many images, shapes as polygons or run lengths.

The file may be larger than the memory: its shapes go to a database, which gives those of one image at a time.
"""

import json
import sqlite3
from collections.abc import Container, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths
from shapely import MultiPolygon, Polygon

from crossearth.data.annotations.documents import entry, points, streamed
from crossearth.data.annotations.shapes import Bitmap, Shape, refuse_other_size
from crossearth.data.annotations.source import LabelSource
from crossearth.data.common.config import shown
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_dir, digest
from crossearth.data.raster.archives import Member
from crossearth.data.raster.reader import Raster

DATABASE = "shapes.sqlite"


@dataclass(frozen=True)
class CocoFile:
    """What a COCO file says.

    Attributes:
        parts: name of an image's file -> its labels.
        names: how many shapes have which name.
    """

    parts: dict[str, LabelSource]
    names: dict[str, int]


def read_file(member: Member, scratch: Path) -> CocoFile:
    """Reads a COCO file of any size; shapes stay as they are written until their image is read.

    Args:
        scratch: gets the shapes in a database, unless it has them already.

    Raises:
        InputError: broken JSON, with line and column; an entry that lacks something, by its number; boxes
            without shapes.
    """
    folder = scratch / digest([str(member), member.size, member.tag])[:16]
    images = _images(member)
    if not folder.is_dir():
        with atomic_dir(folder) as partial:
            _store(_drawn(member, images), partial / DATABASE)
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        names = dict(database.execute("SELECT name, COUNT(*) FROM shapes GROUP BY name"))
        rows = database.execute("SELECT image, number, name, drawn FROM shapes ORDER BY image, number")
        digests = {key: _digest(theirs) for key, theirs in groupby(rows, itemgetter(0))}
    parts: dict[str, LabelSource] = {}
    for key, (file, size) in images.items():
        if file in parts:
            raise InputError(f"the image {file!r} twice", where=member)
        part = {"image": key, "file": file, "size": size, "digest": digests.get(key, "")}
        # the part says all that the labels depend on: of the database its place alone counts
        held = Member(DATABASE, folder / DATABASE, "", 0, "")
        parts[file] = LabelSource(str(member), (held,), json.dumps(part))
    return CocoFile(parts, names)


def _images(member: Member) -> dict[int | str, tuple[str, list[Any]]]:
    """Id of an image -> its file's name, and width and height."""
    found: dict[int | str, tuple[str, list[Any]]] = {}
    for number, each in enumerate(_list(member, "images")):
        where = f"{member}: images[{number}]"
        key = entry(each, "id", (int, str), where)
        if key in found:
            raise InputError(f"a second image of the id {key!r}", where=where)
        found[key] = entry(each, "file_name", str, where), [each.get("width"), each.get("height")]
    return found


def _drawn(member: Member, images: Container[Any]) -> Iterator[tuple[Any, int, str, str]]:
    """Image, number in the file, name and segmentation (JSON) of each shape."""
    name_of = {}
    for number, each in enumerate(_list(member, "categories")):
        where = f"{member}: categories[{number}]"
        name_of[entry(each, "id", int, where)] = entry(each, "name", str, where)
    number = -1
    for number, each in enumerate(streamed(member, "annotations.item")):
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
        try:
            yield key, number, name_of[category], json.dumps(drawn)
        except RecursionError as error:
            raise InputError("segmentation: lists in lists without end", where=where) from error
    if number < 0:
        _list(member, "annotations")


def _digest(rows: Iterable[tuple[Any, ...]]) -> str:
    found = sha256()
    for row in rows:
        found.update(json.dumps(row).encode())
    return found.hexdigest()


def _list(member: Member, key: str) -> list[Any]:
    found: list[Any] = entry({key: next(streamed(member, key), None)}, key, list, member)
    return found


def _store(shapes: Iterable[tuple[Any, int, str, str]], path: Path) -> None:
    try:
        with closing(sqlite3.connect(path)) as database, database:
            # an id is a number or a text, and stays what it is
            database.execute("CREATE TABLE shapes (image, number INTEGER, name TEXT, drawn TEXT)")
            database.executemany("INSERT INTO shapes VALUES (?, ?, ?, ?)", shapes)
            database.execute("CREATE INDEX by_image ON shapes (image, number)")
    except (sqlite3.Error, OverflowError) as error:
        raise InputError(
            f"cannot write: {error}", where=path, next_step="free some disk, then run the command again"
        ) from error


def shapes(source: LabelSource, image: Raster) -> list[Shape]:
    """The shapes of one image; InputError: another size of image, or a shape that is none, by its number."""
    part = json.loads(source.part)
    size = image.dataset.width, image.dataset.height
    if all(isinstance(side, int) for side in part["size"]):
        refuse_other_size(tuple(part["size"]), image, f"{source}: {part['file']}")
    with closing(sqlite3.connect(source.files[0].container)) as database:
        rows = database.execute(
            "SELECT number, name, drawn FROM shapes WHERE image = ? ORDER BY number", [part["image"]]
        ).fetchall()
    return [
        Shape(name, _area(json.loads(drawn), size, f"{source}: annotations[{number}]: segmentation"))
        for number, name, drawn in rows
    ]


def _area(drawn: Any, size: tuple[int, int], where: str) -> Any:
    if isinstance(drawn, list):
        rings = drawn if isinstance(drawn[0], list) else [drawn]
        parts = [Polygon(points(ring, where)) for ring in rings]
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
