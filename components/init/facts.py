"""What images and masks hold: the numbers that a catalog file must say."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from rasterio.enums import ColorInterp

from crossearth.components.ingest.sources import SceneSource
from crossearth.data.annotations.opening import named_shapes, open_labels
from crossearth.data.catalog.domains import Domain, Masks
from crossearth.data.catalog.labels import IGNORE
from crossearth.data.common.errors import InputError
from crossearth.data.common.spaced import evenly
from crossearth.data.raster.pixel_area import pixel_side_m
from crossearth.data.raster.reader import Raster, gdal, open_raster
from crossearth.data.raster.reading import Reading, thinned_size

MANY = 64  # values: labels that were drawn have fewer
LOOKED_AT = 200
SIDE_PX = 2048
PERCENTILES = (1, 99)
Raw = int | str


@dataclass(frozen=True)
class ImageFacts:
    """What the images that were looked at have.

    Attributes:
        number, looked_at: images, and how many of them were opened.
        formats, sizes, bands, dtypes, crs: of the files -> how many have it.
        gsd_m: metres per px, of the middle one; None = no place on the ground.
        value_range: of what is not 8 bit: values between which nearly all lie.
    """

    number: int
    looked_at: int
    formats: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    bands: Counter[int] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)
    crs: Counter[str] = field(default_factory=Counter)
    gsd_m: float | None = None
    value_range: tuple[float, float] | None = None

    @property
    def largest_px(self) -> int:
        """The longest side."""
        return max(max(size) for size in self.sizes)


def image_facts(sources: Sequence[SceneSource]) -> ImageFacts:
    """Looks at the headers of images, and at values where they are not 8 bit.

    Raises:
        InputError: a file that cannot be read.
    """
    chosen = evenly(sources, LOOKED_AT)
    found = ImageFacts(len(sources), len(chosen))
    sides, ranges = [], []
    for source in chosen:
        with gdal(), open_raster(source.image) as image:
            file = image.dataset
            found.formats[file.driver] += 1
            found.sizes[file.width, file.height] += 1
            found.bands[file.count] += 1
            found.dtypes[str(file.dtypes[0])] += 1
            found.crs[file.crs.to_string()[:40] if file.crs else "none"] += 1
            if side := pixel_side_m(file.crs, file.transform, file.width, file.height):
                sides.append(side)
            if file.dtypes[0] != "uint8" and len({*file.dtypes}) == 1:
                bands = (1, min(2, file.count), min(3, file.count))
                values = Reading(bands, file.dtypes[0], (0, 1)).sample(image)
                if values.size:
                    ranges.append(np.percentile(values, PERCENTILES))
    value_range = None
    if ranges:
        low, high = np.min(ranges, axis=0)[0], np.max(ranges, axis=0)[1]
        value_range = (float(f"{low:.3g}"), float(f"{high if high > low else low + 1:.3g}"))
    gsd_m = sorted(sides)[len(sides) // 2] if sides else None
    return replace(found, gsd_m=gsd_m, value_range=value_range)


def raw_values(masks: Masks, sources: Sequence[SceneSource]) -> Counter[Raw]:
    """Values, colours ("#rrggbb") or names of labels, and how many px or shapes have each.

    Of more than `MANY` values it gives "<128" and ">=128": labels of a lossy format, or probabilities.

    Raises:
        InputError: labels that cannot be read.
    """
    found: Counter[Raw] = Counter()
    for source in evenly(sources, LOOKED_AT):
        if source.label is None:
            continue
        if masks.form == "class_folders":
            found.update(json.loads(source.label.part))
        elif masks.form == "cvat":
            found.update(dict.fromkeys(json.loads(source.label.part), 1))
        elif masks.named:
            with gdal(), open_raster(source.image) as image:
                found.update(shape.name for shape in named_shapes(source.label, masks, image))
        else:
            page = masks.number if masks.form == "page" else None
            with gdal(), open_raster(source.label.files[0], page=page) as label:
                found.update(_values(label, masks.number if masks.form == "band" else None))
    if len(found) > MANY and not masks.named:
        if any(isinstance(value, str) for value in found):
            raise InputError(
                f"{len(found)} colours in the masks",
                where=masks.place,
                expected=f"at most {MANY}: labels of a lossy format have more",
                next_step="export the labels again without loss",
            )
        return Counter({"<128": 1, ">=128": 1})
    return found


def _values(label: Raster, band: int | None) -> dict[Raw, int]:
    file = label.dataset
    size = thinned_size(file.width, file.height, SIDE_PX)
    count = file.count - (file.count in (2, 4) and file.colorinterp[-1] == ColorInterp.alpha)
    bands = [band] if band is not None else list(range(1, min(count, 3) + 1))
    planes = label.read(bands, out_shape=(len(bands), *size))
    if len(planes) == 3 and not (planes == planes[0]).all():
        packed = planes.astype(np.uint32)
        values, counts = np.unique((packed[0] << 16) + (packed[1] << 8) + packed[2], return_counts=True)
        return {f"#{value:06x}": int(count) for value, count in zip(values, counts, strict=True)}
    plane = planes[0]
    nodata = file.nodatavals[bands[0] - 1]
    if nodata is not None:
        plane = plane[~np.isnan(plane)] if math.isnan(nodata) else plane[plane != nodata]
    if plane.dtype.kind == "f":
        plane = plane[np.isfinite(plane)]
        if (plane % 1).any():
            raise InputError(
                "labels with fractions",
                where=label.where,
                expected="whole numbers, or sides of a threshold",
                next_step='write labels: {"<0.5": NAME, ">=0.5": NAME} in a catalog of your own',
            )
    bits = int(file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))
    if bits == 1 and file.dtypes[0] == "uint8":
        plane = np.where(plane > 0, 255, 0)
    values, counts = np.unique(plane, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def class_shares(domain: Domain, sources: Sequence[SceneSource]) -> Mapping[int, float]:
    """Share of the px that each class id, and 255 = ignored, has in the labels that were looked at."""
    counts = np.zeros(IGNORE + 1, np.int64)
    for source in evenly(sources, LOOKED_AT):
        if source.label is None or domain.labels is None:
            continue
        with gdal(), open_raster(source.image) as image:
            size = thinned_size(image.dataset.width, image.dataset.height, SIDE_PX)
            with open_labels(source.label, domain.masks, domain.labels, "error", image) as (labels, _):
                counts += np.bincount(labels.read(None, size).ravel(), minlength=IGNORE + 1)
    return {id: float(count) / max(1, counts.sum()) for id, count in enumerate(counts) if count}
