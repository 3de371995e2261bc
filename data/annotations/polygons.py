"""Polygons of a geographic information system, in the coordinates of the ground.

A file may be larger than the memory: it is read in pieces, and for an image only what lies in its bounds.
"""

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyogrio
from pyogrio.errors import CRSError, DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError
from pyproj import CRS
from pyproj.exceptions import CRSError as ProjError
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds
from shapely import length

from crossearth.data.annotations.shapes import Shape
from crossearth.data.annotations.source import LabelSource
from crossearth.data.catalog.domains import Masks
from crossearth.data.common.config import listed, nearest
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_dir, digest
from crossearth.data.raster.archives import Member, unpack
from crossearth.data.raster.reader import Raster, gdal, open_raster

# by its first bytes GDAL would open anything, and some kinds point to other files
SIGNATURES = {
    ".geojson": (b"{", b"\xef\xbb\xbf{"),
    ".json": (b"{", b"\xef\xbb\xbf{"),
    ".gpkg": (b"SQLite format 3\0",),
    ".shp": (b"\0\0\x27\x0a",),
    ".fgb": (b"fgb\x03",),
}
INDEXED = "indexed.gpkg"
WITHOUT_ATTRIBUTE = "polygon"
# straight lines of one CRS are curves of another: a point every so many px
STEP_PX = 32
MAX_POINTS = 1_000_000
MANY_VALUES = 1000  # of an attribute: it is no class
PIECE = 2**14  # features that are held at once, where all of them are asked
JSON_FAULT = re.compile(r"At line (\d+), character (\d+): (.*)")  # GDAL's words
ERRORS = (CRSError, DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError, ProjError)


def parts(member: Member, beside: Sequence[Member]) -> tuple[Member, ...]:
    """A file of polygons and those that belong to it."""
    path = PurePosixPath(member.path)
    if path.suffix.lower() != ".shp":
        return (member,)
    stem = str(path.with_suffix("")).lower()
    others = [
        each
        for each in beside
        if each is not member and each.path.lower().rpartition(".")[0] in (stem, f"{stem}.shp")
    ]
    return (member, *others)


def on_disk(files: Sequence[Member], folder: Path) -> tuple[Member, ...]:
    """The parts of a file, those from an archive unpacked below `folder`."""
    placed = []
    folder = folder / digest(str(files[0]))[:16]
    for member in files:
        if member.name:
            place = folder / PurePosixPath(member.path).name
            unpack(member.container, member.name, place)
            member = Member(member.path, place, "", member.size, member.tag, packed=True)
        placed.append(member)
    return tuple(placed)


def indexed(masks: Masks, source: LabelSource, scratch: Path) -> LabelSource:
    """A file whose features are found by their bounds: the file itself, or a GeoPackage made of it.

    To GeoJSON, and to a shapefile without its index (.qix), GDAL would look from end to end for every image.

    Args:
        scratch: gets the GeoPackage, unless it has it already.

    Raises:
        InputError: as `names`.
    """
    layer = _layer(masks, source)
    if layer["indexed"]:
        return source
    folder = scratch / digest([source.identity, source.where, layer["name"], masks.attribute])[:16]
    if not folder.is_dir():
        with atomic_dir(folder) as partial:
            _write_indexed(source, layer, masks.attribute, partial / INDEXED)
    first, *others = source.files
    # path, size and tag stay the original's: on these the labels' identity hangs
    return replace(source, files=(replace(first, container=folder / INDEXED), *others))


def _write_indexed(source: LabelSource, layer: dict[str, Any], attribute: str | None, path: Path) -> None:
    """A GeoPackage, which keeps the order of the features and holds few of them in memory."""
    with (
        warnings.catch_warnings(),
        _reading(source.where),
        pyogrio.open_arrow(
            _path(source),
            layer=layer["name"],
            columns=[attribute] if attribute else [],
            batch_size=PIECE,
            encoding=layer["encoding"],
        ) as (meta, stream),
    ):
        warnings.filterwarnings("ignore", "'crs' was not provided")
        pyogrio.write_arrow(
            stream,
            path,
            driver="GPKG",
            layer=layer["name"],
            geometry_name=meta["geometry_name"] or "wkb_geometry",
            geometry_type="Unknown",
            crs=layer["crs"],
            # names that no attribute has
            layer_options={"FID": "crossearth_fid", "GEOMETRY_NAME": "crossearth_shape"},
        )


def attributes(source: LabelSource) -> dict[str, dict[str, int]]:
    """The attributes of each layer that may hold polygons, and how many different values each has.

    Of an attribute of very many values it says about as many.

    Raises:
        InputError: the file cannot be read.
    """
    counts = {}
    for layer in _polygonal(_layers(_path(source), source.files[0].tag, source.where)).values():
        values: dict[str, set[str]] = {name: set() for name in layer["fields"]}
        for piece in _pieces(source, layer, layer["fields"]):
            for name, found in values.items():
                if len(found) <= MANY_VALUES:
                    found.update(map(str, piece[name].to_pylist()))
        counts[layer["name"]] = {name: len(found) for name, found in values.items()}
    return counts


def names(masks: Masks, source: LabelSource) -> dict[str, int]:
    """How many polygons of a file have which name.

    Raises:
        InputError: the file cannot be read, lacks the attribute, has several layers and none was named, or
            holds other things than polygons.
    """
    layer = _layer(masks, source)
    if masks.attribute is None:
        return {WITHOUT_ATTRIBUTE: layer["features"]}
    found: Counter[str] = Counter()
    for piece in _pieces(source, layer, [masks.attribute]):
        found.update(map(_name, piece[masks.attribute].to_pylist()))
    return dict(found)


def shapes(masks: Masks, source: LabelSource, image: Raster) -> list[Shape]:
    """The polygons that meet an image, in its px; raises as `names`, and where one of both has no place."""
    layer = _layer(masks, source)
    if not layer["features"]:
        return []
    crs = _crs(masks, source, layer["crs"], image)
    bounds = _bounds(source, image, crs)
    with _reading(source.where):
        frame = pyogrio.read_dataframe(
            _path(source),
            layer=layer["name"],
            columns=[masks.attribute] if masks.attribute else [],
            force_2d=True,
            bbox=tuple(bounds),
            fid_as_index=True,
        ).sort_index()  # the file's order, which is not that of an index
    frame = frame[frame.geometry.notna() & ~frame.geometry.is_empty]
    if odd := sorted({*frame.geom_type} - {"Polygon", "MultiPolygon"}):
        raise _no_polygons(source, odd)
    geometry = frame.geometry
    if crs is not None and not crs.equals(
        ours := CRS.from_wkt(image.dataset.crs.to_wkt()), ignore_axis_order=True
    ):
        step = (bounds[2] - bounds[0]) / image.dataset.width * STEP_PX
        step = max(step, float(length(geometry.values).sum()) / MAX_POINTS)
        geometry = geometry.set_crs(crs, allow_override=True).segmentize(step).to_crs(ours)
    a, b, c, d, e, f = (~image.dataset.transform)[:6]
    geometry = geometry.affine_transform([a, b, d, e, c, f])
    labels = map(_name, frame[masks.attribute]) if masks.attribute else [WITHOUT_ATTRIBUTE] * len(frame)
    return [Shape(name, area) for name, area in zip(labels, geometry, strict=True)]


def _no_polygons(source: LabelSource, kinds: Sequence[str]) -> InputError:
    return InputError(
        f"shapes that are no polygons: {listed(kinds)}",
        where=source,
        expected="polygons",
        next_step="give lines and points a width (Buffer, in QGIS) and export them again",
    )


def meeting(masks: Masks, source: LabelSource, images: Sequence[Member]) -> tuple[int, list[Member]]:
    """How many polygons meet none of the images, and the images that some meet; raises as `shapes`."""
    layer = _layer(masks, source)
    if not layer["features"]:
        raise InputError("no polygons", where=source, expected="some: the layer is empty")
    met, covered = [np.empty(0, np.int64)], []
    for member in images:
        with gdal(), open_raster(member) as image:
            bounds = _bounds(source, image, _crs(masks, source, layer["crs"], image))
        with _reading(source.where):
            fids, _ = pyogrio.read_bounds(_path(source), layer=layer["name"], bbox=bounds)
        if len(fids):
            met.append(fids)
            covered.append(member)
    return layer["features"] - len(np.unique(np.concatenate(met))), covered


def _path(source: LabelSource) -> Path:
    return source.files[0].container


def _layer(masks: Masks, source: LabelSource) -> dict[str, Any]:
    """Name, CRS, kind of shapes, attributes, number of features and index of the layer that is meant."""
    path = _path(source)
    found = _layers(path, source.files[0].tag, source.where)
    # points and lines may lie beside
    meant = _polygonal(found) or found
    if masks.layer is None and len(meant) > 1:
        raise InputError(
            f"{len(meant)} layers",
            where=source,
            expected=f"`layer`: one of {listed(meant)}",
            next_step="say it in the catalog file, e.g. masks: {polygons: ..., "
            f"layer: {json.dumps(next(iter(meant)), ensure_ascii=False)}}}",
        )
    name = masks.layer or next(iter(meant), "")
    if name not in found:
        raise InputError(f"no layer {name!r}", where=source, expected=nearest(name, found))
    layer = found[name]
    if not _polygonal({name: layer}):
        raise _no_polygons(source, [layer["kind"]])
    # a file without features often says no attributes either
    if masks.attribute is not None and layer["features"] and masks.attribute not in layer["fields"]:
        raise InputError(
            f"no attribute {masks.attribute!r}",
            where=source,
            expected=nearest(masks.attribute, layer["fields"]),
        )
    return layer


def _polygonal(layers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those that are not of other shapes."""
    return {
        name: layer
        for name, layer in layers.items()
        if "Line" not in layer["kind"] and "Point" not in layer["kind"]
    }


@lru_cache(maxsize=8)
def _layers(path: Path, tag: str, where: str) -> dict[str, dict[str, Any]]:
    """The layers that have shapes."""
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(64).lstrip() if suffix in (".geojson", ".json") else file.read(64)
    if not head.startswith(SIGNATURES[suffix]):
        raise InputError(
            f"not what {suffix} files are",
            where=where,
            expected="GeoJSON, GeoPackage, shapefile or FlatGeobuf",
        )
    with _reading(where):
        with_shapes = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
        infos = {name: pyogrio.read_info(path, layer=name, force_feature_count=True) for name in with_shapes}
    return {
        name: {
            "name": name,
            "crs": info["crs"],
            "kind": str(info["geometry_type"]),
            # a list is no name
            "fields": [
                str(field)
                for field, kind in zip(info["fields"], info["dtypes"], strict=True)
                if not str(kind).startswith("list")
            ],
            # UTF-8 is also what GDAL makes of an encoding that the file says
            "encoding": info["encoding"] if info["encoding"] != "UTF-8" else None,
            "features": int(info["features"]),
            "indexed": bool(info["capabilities"]["fast_spatial_filter"]),
        }
        for name, info in infos.items()
    }


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turns every way in which a file can be broken into one error that names it."""
    try:
        yield
    except ERRORS as error:
        if place := JSON_FAULT.search(str(error)):
            line, column, what = place.groups()
            raise InputError(
                f"not JSON: {what}",
                where=f"{where}: line {line}, column {column}",
                next_step="export the file again",
            ) from error
        raise InputError(
            f"cannot be read: {error}",
            where=where,
            expected="GeoJSON, GeoPackage, shapefile (.shp, .shx and .dbf) or FlatGeobuf, of polygons",
            next_step="export the file again",
        ) from error


def _pieces(source: LabelSource, layer: dict[str, Any], columns: list[str]) -> Iterator[Any]:
    """Attributes of all features, `PIECE` features at a time."""
    if not columns:
        return
    with (
        _reading(source.where),
        pyogrio.open_arrow(
            _path(source),
            layer=layer["name"],
            columns=columns,
            read_geometry=False,
            batch_size=PIECE,
            use_pyarrow=True,
            encoding=layer["encoding"],
        ) as (_, stream),
    ):
        yield from stream


def _crs(masks: Masks, source: LabelSource, said: str | None, image: Raster) -> CRS | None:
    """The polygons' CRS; None where neither they nor the image have one."""
    dataset = image.dataset
    if dataset.transform.is_identity:
        raise InputError(
            "an image without a place on the ground, for polygons that have one",
            where=image.where,
            expected="a georeference: in the file, in a world file, or in an .aux.xml",
        )
    if masks.crs is None and (said is None) != (dataset.crs is None):
        lacking, other = (source.where, image.where) if said is None else (image.where, source.where)
        known = said or dataset.crs.to_string()
        raise InputError(
            "no CRS",
            where=lacking,
            expected=f"one, as {other} has: {known[:60]}",
            next_step="say it in the catalog file, e.g. masks: {polygons: ..., crs: "
            + f"{dataset.crs.to_string()}}}"
            if said is None
            else "gdal_edit.py -a_srs EPSG:... FILE",
        )
    if dataset.crs is None:
        return None
    try:
        return CRS.from_user_input(masks.crs or said)
    except ProjError as error:
        raise InputError(
            f"crs: {masks.crs or said!r} is none: {error}", where=source, expected="e.g. EPSG:32633"
        ) from error


def _bounds(source: LabelSource, image: Raster, crs: CRS | None) -> tuple[float, float, float, float]:
    """What an image covers, in the polygons' coordinates, and a px more."""
    dataset = image.dataset
    corners = [dataset.transform @ (x, y) for x in (-1, dataset.width + 1) for y in (-1, dataset.height + 1)]
    xs, ys = zip(*corners, strict=True)
    bounds = min(xs), min(ys), max(xs), max(ys)
    if crs is None:
        return bounds
    try:
        found = transform_bounds(dataset.crs, crs.to_wkt(), *bounds, densify_pts=21)
    except RasterioError as error:
        raise InputError(
            f"no way from the image's CRS to the polygons': {error}", where=image.where, expected=str(source)
        ) from error
    if not all(map(math.isfinite, found)):
        raise InputError(
            "no place in the polygons' CRS", where=image.where, expected=f"one that {source} covers"
        )
    return found


def _name(value: Any) -> str:
    """An attribute's value as a name: 3.0 is "3", and nothing is ""."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)
