"""One scene of a domain: checked, cut into tiles and stored."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median_low
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.io import DatasetReader
from rasterio.transform import AffineTransformer, GCPTransformer, RPCTransformer, TransformerBase

from crossearth.components.ingest.sources import SceneSource
from crossearth.components.runtime.code import code_digest
from crossearth.data.annotations.opening import open_labels
from crossearth.data.catalog.domains import Catalog, Domain, Rule
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import digest
from crossearth.data.raster.gdal import GdalError, hearing
from crossearth.data.raster.ground import in_crs
from crossearth.data.raster.names import stacking
from crossearth.data.raster.pixel_area import pixel_side_m
from crossearth.data.raster.reader import Raster, gdal, open_raster, refuse_palette
from crossearth.data.raster.reading import (
    Reading,
    band_names,
    bounds_of_bytes,
    fitted_size,
    is_tagged,
    raw_dtype,
    refuse_other_names,
)
from crossearth.data.tiles.scenes import SceneTiling, tile_scene


@dataclass(frozen=True)
class Plan:
    """What a worker must know beside the scene: the domain, resolved.

    Attributes:
        first: the image whose type all others must have.
    """

    domain: Domain
    tiling: SceneTiling
    first: str
    identity: str

    @classmethod
    def of(cls, domain: Domain, catalog: Catalog, tile_px: int | None, first: SceneSource) -> "Plan":
        """The domain's plan; `tile_px` overrides the catalog's under the rules "cut" and "fit".

        Raises:
            InputError: the first image is unreadable, or lacks a band.
        """
        classes = catalog.classes_of(domain)
        tile = domain.tile
        if tile_px is not None and tile.rule != "whole":
            tile = replace(tile, px=tile_px)
        with gdal(), open_raster(first.image) as image:
            refuse_palette(image, domain.band_indexes)
            _check_bands(domain, image)
            dtype = raw_dtype(image, domain.band_indexes)
            names = _names(domain, image)
        # what is not finite is no data anyway
        nodata = domain.nodata if domain.nodata is not None and math.isfinite(domain.nodata) else None
        fit_px = tile.px if tile.rule == "fit" else None
        label_band = domain.masks.number if domain.masks and domain.masks.form == "band" else None
        reading = Reading(
            domain.band_indexes,
            dtype,
            domain.value_range,
            nodata,
            fit_px=fit_px,
            label_band=label_band,
            names=names,
        )
        tiling = SceneTiling(tile, reading, len(classes))
        identity = digest([asdict(domain), asdict(tiling), classes, code_digest("ingest")])
        return cls(domain, tiling, str(first.image), identity)

    def reading(self, rows: Sequence[Mapping[str, Any]]) -> Reading:
        """How the domain was read, after all of its scenes gave `rows`."""
        known = [row["gsd_m"] for row in rows if row["gsd_m"] > 0]
        return replace(
            self.tiling.reading,
            gsd_m=median_low(known) if known else None,
            largest_px=max(row["source_px"] for row in rows) if self.tiling.tile.rule == "fit" else None,
            tagged=any(row["tagged"] for row in rows),
        )

    def padding(self, rows: Sequence[Mapping[str, Any]]) -> "Plan":
        """The plan for scenes smaller than most: a user's tiles are padded to `px`, or to what most have.

        What a publisher ships stays as it is, and so do images without labels: their looks are what counts.

        Args:
            rows: of the manifest, for every tile of the domain.
        """
        if self.domain.own is None or self.domain.labels is None:
            return self
        usual = median_low(min(row["width"], row["height"]) for row in rows)
        least_px = min(self.tiling.tile.px, usual)
        tiling = replace(self.tiling, least_px=least_px)
        return replace(self, tiling=tiling, identity=digest([self.identity, least_px]))


def ingest_scene(plan: Plan, work: Path, source: SceneSource) -> list[dict[str, Any]]:
    """Stores a scene below `work` and returns the manifest's rows of its tiles.

    Beside the manifest's columns a row says what `Plan.reading` asks of all scenes: `source_px`, the longer
    side of the image, and `tagged`.

    Raises:
        InputError: too few bands, values that are not 8 bit without a range, of another type than the first
            image's or all beyond the range, turned by its EXIF, a label of another size, elsewhere or
            compressed with loss, label values outside the map.
    """
    domain, tiling = plan.domain, plan.tiling
    image_path, label_path = source.stored("images"), source.stored("labels")
    with gdal(), open_raster(source.image) as image:
        refuse_palette(image, domain.band_indexes)
        _check_image(plan, image)
        gsd_m = _gsd_m(domain, image, tiling)
        source_px = max(image.dataset.width, image.dataset.height)
        tagged = is_tagged(image, domain.band_indexes)
        if source.label is None:
            tiles = tile_scene(image, work / image_path, tiling)
        else:
            if domain.own:
                _refuse_turned(image)
            spec = domain.label_spec(domain.scene_of(source.key))
            unknown = domain.unknown_labels or "error"
            assert spec is not None  # noqa: S101  (labels have a map)
            with open_labels(source.label, domain.masks, spec, unknown, image) as (labels, rasters):
                for label in rasters:
                    _check_label(domain, image, label)
                tiles = tile_scene(image, work / image_path, tiling, labels, work / label_path)
    common = {
        "scene": source.scene,
        "split": source.split,
        "image": image_path,
        "label": label_path if source.label else "",
        "gsd_m": gsd_m,
        "bands": list(domain.bands),
        "source_px": source_px,
        "tagged": tagged,
    }
    return [{"tile_id": _tile_id(source.name, tile, tiling.tile.rule), **common, **tile} for tile in tiles]


def _tile_id(name: str, tile: dict[str, Any], rule: Rule) -> str:
    """`2_10_0_512_512_1024`: key, then left, top, right and bottom px; the key alone where it is one tile."""
    if rule != "cut":
        return name
    left, top = tile["col_off"], tile["row_off"]
    return f"{name}_{left}_{top}_{left + tile['width']}_{top + tile['height']}"


def _gsd_m(domain: Domain, image: Raster, tiling: SceneTiling) -> float:
    """Metres on the ground per stored px: the catalog's number, else the file's middle pixel's, else 0."""
    source = image.dataset
    shrink = source.width / fitted_size(source.width, source.height, tiling.reading.fit_px)[0]
    side = domain.gsd_m or pixel_side_m(source.crs, source.transform, source.width, source.height)
    # the last digits would be the processor's, and what is ingested has a digest
    return round((side or 0) * shrink, 6)


def _check_bands(domain: Domain, image: Raster) -> None:
    source = image.dataset
    wanted = domain.file_bands or max(domain.band_indexes)
    enough = source.count >= wanted if domain.file_bands is None else source.count in (wanted, wanted + 1)
    if not enough:
        alone = source.count == 1 and Path(image.where).exists()
        raise InputError(
            f"an image of {source.count} bands",
            where=image.where,
            expected=f"{'at least ' if domain.file_bands is None else ''}{wanted}: {', '.join(domain.bands)}",
            next_step="correct `bands` in the catalog file"
            + (f"; of files of one band each make one: {stacking(Path(image.where))}" if alone else "")
            if domain.own
            else "fetch the publisher's file again",
        )


def _names(domain: Domain, image: Raster) -> tuple[tuple[str, ...], ...]:
    """What the catalog and, in a user's own domain, the first file call each band."""
    found = band_names(image) if domain.own else []
    return tuple(
        tuple(dict.fromkeys(filter(None, (name.lower(), *found[index - 1 : index]))))
        for name, index in zip(domain.bands, domain.band_indexes, strict=True)
    )


def _check_image(plan: Plan, image: Raster) -> None:
    _check_bands(plan.domain, image)
    reading = plan.tiling.reading
    if plan.domain.own:
        said = "correct the domain's `bands`: the file says "
        refuse_other_names(
            image, reading, lambda places: said + ", ".join(f"{name}: {at}" for name, at in places.items())
        )
    dtype = raw_dtype(image, reading.bands)
    if reading.value_range is None and dtype != "uint8":
        values = reading.sample(image)
        bounds = (values.min(), values.max()) if values.size else (0, 1)
        low, high = (round(float(bound), 3) for bound in bounds)
        raise InputError(
            f"an image of {dtype}, values {low:g} to {high:g}",
            where=image.where,
            expected="8 bit",
            next_step=f"say which values become black and white: value_range: [{low:g}, {high:g}]",
        )
    if reading.value_range is None and is_tagged(image, reading.bands):
        low, high = bounds_of_bytes(image, reading.bands)
        raise InputError(
            "an image of 8 bits whose scale and offset tags make other values of them",
            where=image.where,
            expected="8 bit without these tags, or a range of what they make",
            next_step=f"say which values become black and white: value_range: [{low:g}, {high:g}]",
        )
    if dtype != reading.dtype:
        raise InputError(
            f"an image of {dtype}, but {plan.first} is one of {reading.dtype}",
            where=image.where,
            expected="images of one type: a range means other values in another",
            next_step="make them two domains, or convert one kind to the other's values",
        )
    reading.refuse_outside(image, "correct `value_range` in the catalog file")


def _refuse_elsewhere(image: Raster, label: Raster) -> None:
    """A label without a place on the ground is taken for the image's; one with a place has to be there.

    A world file says no CRS: its numbers are taken for the other's, or for each other's.
    """
    ours, theirs = _corners(image.dataset), _corners(label.dataset)
    if ours is None or theirs is None:
        return
    left_top, left_bottom, right_top, _ = ours.ends
    moved = theirs.ends
    if ours.crs is not None and theirs.crs is not None:
        moved = in_crs(theirs.ends, theirs.crs, ours.crs)
    apart = np.linalg.norm(ours.ends - moved, axis=1).max()
    # half a pixel along both sides is what programs that mean its corner or its centre differ by
    allowed = 0.501 * math.hypot(
        math.dist(left_top, left_bottom) / image.dataset.height,
        math.dist(left_top, right_top) / image.dataset.width,
    )
    if not apart <= allowed:
        raise InputError(
            f"a label at {theirs}, for an image at {ours}",
            where=label.where,
            expected=f"the place of {image.where}, to half a pixel",
            next_step="pair the right files, or warp the label onto the image's grid",
        )


class _Corners(NamedTuple):
    """A raster's corners on the ground (4, 2), x and y: the two at its left first, top before bottom."""

    ends: NDArray[np.float64]
    crs: CRS | None

    def __str__(self) -> str:
        bounds = ", ".join(f"{bound:.10g}" for bound in (*self.ends.min(axis=0), *self.ends.max(axis=0)))
        return f"{self.crs.to_string() if self.crs else 'no CRS'} ({bounds})"


def _corners(dataset: DatasetReader) -> _Corners | None:
    """By the transform, else by ground control points, else by RPCs at height 0; None = there is none."""
    rows, cols = (0, dataset.height) * 2, (0, 0, dataset.width, dataset.width)
    points, crs = dataset.gcps
    with ExitStack() as stack, suppress(GdalError), hearing([], silent=True):
        if not dataset.transform.is_identity:
            transformer: TransformerBase = AffineTransformer(dataset.transform)
            crs = dataset.crs
        elif points:
            transformer = stack.enter_context(GCPTransformer(points))
        elif dataset.rpcs:
            transformer, crs = stack.enter_context(RPCTransformer(dataset.rpcs)), CRS.from_epsg(4326)
        else:
            return None
        return _Corners(np.transpose(transformer.xy(rows, cols, offset="ul")), crs)
    return None  # too few points, or points on one line


def _check_label(domain: Domain, image: Raster, label: Raster) -> None:
    ours, theirs = image.dataset, label.dataset
    if (ours.width, ours.height) != (theirs.width, theirs.height):
        raise InputError(
            f"a label of {theirs.width} x {theirs.height} px for an image of {ours.width} x {ours.height} px",
            where=label.where,
            expected=f"the size of {image.where}",
        )
    if domain.own:  # nobody can mend what a publisher says
        _refuse_elsewhere(image, label)
    if domain.labels and domain.labels.kind != "threshold" and _is_lossy(theirs):
        raise InputError(
            "a label compressed with loss: its values near edges are not what was drawn",
            where=label.where,
            expected="PNG or GeoTIFF",
            next_step="export the labels again without loss",
        )


def _is_lossy(dataset: DatasetReader) -> bool:
    """JPEG, the lossy kinds of JPEG 2000 and WebP, and LERC with a tolerance."""
    said = dataset.tags(ns="IMAGE_STRUCTURE")
    return (
        dataset.driver == "JPEG"
        or said.get("COMPRESSION", "").endswith("JPEG")
        or said.get("COMPRESSION_REVERSIBILITY") == "LOSSY"
        or float(said.get("MAX_Z_ERROR", 0)) > 0
    )


def _refuse_turned(image: Raster) -> None:
    """Refuses what viewers turn as its EXIF says: nobody knows which way round its labels were drawn."""
    turned = image.dataset.tags().get("EXIF_Orientation", "1")
    if turned not in ("0", "1"):
        raise InputError(
            f"an image that viewers turn (EXIF orientation {turned}), and labels do not say whether they did",
            where=image.where,
            expected="EXIF orientation 1",
            next_step="where the labels lie on the image as it is shown, `magick mogrify -auto-orient FILE`; "
            "where they lie on its pixels as they are stored, `exiftool -n -Orientation=1 FILE`",
        )
