"""What a file is that is no image, and how a domain's `masks` would name it."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from crossearth.data.annotations.cvat import LABELMAP
from crossearth.data.annotations.documents import top_level
from crossearth.data.annotations.imagefolder import TABLES, is_table
from crossearth.data.annotations.source import VECTOR_SUFFIXES
from crossearth.data.catalog.domains import Form
from crossearth.data.common.errors import InputError
from crossearth.data.raster.archives import Member, read

OTHER_VECTOR = (".kml", ".kmz", ".gml", ".dxf", ".gdb")
CONTAINERS = (
    ".h5",
    ".hdf5",
    ".nc",
    ".mat",
    ".npz",
    ".npy",
    ".tfrecord",
    ".tfrecords",
    ".parquet",
    ".lmdb",
    ".zarr",
)
OTHER_RASTERS = (".mrf", ".ers", ".ecw", ".sid", ".asc", ".grd", ".kea")
YOLO_TABLES = ("data.yaml", "dataset.yaml", "data.yml")
FILES_READ = 5
YOLO_BYTES = 2**20


class Recognised(NamedTuple):
    """A kind of labels among files.

    Attributes:
        form: as a domain's `masks` names it; None: it is not read.
        what: what a person calls it.
        files: the files that are such.
    """

    form: Form | None
    what: str
    files: tuple[Member, ...]


def recognise(members: Sequence[Member]) -> list[Recognised]:
    """The kinds of labels, and of containers of images, among files that are no images."""
    found: dict[tuple[Form | None, str], list[Member]] = {}
    jsons = 0
    for member in members:
        name = PurePosixPath(member.path).name.lower()
        kind: tuple[Form | None, str] | None = None
        if name.endswith(VECTOR_SUFFIXES) and not name.endswith(".json"):
            kind = "polygons", "polygons"
        elif name.endswith(OTHER_VECTOR):
            kind = None, "polygons of a kind that is not read (export them as GeoPackage)"
        elif name in TABLES and is_table(member):
            kind = "imagefolder", "an image folder of Hugging Face"
        elif name == LABELMAP:
            kind = "cvat", "CVAT's segmentation masks"
        elif name in YOLO_TABLES:
            kind = "yolo", "a dataset of YOLO"
        elif _is_yolo(member):
            kind = "yolo", "labels of YOLO"
        elif name.endswith(".json") and jsons < FILES_READ:
            jsons += 1
            kind = _of_json(member)
        elif name.endswith(CONTAINERS):
            kind = None, "a container of many images (export them as GeoTIFF or PNG)"
        elif name.endswith(OTHER_RASTERS):
            kind = None, "an image of a kind that is not read (gdal_translate makes a GeoTIFF of it)"
        if kind is not None:
            found.setdefault(kind, []).append(member)
    return [Recognised(form, what, tuple(files)) for (form, what), files in found.items()]


def told(members: Sequence[Member]) -> str:
    """What lies there instead of images, for a message; empty where nothing is recognised."""
    lines = []
    for form, what, files in recognise(members):
        line = f"\n  here: {files[0]}: {what}"
        if form is not None:
            line += (
                f"; write\n    {entry(form, str(files[0].container if not files[0].name else files[0].path))}"
            )
        lines.append(line)
    return "".join(lines)


def entry(form: Form, place: str) -> str:
    """The line of a catalog file for labels of a form."""
    folder = str(PurePosixPath(place).parent)
    return {
        "polygons": f"masks: {{polygons: {place}, attribute: NAME, outside: background}}",
        "coco": f"masks: {{coco: {place}, outside: background}}",
        "labelme": f"masks: {{labelme: {folder}, outside: background}}",
        "yolo": f"masks: {{yolo: {folder}/labels, names: {place}, outside: background}}",
        "cvat": f"masks: {{cvat: {folder}}}",
        "imagefolder": f"masks: {{imagefolder: {folder}}}",
    }[form]


def _is_yolo(member: Member) -> bool:
    """Whether a text file beside images holds shapes of YOLO, by its folder and its first line."""
    parts = member.path.lower().split("/")
    if not parts[-1].endswith(".txt") or "labels" not in parts[:-1] or member.size > YOLO_BYTES:
        return False
    words = read(member).decode("utf-8", "replace").partition("\n")[0].split()
    return len(words) > 6 and all(re.fullmatch(r"-?[\d.eE+-]+", word) for word in words)


def _of_json(member: Member) -> tuple[Form | None, str] | None:
    seen = set()
    try:
        for key, value in top_level(member):
            seen.add(key)
            if seen >= {"images", "annotations", "categories"}:
                return "coco", "a COCO file"
            if seen >= {"shapes", "imagePath"}:
                return "labelme", "labelme's shapes"
            if key == "type" and value == "FeatureCollection":
                return "polygons", "polygons"
    except InputError:
        return None
    return None
