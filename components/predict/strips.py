"""A scene: how its file is read, which part of it is mapped, and at which resolution the network sees it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from crossearth.components.predict import maps
from crossearth.components.predict.area import Area, Asked, area_of
from crossearth.components.predict.config import Gsd
from crossearth.data.common.config import listed
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import digest
from crossearth.data.raster.names import stacking
from crossearth.data.raster.pixel_area import pixel_sides_m
from crossearth.data.raster.reader import (
    GDAL_CACHE_BYTES,
    MOST_CACHE_BYTES,
    Address,
    Raster,
    open_raster,
    refuse_palette,
)
from crossearth.data.raster.reading import (
    BILINEAR,
    Bytes,
    Mask,
    Reading,
    band_names,
    bounds_of_bytes,
    fitted_size,
    is_tagged,
    raw_dtype,
    refuse_other_names,
    resample,
)

MODELS = "the model's"  # who chose
RANGE_PERCENTILES = (2, 98)
MOST_SHRUNK = 2  # a scene that is so many times as large as those fitted in training is seen too coarsely
ALIKE = 1.1  # px of the training's size within a tenth are seen as they are
MOST_ENLARGED = 8  # more is asked for by number: it costs the square, and shows nothing that is not there
PIECE_BYTES = 16 << 20  # of a scene's own px that are resampled at a time

Span = tuple[int, int]
Pixels = Callable[[Span, Span], tuple[Bytes, Mask]]  # rows and columns of a scene -> image, valid


@dataclass(frozen=True)
class Scene:
    """A raster to map, as far as its header and a thinned look tell; with who chose bands, range and size.

    Attributes:
        grid: of the map: the scene's px, of the area that is asked for.
        corner: the map's first row and column in the scene.
        size: rows and columns of the scene.
        seen: rows and columns of the grid on which the network sees what the map shows.
        area: what of it is mapped; None = all.
        state: digest of the files' names, sizes and times.
        resolution: what was done about the size of px, in words; "" = nothing is known of it.
        own: whether it is a file of the user's own, see `open_raster`.
    """

    path: Path | Address
    grid: maps.Grid
    corner: tuple[int, int]
    size: tuple[int, int]
    seen: tuple[int, int]
    reading: Reading
    bands_from: str
    range_from: str
    state: str = ""
    resolution: str = ""
    area: Area | None = None
    own: bool = True

    @property
    def scale(self) -> tuple[float, float]:
        """Px that the network sees per px of the scene, down and across."""
        return self.seen[0] / self.grid.height, self.seen[1] / self.grid.width


def open_scene(
    path: Path | Address,
    trained: Reading | None = None,
    bands: Sequence[int] | Sequence[str] | None = None,
    value_range: tuple[float, float] | None = None,
    own: bool = True,
    gsd: Gsd = "auto",
    asked: Asked | None = None,
) -> Scene:
    """Decides how a scene is read: as the files of the training, unless the user says otherwise.

    Args:
        trained: how those were read. None = the model does not know: the first three bands that are not
            alpha, 8 bits as they are, and of other types the 2nd to 98th percentile of the scene.
        bands, value_range: the user's; bands by number or by the names that the file has for them.
        own: see `open_raster`.
        gsd: metres per px that the network is to see; "auto" = the training's, where both are known and they
            differ; "native" = the scene's own.
        asked: the area to map; None = all of the scene.

    Raises:
        InputError: not a readable raster; fewer bands than asked, or of several types; without `value_range`
            another type than the training's; a range that leaves nothing of the scene; a scene much larger
            than those that the training scaled as a whole; one much coarser than the training's; an area that
            does not meet it.
    """
    with open_raster(path, own) as raster:
        source = raster.dataset
        whole = maps.Grid.of(source)
        refuse_palette(raster, ())
        named = path.bands if isinstance(path, Address) else ()
        chosen, bands_from = _choose_bands(raster, bands, trained, named)
        plan = replace(trained or Reading(chosen, ""), bands=chosen, dtype=raw_dtype(raster, chosen))
        if bands_from == MODELS:
            refuse_other_names(raster, plan, _take_from)
        else:
            plan = replace(plan, names=())
        if value_range is not None:
            plan, range_from = replace(plan, value_range=value_range), "as given"
        elif trained is not None:
            _refuse_other_values(raster, plan, trained)
            range_from = "8 bit as it is" if trained.value_range is None else MODELS
        elif plan.dtype == "uint8":
            range_from = "8 bit as it is"
        else:
            plan, range_from = replace(plan, value_range=_estimated_range(raster, plan)), "estimated"
        plan.refuse_outside(raster, "give the scene's own with --value-range LOW,HIGH")
        state = _state(source)
    area = area_of(asked, whole, path) if asked else None
    grid = whole.part(area.rows, area.columns) if area else whole
    scale, resolution = _scale(whole, grid, plan, gsd, path)
    seen = max(1, round(grid.height * scale[0])), max(1, round(grid.width * scale[1]))
    return Scene(
        path,
        grid,
        (area.rows[0], area.columns[0]) if area else (0, 0),
        (whole.height, whole.width),
        seen,
        plan,
        bands_from,
        range_from,
        state,
        resolution,
        area,
        own,
    )


def _state(source: DatasetReader) -> str:
    """Another one where a scene's files are others; of a server's, where its header is another."""
    stats = [(file, Path(file).stat()) for file in source.files if Path(file).exists()]
    return digest(
        [
            source.name,
            [(file, each.st_size, each.st_mtime_ns) for file, each in stats],
            [source.shape, source.dtypes, list(source.transform), source.nodatavals, source.tags()],
        ]
    )


def _scale(
    whole: maps.Grid, grid: maps.Grid, plan: Reading, gsd: Gsd, path: Path | Address
) -> tuple[tuple[float, float], str]:
    """Px that the network sees per px of the scene, down and across, and what to say of it."""
    sides_m = pixel_sides_m(grid.crs, grid.transform, grid.width, grid.height)
    own = "" if sides_m is None else f"{math.sqrt(sides_m[0] * sides_m[1]):.3g} m"
    if plan.fit_px is not None and gsd == "auto":
        _refuse_larger(whole, plan, path)
        width, height = fitted_size(whole.width, whole.height, plan.fit_px)
        scale = height / whole.height, width / whole.width
        return scale, _differs(sides_m, scale, plan.gsd_m)
    if gsd == "native":
        return (1, 1), _differs(sides_m, (1, 1), plan.gsd_m)
    wanted_m = plan.gsd_m if gsd == "auto" else float(gsd)
    if wanted_m is None:
        return (1, 1), ""
    if sides_m is None:
        if gsd == "auto":
            unknown = f"the size of the scene's px is not known; the model was trained on {wanted_m:.3g} m"
            return (1, 1), unknown
        raise InputError(
            f"--gsd {gsd:g}, but the size of the scene's px on the ground is not known",
            where=path,
            expected="a scene with a CRS and a geotransform",
            next_step="--gsd native takes its px as they are",
        )
    scale = sides_m[0] / wanted_m, sides_m[1] / wanted_m
    if gsd == "auto" and all(1 / ALIKE <= each <= ALIKE for each in scale):
        return (1, 1), ""
    if gsd == "auto" and max(scale) > MOST_ENLARGED:
        raise InputError(
            f"px of {own}, but the model was trained on px of {wanted_m:.3g} m",
            where=path,
            expected=f"at most {MOST_ENLARGED * wanted_m:.3g} m: enlarging shows nothing that is not there",
            next_step=f"take a finer scene, or insist: --gsd native, or --gsd {wanted_m:.3g}",
        )
    chosen = "the model's" if gsd == "auto" else "as given"
    return scale, f"px of {own} are seen at {wanted_m:.3g} m ({chosen}), the map has the scene's own"


def _differs(sides_m: tuple[float, float] | None, scale: tuple[float, float], trained_m: float | None) -> str:
    """What to know where the network sees px of quite another size than those that it was trained on."""
    if sides_m is None or trained_m is None:
        return ""
    seen_m = math.sqrt(sides_m[0] * sides_m[1] / (scale[0] * scale[1]))
    if 0.5 <= seen_m / trained_m <= 2:
        return ""
    return f"the network sees pixels of {seen_m:.3g} m, it was trained on {trained_m:.3g} m"


def _choose_bands(
    raster: Raster, bands: Sequence[int] | Sequence[str] | None, trained: Reading | None, named: Sequence[str]
) -> tuple[tuple[int, int, int], str]:
    """Numbers of three bands, and who chose them.

    Args:
        named: of a STAC item's bands those that the raster consists of, in order.
    """
    source = raster.dataset
    asked: Sequence[int]
    if named:
        asked, origin = (1, 2, 3), f"{', '.join(named)} of the item"
    elif bands is not None:
        asked, origin = [_number(raster, band) for band in bands], "as given"
    elif trained is not None:
        asked, origin = trained.bands, MODELS
    else:
        colours = enumerate(source.colorinterp, 1)
        asked = [band for band, colour in colours if colour != ColorInterp.alpha][:3]
        origin = "the first three"
    if len(asked) < 3 or max(asked) > source.count:
        alone = f"; of files of one band each make one scene: {stacking(Path(raster.where))}"
        wanted = "three" if len(asked) < 3 else f"the model's {', '.join(map(str, asked))}"
        raise InputError(
            f"the scene has {source.count} band{'s' * (source.count != 1)}, asked for "
            + (wanted if bands is None else f"band {max(asked)}"),
            where=raster.where,
            expected="the bands that the network was trained on",
            next_step=f"choose with --bands, for example --bands {_example(source.count)}"
            + alone * (source.count == 1),
        )
    first, second, third = asked
    return (first, second, third), origin


def _number(raster: Raster, band: int | str) -> int:
    if isinstance(band, int):
        return band
    names = {name: place for place, name in enumerate(band_names(raster), 1) if name}
    if band.lower() not in names:
        known = listed(names) or "none: its bands have no names, take their numbers"
        raise InputError(f"no band {band!r}", where=raster.where, expected=known)
    return names[band.lower()]


def _take_from(places: Mapping[str, int]) -> str:
    """What to do about bands that lie elsewhere, by name."""
    if len(places) == 3:
        return f"--bands {','.join(map(str, places.values()))} takes them from where they are"
    return "say with --bands which of its bands are meant, in the order of the training"


def _example(count: int) -> str:
    """Three of a scene's bands, as --bands takes them; one may stand several times."""
    return ",".join(str(min(count, band)) for band in (3, 2, 1))


def _refuse_other_values(raster: Raster, plan: Reading, trained: Reading) -> None:
    """Without a word of the user's, the numbers of a scene mean what those of the training meant."""
    if trained.value_range is None and trained.dtype == plan.dtype and is_tagged(raster, plan.bands):
        what = "bytes whose scale and offset tags make other values of them"
        low, high = bounds_of_bytes(raster, plan.bands)
    elif trained.dtype != plan.dtype:
        what = f"values of {plan.dtype}, but the model was trained on {trained.dtype}"
        low, high = _estimated_range(raster, plan)
    else:
        return
    wanted = "as they are" if trained.value_range is None else "{:g} to {:g}".format(*trained.value_range)
    raise InputError(
        what,
        where=raster.where,
        expected=f"{trained.dtype}, {wanted}, as in the training",
        next_step=f"say which values become black and white: --value-range {low:g},{high:g}",
    )


def _refuse_larger(grid: maps.Grid, plan: Reading, path: Path | Address) -> None:
    if plan.largest_px is not None and max(grid.width, grid.height) > MOST_SHRUNK * plan.largest_px:
        px = plan.largest_px
        raise InputError(
            f"a scene of {grid.width} x {grid.height} px, for a model that was trained on whole images, "
            f"scaled to {plan.fit_px} px",
            where=path,
            expected=f"at most {MOST_SHRUNK} times the largest of them, {px} px",
            next_step=f"cut it: gdal_retile.py -ps {px} {px} -targetDir TILES SCENE",
        )


def _estimated_range(raster: Raster, plan: Reading) -> tuple[float, float]:
    """Low and high percentile of a scene's chosen bands together, sampled."""
    values = plan.sample(raster)
    if not values.size:
        return (0.0, 1.0)
    low, high = (float(bound) for bound in np.percentile(values, RANGE_PERCENTILES))
    return low, high if high > low else low + 1


class View:
    """What the network sees of a scene: px of the seen grid, beyond the scene's borders mirrored.

    Rows and columns count from the map's first; those before it and behind it are the scene's own where only
    an area of it is mapped.

    Args:
        pixels: image and valid of a part of the scene, of rows and columns within it.
        valid: the second of them alone.

    Attributes:
        height, width: of the grid that the network sees of the map.
    """

    def __init__(self, scene: Scene, pixels: Pixels, valid: Callable[[Span, Span], Mask]) -> None:
        self._scene, self._pixels, self._valid = scene, pixels, valid
        self.height, self.width = scene.seen
        fits = scene.reading.fit_px is not None
        self._filters = tuple(BILINEAR if fits or each > 1 else Image.Resampling.BOX for each in scene.scale)

    def look(self, rows: Span, columns: Span) -> tuple[Bytes, Mask]:
        """Image uint8 (3, H, W) in network order and valid bool (H, W) of a part of the seen grid.

        False is also what no px of the asked area touches.
        """
        scene = self._scene
        taken = [
            _mirrored(span, -math.floor(corner * scale + 1e-6), math.floor((side - corner) * scale + 1e-6))
            for span, corner, side, scale in zip(
                (rows, columns), scene.corner, scene.size, scene.scale, strict=True
            )
        ]
        spans = [(int(each.min()), int(each.max()) + 1) for each in taken]
        image, valid = self._seen(spans[0], spans[1])
        if scene.area:
            valid = valid & scene.area.mask(spans[0], spans[1], scene.scale, touched=True)
        picked = np.ix_(taken[0] - spans[0][0], taken[1] - spans[1][0])
        return image[:, picked[0], picked[1]], valid[picked]

    def valid(self, rows: Span, columns: Span) -> Mask:
        """Bool (H, W) of a part of the map: what the scene has, and the area asks for."""
        scene = self._scene
        top, left = scene.corner
        valid = self._valid((rows[0] + top, rows[1] + top), (columns[0] + left, columns[1] + left))
        return valid & scene.area.mask(rows, columns) if scene.area else valid

    def _seen(self, rows: Span, columns: Span) -> tuple[Bytes, Mask]:
        scene = self._scene
        if scene.scale == (1, 1):
            (top, left) = scene.corner
            return self._pixels((rows[0] + top, rows[1] + top), (columns[0] + left, columns[1] + left))
        row_bytes = 3 * (columns[1] - columns[0]) / (scene.scale[0] * scene.scale[1])
        at_once = max(1, int(PIECE_BYTES / row_bytes))
        pieces = [
            self._resampled((first, min(first + at_once, rows[1])), columns)
            for first in range(rows[0], rows[1], at_once)
        ]
        return np.concatenate([image for image, _ in pieces], axis=1), np.concatenate(
            [valid for _, valid in pieces]
        )

    def _resampled(self, rows: Span, columns: Span) -> tuple[Bytes, Mask]:
        """Reads the scene's own px under some of the seen grid, with those that the filters reach."""
        scene = self._scene
        read, part = [], []
        for span, corner, side, scale in zip(
            (rows, columns), scene.corner, scene.size, scene.scale, strict=True
        ):
            low, high = (corner + place / scale for place in span)
            reach = 1 + math.ceil(1 / scale)
            first, last = max(0, math.floor(low) - reach), min(side, math.ceil(high) + reach)
            read.append((first, last))
            part.append((max(0.0, low - first), min(float(last - first), high - first)))
        image, valid = self._pixels(read[0], read[1])
        size = (rows[1] - rows[0], columns[1] - columns[0])
        return resample(image, valid, part, size, (self._filters[0], self._filters[1]))


@contextmanager
def open_view(scene: Scene) -> Iterator[View]:
    """The view of a scene's file."""
    with open_raster(scene.path, scene.own) as raster, rasterio.Env(GDAL_CACHEMAX=_cache_bytes(raster)):
        reading = scene.reading
        yield View(
            scene,
            lambda rows, columns: reading.read(raster, (rows, columns)),
            lambda rows, columns: reading.valid(raster, (rows, columns)),
        )


def _cache_bytes(raster: Raster) -> int:
    """Memory for a scene's blocks: a row of them, which strips read several times, within bounds."""
    source = raster.dataset
    rows = max(shape[0] for shape in source.block_shapes)
    row_bytes = source.width * sum(np.dtype(dtype).itemsize for dtype in source.dtypes)
    return min(max(GDAL_CACHE_BYTES, rows * row_bytes), MOST_CACHE_BYTES)


def _mirrored(span: Span, low: int, high: int) -> NDArray[np.int64]:
    """Indexes of a span, those outside low..high - 1 mirrored at the borders, the border px twice."""
    length = high - low
    place = (np.arange(*span) - low) % (2 * length)
    return low + np.where(place < length, place, 2 * length - 1 - place)
