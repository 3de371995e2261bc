"""Reads the ids of a label raster, in whatever form its values are stored.

What the file says of its own pixels counts: transparent and masked ones are ignored, and so are those of its
nodata value where the label map does not name it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader

from crossearth.data.catalog.labels import IGNORE, LabelSpec, Unknown
from crossearth.data.common.config import listed
from crossearth.data.common.errors import InputError
from crossearth.data.raster.reader import Raster


class Labels(Protocol):
    """The labels of one image, in whatever form they lie there."""

    def read(self, window: Any, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Class ids of a window of the image.

        Args:
            window: as rasterio takes it; None = all.
            shape: (H, W) of the result; another one than the window's takes the nearest pixels.

        Returns:
            uint8 (H, W): class ids, 255 = ignored.

        Raises:
            InputError: values outside the map; damage.
        """


@dataclass(frozen=True)
class RasterLabels:
    """Labels that are a raster.

    Attributes:
        spec: what its values mean.
        unknown: what becomes of values outside the map.
        band: the only one that counts, from 1, whatever it is tagged as; None = as `spec` says.
    """

    raster: Raster
    spec: LabelSpec
    unknown: Unknown
    band: int | None = None

    def read(self, window: Any, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Class ids, as `Labels` has it.

        Raises:
            InputError: values outside the map, with their pixels in the whole file; bands, types or tags that
                cannot be this map's; damaged pixels.
        """
        source, where = self.raster.dataset, self.raster.where
        if self.band is not None and self.band > source.count:
            raise InputError(
                f"a file of {source.count} bands", where=where, expected=f"labels in band {self.band}"
            )
        planes, masked, nodata = self._found(window, shape)
        try:
            return self.spec.decode(planes, where, self.unknown, masked, nodata)
        except InputError:
            # the message counts pixels: say how many there are in the scene, not in this strip
            planes, masked, nodata = self._found(None, source.shape)
            self.spec.decode(planes, where, self.unknown, masked, nodata)
            raise

    def _found(
        self, window: Any, shape: tuple[int, int]
    ) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]:
        """Planes (bands, H, W) as `LabelSpec.decode` takes them, and what the file says of its pixels."""
        label, spec, source = self.raster, self.spec, self.raster.dataset
        bands, alpha = _bands(label, spec) if self.band is None else ([self.band], None)
        _refuse_tags(label, bands)
        planes = label.read(bands, window, (len(bands), *shape))
        masked = np.zeros(shape, bool)
        # a mask of the file's own, inside it or beside it: alpha and nodata are asked for themselves
        if MaskFlags.per_dataset in (flags := source.mask_flag_enums[bands[0] - 1]) and not {
            MaskFlags.alpha,
            MaskFlags.nodata,
        } & set(flags):
            masked |= label.read_masks(bands[:1], window, (1, *shape))[0] == 0
        if alpha:
            masked |= label.read([alpha], window, (1, *shape))[0] == 0
        places = zip(planes, bands, strict=True)
        nodata = np.all([_is_nodata(plane, source.nodatavals[band - 1]) for plane, band in places], axis=0)
        if spec.kind != "band" and len(bands) == 1:
            if spec.kind == "colour" and source.colorinterp[0] == ColorInterp.palette:
                table = _palette(source)
                # a TIFF's palette has no transparency: GDAL makes it of the nodata value
                if source.driver != "GTiff":
                    masked |= table[planes[0], 3] == 0
                planes = np.moveaxis(table[planes[0], :3], -1, 0)
            else:
                planes = _as_shown(planes, source, spec)
        return planes, masked, nodata


ABOVE_ZERO = LabelSpec(("", ""), "threshold", ((0, 0), (0, 1)))


@dataclass(frozen=True)
class ClassLayers:
    """Labels that are a raster a class: px above 0 have it.

    Attributes:
        layers: (class id, raster), from the lowest to the topmost.
        outside: id of px that no layer has.
    """

    layers: Sequence[tuple[int, Raster]]
    outside: int

    def read(self, window: Any, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Class ids, as `Labels` has it; where a raster of the lot masks px, these are ignored."""
        ids = np.full(shape, self.outside, np.uint8)
        masked = np.zeros(shape, bool)
        for id, raster in self.layers:
            has = RasterLabels(raster, ABOVE_ZERO, "error").read(window, shape)
            ids[has == 1] = id
            masked |= has == IGNORE
        ids[masked] = IGNORE
        return ids


def _bands(label: Raster, spec: LabelSpec) -> tuple[list[int], int | None]:
    """The bands that are looked up, and the band that says where the others are transparent."""
    source = label.dataset
    if spec.kind == "band":
        names = [(name or "").strip().lower() for name in source.descriptions]
        place_of = {name: place for place, name in enumerate(names, 1)} | {
            place: place for place in source.indexes
        }
        if missing := [raw for raw, _ in spec.table if raw not in place_of]:
            named = [name for name in names if name]
            raise InputError(
                f"a label without the band {missing[0]}",
                where=label.where,
                expected=f"one of 1 to {source.count}" + (f", {listed(named)}" if named else ""),
            )
        return [place_of[raw] for raw, _ in spec.table], None
    if source.count > 1 and source.colorinterp[-1] == ColorInterp.alpha:
        return list(source.indexes[:-1]), source.count
    return list(source.indexes), None


def _refuse_tags(label: Raster, bands: list[int]) -> None:
    for band in bands:
        scale, offset = label.dataset.scales[band - 1], label.dataset.offsets[band - 1]
        if (scale, offset) != (1, 0):
            raise InputError(
                f"a label whose values are to be scaled by {scale:g} and moved by {offset:g}",
                where=label.where,
                expected="values that are classes as they stand",
                next_step="gdal_translate -unscale -ot Float32 IN OUT.tif makes the tags' values, "
                "gdal_translate -a_scale 1 -a_offset 0 IN OUT.tif drops the tags",
            )


def _is_nodata(plane: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    if nodata is None:
        return np.zeros(plane.shape, bool)
    return np.isnan(plane) if np.isnan(nodata) else plane == nodata


def _palette(source: DatasetReader) -> NDArray[np.uint8]:
    """Colours (values, 4) of a palette: red, green, blue, alpha."""
    table = np.zeros((1 << 8 * np.dtype(source.dtypes[0]).itemsize, 4), np.uint8)
    colours = source.colormap(1)
    table[list(colours)] = list(colours.values())
    return table


def _as_shown(planes: NDArray[Any], source: DatasetReader, spec: LabelSpec) -> NDArray[Any]:
    """Values of 1, 2 or 4 bits as other programs show them, 0 to 255, unless the map names the file's own."""
    bits = int(source.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))
    palette = source.colormap(1) if source.colorinterp[0] == ColorInterp.palette else {}
    if palette and (len(palette) > 2 or any(len(set(colour[:3])) > 1 for colour in palette.values())):
        return planes
    bits = 1 if palette else bits  # BMP says no number of bits
    if bits not in (1, 2, 4) or source.dtypes[0] != "uint8":
        return planes
    largest = (1 << bits) - 1
    if spec.kind != "colour" and any(
        0 < raw <= largest for raw, _ in spec.table if isinstance(raw, int | float)
    ):
        return planes
    shown = np.array(
        [palette[raw][0] for raw in sorted(palette)] if palette else range(0, 256, 255 // largest), np.uint8
    )
    return shown[np.minimum(planes, largest)]
