"""A scene as strips of whole rows of uint8, each read once, ahead of its use: memory ignores the height."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from crossearth.components.predict import maps
from crossearth.data.common.errors import InputError
from crossearth.data.common.prefetch import prefetch
from crossearth.data.raster.names import stacking
from crossearth.data.raster.reader import Raster, open_raster, refuse_palette
from crossearth.data.raster.reading import Reading, bounds_of_bytes, fit, fitted_size, is_tagged, raw_dtype

RANGE_PERCENTILES = (2, 98)
MOST_SHRUNK = 2  # a scene that is so many times as large as those fitted in training is seen too coarsely


@dataclass(frozen=True)
class Scene:
    """A raster to map, as far as its header and a thinned look tell; with who chose bands and range.

    Attributes:
        own: whether it is a file of the user's own, see `open_raster`.
    """

    path: Path
    grid: maps.Grid
    reading: Reading
    bands_from: str
    range_from: str
    own: bool = True

    @property
    def seen_grid(self) -> maps.Grid:
        """The grid on which the network sees it: its own, unless the reading fits images to a size."""
        own = self.grid
        width, height = fitted_size(own.width, own.height, self.reading.fit_px)
        shrink = Affine.scale(own.width / width, own.height / height)
        return maps.Grid(width, height, own.crs, own.transform @ shrink)


@dataclass(frozen=True)
class Strip:
    """Whole rows of a scene: image uint8 (3, H, W) in network order, valid bool (H, W)."""

    image: NDArray[np.uint8]
    valid: NDArray[np.bool_]


def open_scene(
    path: Path,
    trained: Reading | None = None,
    bands: Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    own: bool = True,
) -> Scene:
    """Decides how a scene is read: as the files of the training, unless the user says otherwise.

    Args:
        trained: how those were read. None = the model does not know: the first three bands that are not
            alpha, 8 bits as they are, and of other types the 2nd to 98th percentile of the scene.
        bands, value_range: the user's.
        own: see `open_raster`.

    Raises:
        InputError: not a readable raster; fewer bands than asked, or of several types; without `value_range`
            another type than the training's; a range that leaves nothing of the scene; a scene much larger
            than those that the training scaled as a whole.
    """
    with open_raster(Path(path), own) as raster:
        source = raster.dataset
        grid = maps.Grid.of(source)
        refuse_palette(raster, ())
        chosen, bands_from = _choose_bands(raster, bands, trained)
        plan = replace(trained or Reading(chosen, ""), bands=chosen, dtype=raw_dtype(raster, chosen))
        if value_range is not None:
            plan, range_from = replace(plan, value_range=value_range), "as given"
        elif trained is not None:
            _refuse_other_values(raster, plan, trained)
            range_from = "8 bit as it is" if trained.value_range is None else "the model's"
        elif plan.dtype == "uint8":
            range_from = "8 bit as it is"
        else:
            plan, range_from = replace(plan, value_range=_estimated_range(raster, plan)), "estimated"
        plan.refuse_outside(raster, "give the scene's own with --value-range LOW,HIGH")
    _refuse_larger(grid, plan, path)
    return Scene(Path(path), grid, plan, bands_from, range_from, own)


def _choose_bands(
    raster: Raster, bands: Sequence[int] | None, trained: Reading | None
) -> tuple[tuple[int, int, int], str]:
    source = raster.dataset
    if bands is not None:
        asked, origin = bands, "as given"
    elif trained is not None:
        asked, origin = trained.bands, "the model's"
    else:
        colours = enumerate(source.colorinterp, 1)
        asked, origin = (
            [band for band, colour in colours if colour != ColorInterp.alpha][:3],
            "the first three",
        )
    if len(asked) < 3 or max(asked) > source.count:
        alone = f"; of files of one band each make one scene: {stacking(Path(raster.where))}"
        wanted = "three" if len(asked) < 3 else f"the model's {', '.join(map(str, asked))}"
        raise InputError(
            f"the scene has {source.count} band{'s' * (source.count != 1)}, asked for "
            + (wanted if bands is None else f"band {max(bands)}"),
            where=raster.where,
            expected="the bands that the network was trained on",
            next_step=f"choose with --bands, for example --bands {_example(source.count)}"
            + alone * (source.count == 1),
        )
    first, second, third = asked
    return (first, second, third), origin


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


def _refuse_larger(grid: maps.Grid, plan: Reading, path: Path) -> None:
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


@contextmanager
def read_strips(scene: Scene, tops: list[int], height: int) -> Iterator[Iterator[Strip]]:
    """Yields the strips under `tops`; a thread reads each row once, a few strips ahead.

    Args:
        tops: first row of each strip, rising, overlapping or adjacent, on `scene.seen_grid`.
        height: rows of a strip; at most the grid's.
    """
    seen = scene.seen_grid
    height = min(height, seen.height)
    spans = [(tops[0], tops[0] + height)]
    spans += [(top + height, below + height) for top, below in pairwise(tops)]

    with open_raster(scene.path, scene.own) as raster:
        if scene.reading.fit_px is not None:
            image, valid = fit(*scene.reading.read(raster), seen.width, seen.height)

        def read(span: tuple[int, int]) -> Strip:
            if scene.reading.fit_px is not None:
                return Strip(image[:, slice(*span)], valid[slice(*span)])
            return Strip(*scene.reading.read(raster, (span, (0, seen.width))))

        with closing(prefetch(read, spans, 1)) as pieces:
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
