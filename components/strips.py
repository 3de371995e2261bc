"""A scene as strips of whole rows of uint8, each read once, ahead of its use: memory ignores the height."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from crossearth.components import maps
from crossearth.data.errors import InputError
from crossearth.data.prefetch import ahead
from crossearth.data.raster import open_raster
from crossearth.data.raster_names import stacking

SMALLEST_VALUE = {"uint8": 0, "uint16": 0, "int16": -(1 << 15)}
RANGE_SAMPLE_PX = 1024
RANGE_PERCENTILES = (2, 98)


@dataclass(frozen=True)
class Scene:
    """A raster to map, as far as its header tells.

    Attributes:
        bands: the three chosen, 1-based; `bands_from` says who chose them.
        own: whether it is a file of the user's own, see `open_raster`.
    """

    path: Path
    grid: maps.Grid
    bands: tuple[int, ...]
    bands_from: str
    dtype: str
    own: bool = True


@dataclass(frozen=True)
class Strip:
    """Whole rows of a scene: image uint8 (3, H, W) in network order, valid bool (H, W)."""

    image: NDArray[np.uint8]
    valid: NDArray[np.bool_]


def open_scene(
    path: Path,
    bands: Sequence[int] | None = None,
    trained: Sequence[int] | None = None,
    own: bool = True,
) -> Scene:
    """Reads a scene's header and chooses its bands.

    Args:
        bands: the user's; None = `trained` where the scene has them, else the first three that are not alpha.
        trained: those of the files that the model was trained on, None where it does not know.

    Raises:
        InputError: not a readable raster, fewer bands than asked, or a dtype that is neither 8 nor 16 bit.
    """
    with open_raster(Path(path), own) as raster:
        source = raster.dataset
        grid = maps.Grid.of(source)
        count, dtypes, colours = source.count, source.dtypes, source.colorinterp
    opaque = [band for band in range(1, count + 1) if colours[band - 1] != ColorInterp.alpha]
    chosen, origin = tuple(opaque[:3]), "the first three"
    if bands is not None:
        chosen, origin = tuple(bands), "as given"
    elif trained is not None and set(trained) <= set(opaque):
        chosen, origin = tuple(trained), "the model's"
    elif trained is not None:
        origin += f", the scene lacks the model's {', '.join(map(str, trained))}"
    if len(chosen) < 3 or max(chosen) > count:
        asked = "three" if bands is None else f"band {max(bands)}"
        raise InputError(
            f"the scene has {count} band{'s' * (count != 1)}, asked for {asked}",
            where=path,
            expected="the bands that the network was trained on",
            next_step="choose with --bands, for example --bands 3,2,1 (one band may stand three times)"
            + (f"; of files of one band each make one scene: {stacking(Path(path))}" if count == 1 else ""),
        )
    kinds = sorted({dtypes[band - 1] for band in chosen})
    if len(kinds) > 1 or kinds[0] not in SMALLEST_VALUE:
        raise InputError(
            f"bands of type {', '.join(kinds)}",
            where=path,
            expected=f"one of {', '.join(SMALLEST_VALUE)}",
            next_step="convert the scene, for example with gdal_translate -ot UInt16 -scale",
        )
    return Scene(Path(path), grid, chosen, origin, kinds[0], own)


@contextmanager
def read_strips(
    scene: Scene, value_range: Sequence[float] | None, tops: list[int], height: int
) -> Iterator[Iterator[Strip]]:
    """Yields the strips under `tops`; a thread reads each row once, a few strips ahead.

    Args:
        value_range: values that become 0 and 255; None = uint8 as it is.
        tops: first row of each strip, rising, overlapping or adjacent.
        height: rows of a strip; at most the scene's.
    """
    height = min(height, scene.grid.height)
    levels = None if value_range is None else _levels(scene.dtype, value_range)
    spans = [(tops[0], tops[0] + height)]
    spans += [(top + height, below + height) for top, below in pairwise(tops)]

    with open_raster(scene.path, scene.own) as raster:

        def read(span: tuple[int, int]) -> Strip:
            window = (span, (0, scene.grid.width))
            values_3HW = raster.read(scene.bands, window)
            valid_HW = raster.read_masks(scene.bands, window).max(axis=0) > 0
            if levels is not None:
                values_3HW = levels[values_3HW.astype(np.int32) - SMALLEST_VALUE[scene.dtype]]
            return Strip(values_3HW, valid_HW)

        with closing(ahead(read, spans, 1)) as pieces:
            yield _overlapped(pieces)


def _overlapped(pieces: Iterator[Strip]) -> Iterator[Strip]:
    """Every piece below those rows of the strip before it that its window holds too."""
    strip = next(pieces)
    yield strip
    for piece in pieces:
        fresh = len(piece.valid)
        strip = Strip(
            np.concatenate([strip.image[:, fresh:], piece.image], axis=1),
            np.concatenate([strip.valid[fresh:], piece.valid]),
        )
        yield strip


def _levels(dtype: str, value_range: Sequence[float]) -> NDArray[np.uint8]:
    """The uint8 level of every value that `dtype` can take, smallest first."""
    low, high = value_range
    smallest = SMALLEST_VALUE[dtype]
    values = np.arange(smallest, smallest + (1 << 8 * np.dtype(dtype).itemsize), dtype=np.float64)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def choose_range(
    scene: Scene, given: Sequence[float] | None, trained: Sequence[float] | None
) -> tuple[Sequence[float] | None, str]:
    """Values that become 0 and 255 (None = uint8 as it is), and who chose them.

    Args:
        given: by the user.
        trained: of the files that the model was trained on, None where it does not know or they were 8 bit.
    """
    if given is not None:
        return given, "as given"
    # what was scaled to 8 bits before has other values than the model's files of more bits
    if trained is not None and (scene.dtype != "uint8" or trained[1] <= 255):
        return trained, "the model's"
    return (None, "8 bit as it is") if scene.dtype == "uint8" else (_estimated_range(scene), "estimated")


def _estimated_range(scene: Scene) -> tuple[float, float]:
    """Low and high percentile of a scene's chosen bands together, sampled."""
    shrink = max(1.0, max(scene.grid.width, scene.grid.height) / RANGE_SAMPLE_PX)
    shape = (3, max(1, round(scene.grid.height / shrink)), max(1, round(scene.grid.width / shrink)))
    with open_raster(scene.path, scene.own) as raster:
        values = np.ma.compressed(raster.read(scene.bands, out_shape=shape, masked=True))
    if not values.size:
        return (0.0, 1.0)
    low, high = np.percentile(values, RANGE_PERCENTILES)
    return float(low), float(max(high, low + 1))
