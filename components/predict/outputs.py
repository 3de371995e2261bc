"""What becomes of class probabilities: `keep` reduces a block of them, `Outputs` writes what was kept.

The network's work ends at `Block`. `keep` is a pure function of one block: several processes run it, and what
it returns waits on disk until the scene is done. `Outputs` is given the same arrays as whole rows of the map,
from top to bottom, in one process; what needs neighbouring rows belongs there.

Legend: K classes, H W pixels of a block or of whole rows.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor

from crossearth.components.predict import maps
from crossearth.data.common.errors import InputError
from crossearth.model.inference import best_class

Kept = Mapping[str, NDArray[Any]]  # by name, each (bands, H, W)


@dataclass(frozen=True)
class Block:
    """What the network says of a rectangle of the map, on the map's own grid.

    Attributes:
        top, left: its first row and column.
        scores: (K, H, W) float32, not negative, on the network's device.
        valid: (H, W) bool; false = nodata, whatever the scores say.
    """

    top: int
    left: int
    scores: Tensor
    valid: NDArray[np.bool_]

    @property
    def ids(self) -> NDArray[np.uint8]:
        """(H, W) uint8 class ids, 255 = nodata."""
        ids_HW: NDArray[np.uint8] = best_class(self.scores, 0).cpu().numpy()
        ids_HW[~self.valid] = maps.NODATA
        return ids_HW

    @cached_property
    def probabilities(self) -> Tensor:
        """(K, H, W) float32, 0..1: the scores as shares of their sum."""
        totals_HW = self.scores.sum(0).clamp(min=torch.finfo(torch.float32).tiny)
        return self.scores / totals_HW


def keep(block: Block, probabilities: bool) -> Kept:
    """What the outputs need of a block.

    Args:
        probabilities: as `PredictConfig` has it.

    Returns:
        "ids" (1, H, W) uint8; with `probabilities`, "shares" (K, H, W) uint8 in steps of
        `maps.PROBABILITY_STEP`; 255 = nodata in both.
    """
    kept = {"ids": block.ids[None]}
    if probabilities:
        steps_KHW = block.probabilities.div(maps.PROBABILITY_STEP).round_().to(torch.uint8)
        kept["shares"] = steps_KHW.cpu().numpy()
        kept["shares"][:, ~block.valid] = maps.NODATA
    return kept


class Outputs:
    """The rasters of one map, while its rows come.

    Attributes:
        tally: pixels and areas of the rows that were written.
    """

    def __init__(self, folder: Path, grid: maps.Grid, stack: ExitStack) -> None:
        self.tally = maps.Tally(grid)
        self._folder, self._grid, self._stack = folder, grid, stack
        self._rasters: dict[str, Any] = {}

    @classmethod
    @contextmanager
    def open(
        cls,
        folder: Path,
        grid: maps.Grid,
        classes: list[str],
        palette: list[str],
        probabilities: bool,
        about: Mapping[str, str],
    ) -> Iterator["Outputs"]:
        """Opens `ids.tif` and, if asked, `shares.tif` in a folder; both are whole when this is left.

        Args:
            about: further tags of each.
        """
        with ExitStack() as stack:
            outputs = cls(folder, grid, stack)
            maps.describe_classes(outputs._raster("ids", 1), classes, palette)
            if probabilities:
                maps.describe_probabilities(outputs._raster("shares", len(classes)), classes)
            for raster in outputs._rasters.values():
                raster.update_tags(**about)
            yield outputs

    def _raster(self, name: str, bands: int) -> Any:
        writer = self._stack.enter_context(maps.rows_writer(self._folder / f"{name}.tif", self._grid, bands))
        self._rasters[name] = writer
        return writer

    def write(self, top: int, kept: Kept) -> None:
        """Takes whole rows of the map, those below the ones before.

        Args:
            top: the first of them.
            kept: as `keep` returns it, W the map's width.
        """
        height = kept["ids"].shape[1]
        for name, writer in self._rasters.items():
            writer.write(kept[name], window=Window(0, top, self._grid.width, height))
        self.tally.add(top, kept["ids"][0])


def finish(
    folder: Path, target: Path, grid: maps.Grid, tally: maps.Tally, classes: list[str], palette: list[str]
) -> None:
    """Makes what stands beside a map of the rasters that `Outputs` wrote into the folder."""
    maps.write_cog(folder / "ids.tif", folder / target.name, "MODE")
    if not np.array_equal(maps.count_pixels(folder / target.name), tally.pixels):
        # GDAL may lose the last blocks of a full disk without a word
        raise OSError("the map on disk is not what was written")
    (folder / "ids.tif").unlink()
    maps.write_side_file(folder / target.name, grid.crs, classes)
    if (folder / "shares.tif").exists():
        shares = folder / probabilities_path(target).name
        maps.write_cog(folder / "shares.tif", shares, "AVERAGE")
        (folder / "shares.tif").unlink()
        maps.write_side_file(shares, grid.crs)


def probabilities_path(target: Path) -> Path:
    """Where the probabilities of a map lie."""
    return target.with_name(f"{target.stem}.probabilities.tif")


class CannotWriteError(InputError):
    """The disk takes no map."""
