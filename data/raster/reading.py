"""How raw values become the three bytes that a network sees: one rule for ingest, for scenes and for arrays.

A domain's manifests keep its `Reading`, and a model takes it from there: scenes are read as training was.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveInt
from rasterio.enums import ColorInterp, MaskFlags

from crossearth.data.common.config import Rising, checked
from crossearth.data.common.errors import InputError
from crossearth.data.raster.reader import Raster

SAMPLE_PX = 1024
BILINEAR = Image.Resampling.BILINEAR
COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@checked
class Reading:
    """How the files of a domain are read.

    Attributes:
        bands: places of the three bands in the file, from 1, in the order that the network sees.
        dtype: of their raw values, as numpy names it.
        value_range: values that become 0 and 255, linear between, clipped; a value is what the file's scale
            and offset tags make of a raw one. None = uint8 as it is.
        nodata: raw value; px where all three bands have it were not seen.
        gsd_m: metres per px that the network sees; None = unknown.
        fit_px: images are resampled so that their longer side is this; None = they are not.
        largest_px: longer side of the largest image that was fitted so.
        tagged: whether scale and offset tags changed values.
        label_band: a band that holds labels: it is no transparency, whatever it is tagged as.
        names: of each band, what the domain and its files call it, in lower case; () = nothing is known.
    """

    bands: tuple[PositiveInt, PositiveInt, PositiveInt]
    dtype: str
    value_range: Rising | None = None
    nodata: float | None = None
    gsd_m: float | None = None
    fit_px: int | None = None
    largest_px: int | None = None
    tagged: bool = False
    label_band: int | None = None
    names: tuple[tuple[str, ...], ...] = ()

    def to_bytes(
        self,
        raw_3HW: NDArray[Any],
        seen_HW: Mask | Literal[True],
        scales: Sequence[float] = (1, 1, 1),
        offsets: Sequence[float] = (0, 0, 0),
    ) -> tuple[Bytes, Mask]:
        """What the network sees of raw values.

        Args:
            raw_3HW: of `dtype`, the bands in order.
            seen_HW: bool (H, W), false where the file masks all three bands; True = it masks nothing.
            scales, offsets: the bands' tags.

        Returns:
            Image uint8 (3, H, W), and valid bool (H, W): seen, not nodata, a finite number in each band. With
            a value range the image is 0 where it is not valid.

        Raises:
            InputError: values of another dtype.
        """
        if raw_3HW.dtype != self.dtype:
            raise InputError(f"values of {raw_3HW.dtype}", expected=self.dtype)
        valid_HW = self._valid(raw_3HW, seen_HW)
        if self.value_range is None:
            return raw_3HW, valid_HW
        image_3HW = np.empty(raw_3HW.shape, np.uint8)
        for plane, values, scale, offset in zip(image_3HW, raw_3HW, scales, offsets, strict=True):
            plane[:] = _levels(np.where(valid_HW, values, 0), scale, offset, *self.value_range)
            plane[~valid_HW] = 0
        return image_3HW, valid_HW

    def read(
        self, raster: Raster, window: Any = None, out_shape: tuple[int, int] | None = None
    ) -> tuple[Bytes, Mask]:
        """What the network sees of a raster, or of a window of it; see `to_bytes`.

        Args:
            window, out_shape: as `Raster.read` has them.
        """
        raw_3HW = raster.read(self.bands, window=window, out_shape=out_shape)
        seen_HW = self._seen(raster, window=window, out_shape=out_shape)
        return self.to_bytes(raw_3HW, seen_HW, *tags(raster, self.bands))

    def valid(self, raster: Raster, window: Any) -> Mask:
        """The second of what `read` gives; the pixels are read only where their values matter."""
        if self.nodata is not None or np.dtype(self.dtype).kind == "f":
            return self.read(raster, window)[1]
        (top, bottom), (left, right) = window
        return np.full((bottom - top, right - left), self._seen(raster, window=window))

    def sample(self, raster: Raster) -> NDArray[np.float64]:
        """Valid values (3, N) of a thinned reading, as the tags make them."""
        source = raster.dataset
        size = thinned_size(source.width, source.height, SAMPLE_PX)
        raw_3HW = raster.read(self.bands, out_shape=(3, *size))
        valid_HW = self._valid(raw_3HW, self._seen(raster, out_shape=size))
        scales_31, offsets_31 = (np.array(each)[:, None] for each in tags(raster, self.bands))
        return cast("NDArray[np.float64]", raw_3HW[:, valid_HW] * scales_31 + offsets_31)

    def of_array(self, raw_3HW: NDArray[Any]) -> tuple[Bytes, Mask]:
        """What the network sees of an array.

        It holds raw values, as `dtype` or as int64, which lists become; where the files had tags, it holds
        what these made of the raw values, in floating point.

        Raises:
            InputError: values of another dtype, or beyond the range; a size other than the fitted one.
        """
        _, height, width = raw_3HW.shape
        if (width, height) != fitted_size(width, height, self.fit_px):
            raise InputError(
                f"an array of {width} x {height} px",
                expected=f"a longer side of {self.fit_px} px, as the training's images were resampled",
                next_step="resample the array, or give a raster's path",
            )
        reading = replace(self, dtype="float64", nodata=None) if self.tagged else self
        if not reading._takes(raw_3HW):
            wanted = f"values of {self.dtype}"
            if self.tagged:
                wanted = "floating-point values after scale and offset"
            if self.value_range is not None:
                wanted += ", {:g} to {:g}".format(*self.value_range)
            raise InputError(f"an array of {raw_3HW.dtype}", expected=wanted, next_step="convert the array")
        raw_3HW = raw_3HW.astype(reading.dtype)
        image_3HW, valid_HW = reading.to_bytes(raw_3HW, True)
        seen = raw_3HW[:, valid_HW].astype(np.float64)
        reading._refuse_outside(seen, "array", "convert the array to the values of the training's files")
        return image_3HW, valid_HW

    def example(self, px: int) -> list[Any]:
        """A grey array (H, W, 3) that `of_array` takes, as lists; `px` wide unless images are fitted."""
        low, high = self.value_range or (0, 255)
        grey = (low + high) / 2
        real = self.tagged or self.dtype.startswith("float")
        side = self.fit_px or px
        return cast("list[Any]", np.full((side, side, 3), grey if real else round(grey)).tolist())

    def _takes(self, array: NDArray[Any]) -> bool:
        """Whether an array holds values of `dtype`: exactly those, or numbers as lists hold them."""
        wanted = np.dtype(self.dtype)
        if wanted.kind == "f":
            return array.dtype.kind == "f" or (array.dtype == np.int64 and not self.tagged)
        if array.dtype == np.int64:
            bounds = np.iinfo(wanted)
            return bool(bounds.min <= array.min() and array.max() <= bounds.max)
        return array.dtype == wanted

    def refuse_outside(self, raster: Raster, next_step: str) -> None:
        """Refuses a raster of which the range leaves nothing: it was meant for other numbers.

        Raises:
            InputError: all values lie on one side of the range, or, where they are no whole numbers, they all
                become 0 or 1 of 255 though they differ.
        """
        if self.value_range is not None:
            self._refuse_outside(self.sample(raster), raster.where, next_step)

    def _refuse_outside(self, values: NDArray[np.float64], where: str, next_step: str) -> None:
        if self.value_range is None or not values.size:
            return
        low, high = self.value_range
        least, most = float(values.min()), float(values.max())
        # px at the lower end may be a border that nothing was written to
        above = most > high and not ((values > low) & (values <= high)).any()
        faint = most > least and most - low <= (high - low) / 255 and bool((values % 1).any())
        if most < low or above or faint:
            raise InputError(
                f"values {least:g} to {most:g}, of which the range {low:g} to {high:g} leaves nothing",
                where=where,
                expected="a range of the values as the file's scale and offset tags make them",
                next_step=next_step,
            )

    def _seen(self, raster: Raster, **options: Any) -> Mask | Literal[True]:
        """(H, W), false where the file masks all of the bands. An alpha band that is read is no mask."""
        source = raster.dataset
        alpha = [band for band, is_for in enumerate(source.colorinterp, 1) if is_for == ColorInterp.alpha]
        seen: Mask | Literal[True] = True
        flags = [source.mask_flag_enums[band - 1] for band in self.bands]
        by_labels = self.label_band is not None and any(MaskFlags.alpha in each for each in flags)
        if not by_labels and not any(MaskFlags.all_valid in each for each in flags):
            seen = raster.read_masks(self.bands, **options).max(axis=0) > 0
        if alpha and alpha[-1] not in (*self.bands, self.label_band):
            # asked for itself: GDAL takes it for a mask in files of two or four bands only
            opaque = raster.read(alpha[-1:], **options)[0] > 0
            seen = opaque if seen is True else seen & opaque
        return seen

    def _valid(self, raw_3HW: NDArray[Any], seen_HW: Mask | Literal[True]) -> Mask:
        valid_HW = np.full(raw_3HW.shape[1:], seen_HW)
        if self.nodata is not None:
            # one band alone at the value is a colour, not a hole
            valid_HW &= ~(raw_3HW == self.nodata).all(axis=0)
        if raw_3HW.dtype.kind == "f":
            valid_HW &= np.isfinite(raw_3HW).all(axis=0)
        return valid_HW


BYTES = Reading((1, 2, 3), "uint8")  # what a model takes that does not know how its files were read


def band_names(raster: Raster) -> list[str]:
    """What a file calls each of its bands, in lower case: its description, else its colour; "" = nothing.

    Colours that begin with red, green, blue are what every writer puts, and say nothing.
    """
    colours = [each.name if each in COLOURS else "" for each in raster.dataset.colorinterp]
    if tuple(raster.dataset.colorinterp[:3]) == COLOURS:
        colours = [""] * len(colours)
    return [
        (description or "").strip().lower() or colour
        for description, colour in zip(raster.dataset.descriptions, colours, strict=True)
    ]


def refuse_other_names(
    raster: Raster, reading: Reading, next_step: Callable[[Mapping[str, int]], str]
) -> None:
    """Refuses a file that has one of the reading's bands elsewhere, by its own words.

    Args:
        next_step: what to do, of the places that the file says.

    Raises:
        InputError: names what the file says.
    """
    found = band_names(raster)
    wanted = list(zip(reading.bands, reading.names, strict=False))
    said = [next((name for name in names if name in found), None) for _, names in wanted]
    places = {name: found.index(name) + 1 for name in said if name}
    if all(
        name is None or found[band - 1] in names for name, (band, names) in zip(said, wanted, strict=True)
    ):
        return
    raise InputError(
        f"bands that the file names {', '.join(filter(None, found))}",
        where=raster.where,
        expected=", ".join(f"{names[0]} at {band}" for band, names in wanted),
        next_step=next_step(places),
    )


def raw_dtype(raster: Raster, bands: Sequence[int]) -> str:
    """The dtype of the bands; InputError where they have several."""
    kinds = sorted({raster.dataset.dtypes[band - 1] for band in bands})
    if len(kinds) > 1:
        raise InputError(
            f"bands of the types {', '.join(kinds)}",
            where=raster.where,
            expected="three bands of one type",
            next_step="gdal_translate -ot Float32 IN OUT.tif",
        )
    return str(kinds[0])


def tags(raster: Raster, bands: Sequence[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and offset of each band: a value is raw x scale + offset.

    Raises:
        InputError: a scale of 0, which makes one value of all, or one of the two that is no finite number.
    """
    source = raster.dataset
    scales = tuple(source.scales[band - 1] for band in bands)
    offsets = tuple(source.offsets[band - 1] for band in bands)
    if 0 in scales or not all(map(math.isfinite, scales + offsets)):
        raise InputError(
            f"tags that cannot be meant: scales {scales}, offsets {offsets}",
            where=raster.where,
            expected="finite numbers, a scale other than 0",
            next_step="gdal_translate -a_scale 1 -a_offset 0 IN OUT.tif drops the tags",
        )
    return scales, offsets


def is_tagged(raster: Raster, bands: Sequence[int]) -> bool:
    """Whether scale and offset tags change values."""
    scales, offsets = tags(raster, bands)
    return set(scales) != {1} or set(offsets) != {0}


def bounds_of_bytes(raster: Raster, bands: Sequence[int]) -> tuple[float, float]:
    """The least and the greatest value that tags make of bytes."""
    ends = [
        scale * raw + offset for scale, offset in zip(*tags(raster, bands), strict=True) for raw in (0, 255)
    ]
    return min(ends), max(ends)


def fitted_size(width: int, height: int, fit_px: int | None) -> tuple[int, int]:
    """Width and height of an image whose longer side becomes `fit_px`; its own where that is None."""
    if fit_px is None:
        return width, height
    scale = fit_px / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def thinned_size(width: int, height: int, most_px: int) -> tuple[int, int]:
    """Height and width of an image of which every so many px are read; its own up to `most_px` a side."""
    return fitted_size(width, height, min(max(width, height), most_px))[::-1]


def fit(image_3HW: Bytes, valid_HW: Mask, width: int, height: int) -> tuple[Bytes, Mask]:
    """`resample` of a whole image, bilinearly."""
    whole = tuple((0.0, float(side)) for side in valid_HW.shape)
    return resample(image_3HW, valid_HW, whole, (height, width), (BILINEAR, BILINEAR))


def resample(
    image_3HW: Bytes,
    valid_HW: Mask,
    part: Sequence[tuple[float, float]],
    size: tuple[int, int],
    filters: tuple[Image.Resampling, Image.Resampling],
) -> tuple[Bytes, Mask]:
    """Resamples a part of an image from its valid px alone; a px that has seen one is valid.

    Args:
        part: first and last row, first and last column, in px of the image and between them; the px around it
            count where the filter reaches them.
        size: rows and columns of the result.
        filters: along the rows' index and along the columns'; each widens with a shrinking image.
    """
    (top, bottom), (left, right) = part
    width = size[1]

    def resized(plane: NDArray[Any]) -> NDArray[np.float32]:
        picture = Image.fromarray(plane.astype(np.float32))
        across = picture.resize((width, picture.height), filters[1], (left, 0, right, picture.height))
        return np.asarray(across.resize((width, size[0]), filters[0], (0, top, width, bottom)))

    weight = resized(valid_HW)
    valid = weight > 0.5 / 255
    planes = [resized(plane * valid_HW) / np.where(valid, weight, 1) for plane in image_3HW]
    resampled = np.rint(np.clip(planes, 0, 255)).astype(np.uint8)
    resampled[:, ~valid] = 0
    return resampled, valid


def _levels(values: NDArray[Any], scale: float, offset: float, low: float, high: float) -> Bytes:
    """Levels 0..255 of raw values; those of few bits are looked up."""
    kind = values.dtype
    if kind.kind == "f" or kind.itemsize > 2:
        share = (values * np.float64(scale) + offset - low) / (high - low)
        return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)
    bits = np.dtype(f"u{kind.itemsize}")
    every = np.arange(1 << 8 * kind.itemsize, dtype=bits).view(kind)
    return _levels(every.astype(np.float64), scale, offset, low, high)[values.view(bits)]
