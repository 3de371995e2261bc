"""One scene of a domain: checked, cut into tiles and stored."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.warp import transform

from crossearth.data.domains import Catalog, Domain
from crossearth.data.errors import InputError
from crossearth.data.files import code_version, digest
from crossearth.data.labels import Unknown
from crossearth.data.pixel_area import pixel_side_m
from crossearth.data.raster import Raster, gdal, open_raster
from crossearth.data.raster_names import stacking
from crossearth.data.scenes import SceneSource
from crossearth.data.tiles import Cutting, Grid, cut_scene

LOSSY = ("JPEG", "JP2OpenJPEG")


@dataclass(frozen=True)
class Plan:
    """What a worker must know beside the scene: the domain, resolved."""

    domain: Domain
    cutting: Cutting
    identity: str

    @classmethod
    def of(cls, domain: Domain, catalog: Catalog, tile_px: int | None, unknown_labels: Unknown) -> "Plan":
        """The domain's plan; `tile_px` overrides the catalog's under the rules "cut" and "fit"."""
        classes = catalog.classes_of(domain)
        rule = domain.tile.rule
        px = domain.tile.px if tile_px is None or rule == "whole" else tile_px
        cutting = Cutting(
            px,
            rule,
            domain.band_indexes,
            domain.value_range,
            domain.nodata,
            len(classes),
            unknown_labels,
        )
        return cls(domain, cutting, digest([asdict(domain), asdict(cutting), classes, code_version()]))


def ingest_scene(plan: Plan, work: Path, source: SceneSource) -> list[dict[str, Any]]:
    """Stores a scene below `work` and returns the manifest's rows of its tiles.

    Raises:
        InputError: too few bands, values that are not 8 bit without a range, a label of another size,
            elsewhere or compressed with loss, label values outside the map.
    """
    domain, cutting = plan.domain, plan.cutting
    image_path, label_path = (f"{source.split}/{kind}/{source.key}.tif" for kind in ("images", "labels"))
    with gdal(), open_raster(source.image) as image:
        _check_image(domain, image)
        gsd_m = _gsd_m(domain, image, cutting)
        if source.label is None:
            tiles = cut_scene(image, work / image_path, cutting)
        else:
            spec = domain.label_spec(domain.scene_of(source.key))
            with open_raster(source.label) as label:
                _check_label(domain, image, label)
                tiles = cut_scene(image, work / image_path, cutting, label, work / label_path, spec)
    common = {
        "scene": source.scene,
        "split": source.split,
        "image": image_path,
        "label": label_path if source.label else "",
        "gsd_m": gsd_m,
        "bands": list(domain.bands),
    }
    return [{"tile_id": _tile_id(source.key, tile, cutting), **common, **tile} for tile in tiles]


def _tile_id(key: str, tile: dict[str, Any], cutting: Cutting) -> str:
    """`2_10_0_512_512_1024`: key, then left, top, right and bottom px; the key alone where it is one tile."""
    if cutting.rule != "cut":
        return key
    left, top = tile["col_off"], tile["row_off"]
    return f"{key}_{left}_{top}_{left + tile['width']}_{top + tile['height']}"


def _gsd_m(domain: Domain, image: Raster, cutting: Cutting) -> float:
    """Metres on the ground per stored px: the catalog's number, else the file's middle pixel's, else 0."""
    source = image.dataset
    shrink = source.width / Grid.of(source, cutting).width
    side = domain.gsd_m or pixel_side_m(source.crs, source.transform, source.width, source.height)
    # the last digits would be the processor's, and what is ingested has a digest
    return round((side or 0) * shrink, 6)


def _check_image(domain: Domain, image: Raster) -> None:
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
    kinds = {source.dtypes[band - 1] for band in domain.band_indexes}
    if domain.value_range is None and kinds != {"uint8"}:
        low, high = (round(float(bound), 3) for bound in _extremes(image, domain))
        raise InputError(
            f"an image of {', '.join(sorted(kinds))}, values {low:g} to {high:g}",
            where=image.where,
            expected="8 bit",
            next_step=f"say which values become black and white: value_range: [{low:g}, {high:g}]",
        )


def _extremes(image: Raster, domain: Domain) -> tuple[float, float]:
    """About the lowest and highest value that was seen, from a thinned reading."""
    size = (3, min(image.dataset.height, 512), min(image.dataset.width, 512))
    sample = np.ma.masked_invalid(image.read(domain.band_indexes, out_shape=size, masked=True))
    return float(sample.min()), float(sample.max())


def _refuse_elsewhere(image: Raster, label: Raster) -> None:
    """A label without a place on the ground is taken for the image's; one with a place has to be there.

    A world file says no CRS: its numbers are taken for the other's, or for each other's.
    """
    ours, theirs = image.dataset, label.dataset
    if any(each.transform.is_identity for each in (ours, theirs)):
        return
    apart = max(map(math.dist, _corners(ours, ours.crs), _corners(theirs, ours.crs)))
    # half a pixel along both sides is what programs that mean its corner or its centre differ by
    allowed = 0.501 * math.dist(ours.transform @ (0, 0), ours.transform @ (1, 1))
    if not apart <= allowed:
        raise InputError(
            f"a label at {_place(label)}, for an image at {_place(image)}",
            where=label.where,
            expected=f"the place of {image.where}, to half a pixel",
            next_step="pair the right files, or warp the label onto the image's grid",
        )


def _corners(dataset: DatasetReader, crs: CRS | None) -> list[tuple[float, ...]]:
    """A raster's corners in `crs`, where both are known; not finite where there is no way from its own."""
    ends = [dataset.transform @ (col, row) for col in (0, dataset.width) for row in (0, dataset.height)]
    if crs is None or dataset.crs is None or dataset.crs == crs:
        return ends
    try:
        return list(zip(*transform(dataset.crs, crs, *zip(*ends, strict=True)), strict=True))
    except RasterioError:
        return [(math.inf, math.inf)] * len(ends)


def _place(raster: Raster) -> str:
    bounds = ", ".join(f"{bound:.10g}" for bound in raster.dataset.bounds)
    crs = raster.dataset.crs
    return f"{crs.to_string() if crs else 'no CRS'} ({bounds})"


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
    compression = theirs.compression.value if theirs.compression else ""
    if (
        domain.labels
        and domain.labels.kind != "threshold"
        and (theirs.driver in LOSSY or compression == "JPEG")
    ):
        raise InputError(
            "a label compressed with loss (JPEG): its values near edges are not what was drawn",
            where=label.where,
            expected="PNG or GeoTIFF",
            next_step="export the labels again without loss",
        )
