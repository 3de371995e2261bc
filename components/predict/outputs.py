"""What becomes of class probabilities: `keep` reduces a block of them, `Outputs` writes what was kept.

The network's work ends at `Block`. `keep` is a pure function of one block: several processes run it, and what
it returns waits on disk until the scene is done. `Outputs` is given the same arrays as whole rows of the map,
from top to bottom, in one process; what needs neighbouring rows belongs there.

Legend: K classes, H W pixels of a block or of whole rows.
"""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor

from crossearth.components.predict import maps
from crossearth.components.predict.config import PredictConfig
from crossearth.components.predict.estimate import Estimate, block_sums
from crossearth.components.predict.style import write_legend, write_qgis_style
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_path
from crossearth.model.inference import best_class

Kept = Mapping[str, NDArray[Any]]  # by name, each (bands, H, W), but that W of what is summed is smaller

if TYPE_CHECKING:
    from crossearth.components.predict.vectors import Regions


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
    def totals(self) -> Tensor:
        """(H, W) float32: the sum of the scores, by which they become probabilities."""
        return self.scores.sum(0).clamp(min=torch.finfo(torch.float32).tiny)

    @cached_property
    def probabilities(self) -> Tensor:
        """(K, H, W) float32, 0..1: the scores as shares of their sum."""
        return self.scores / self.totals


def keep(block: Block, names: Sequence[str]) -> Kept:
    """What the outputs need of a block.

    Args:
        names: `PredictConfig.kept`.

    Returns:
        Of these, those that are named: "ids" (1, H, W) uint8, 255 = nodata; "shares" (K, H, W) uint8 of the
        classes, "confidence" (1, H, W) uint8 of the class that is likeliest, "entropy" (1, H, W) uint8, 0 =
        one class has all, 1 = all have the same: in steps of `maps.PROBABILITY_STEP`, 255 = nodata;
        "expected" and "spread", float32 (K, H, G), see `estimate.block_sums`.
    """
    kept: dict[str, NDArray[Any]] = {"ids": block.ids[None]}
    if "shares" in names:
        kept["shares"] = _steps(block.probabilities, block.valid)
    if "confidence" in names:
        kept["confidence"] = _steps((block.scores.amax(0) / block.totals)[None], block.valid)
    if "entropy" in names:
        kept["entropy"] = _steps(_entropy(block.probabilities)[None], block.valid)
    if "expected" in names:
        valid_HW = torch.from_numpy(block.valid).to(block.probabilities.device)
        kept["expected"], kept["spread"] = block_sums(block.probabilities, valid_HW)
    return kept


def _steps(shares_KHW: Tensor, valid_HW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    steps_KHW: NDArray[np.uint8] = (
        shares_KHW.div(maps.PROBABILITY_STEP).round_().to(torch.uint8).cpu().numpy()
    )
    steps_KHW[:, ~valid_HW] = maps.NODATA
    return steps_KHW


def _entropy(probabilities_KHW: Tensor) -> Tensor:
    """Shannon's, (H, W), as a share of the most that so many classes can have."""
    most = math.log(max(2, len(probabilities_KHW)))
    return torch.special.entr(probabilities_KHW).sum(0).div_(most).clamp_(0, 1)


class Outputs:
    """The files of one map that are written while its rows come.

    Attributes:
        tally: pixels and areas of the rows that were written.
        estimate: areas by the probabilities; None = not asked for.
        regions: the polygons; None = not asked for.
    """

    def __init__(self, folder: Path, grid: maps.Grid, stack: ExitStack) -> None:
        self.tally = maps.Tally(grid)
        self.estimate: Estimate | None = None
        self.regions: Regions | None = None
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
        config: PredictConfig,
        about: Mapping[str, str],
    ) -> Iterator["Outputs"]:
        """Opens `ids.tif` and what else is wanted in a folder; all is whole when this is left.

        Args:
            about: further tags of each raster.
        """
        with ExitStack() as stack:
            outputs = cls(folder, grid, stack)
            maps.describe_classes(outputs._raster("ids", ["ids"]), classes, palette)
            if config.probabilities:
                maps.describe_shares(outputs._raster("shares", ["shares"] * len(classes)), classes)
            if config.confidence:
                names = ["confidence", "entropy"]
                maps.describe_shares(outputs._raster("confidence", names), names)
                outputs.estimate = Estimate(len(classes))
            for _, raster in outputs._rasters.values():
                raster.update_tags(**about)
            if config.vector:
                # their libraries take half a second, and most maps do without
                from crossearth.components.predict.polygon_files import PolygonFile
                from crossearth.components.predict.vectors import Regions

                vector = folder / f"polygons{config.vector_ending}"
                file = stack.enter_context(PolygonFile.open(vector, grid, classes))
                outputs.regions = Regions(
                    file.add,
                    grid.width,
                    outputs.tally.ground,
                    config.class_ids(classes),
                    config.min_area_m2,
                    config.simplify_px,
                )
            yield outputs
            if outputs.regions:
                outputs.regions.close()

    def _raster(self, name: str, kept: Sequence[str]) -> Any:
        """Opens a raster of a band for each of `kept`, names of arrays that come together."""
        writer = self._stack.enter_context(
            maps.rows_writer(self._folder / f"{name}.tif", self._grid, len(kept))
        )
        self._rasters[name] = (list(dict.fromkeys(kept)), writer)
        return writer

    def write(self, top: int, kept: Kept) -> None:
        """Takes whole rows of the map, those below the ones before.

        Args:
            top: the first of them.
            kept: as `keep` returns it, W the map's width.
        """
        height = kept["ids"].shape[1]
        for names, writer in self._rasters.values():
            bands = np.concatenate([kept[name] for name in names])
            writer.write(bands, window=Window(0, top, self._grid.width, height))
        ids_HW = kept["ids"][0]
        self.tally.add(top, ids_HW)
        if self.estimate:
            self.estimate.add(kept["expected"], kept["spread"], self.tally.row_sizes_m2(top, height))
        if self.regions:
            self.regions.add(top, ids_HW, kept["confidence"][0])

    def report(self, classes: list[str]) -> dict[str, Any]:
        """See `maps.report`; with what is expected by the probabilities, where that was asked for."""
        report = maps.report(self._grid, classes, self.tally)
        if self.estimate:
            placed = self.tally.areas_m2 is not None
            for entry, expected, ends in zip(report["classes"], *self.estimate.result(), strict=True):
                entry["expected_area_m2"] = float(expected) if placed else None
                entry["area_interval_m2"] = ends.tolist() if placed else None
        if self.regions and self.regions.left_out:
            report["notes"].append(f"{self.regions.left_out} polygons below the least area are left out")
        if self.regions and self.regions.cut:
            report["notes"].append(
                f"{self.regions.cut} regions with very many corners are several polygons, cut along a row"
            )
        return report


def finish(
    folder: Path, target: Path, grid: maps.Grid, tally: maps.Tally, classes: list[str], palette: list[str]
) -> None:
    """Makes what stands beside a map of the files that `Outputs` wrote into the folder."""
    maps.write_cog(folder / "ids.tif", folder / target.name, "MODE")
    if not np.array_equal(maps.count_pixels(folder / target.name), tally.pixels):
        # GDAL may lose the last blocks of a full disk without a word
        raise OSError("the map on disk is not what was written")
    (folder / "ids.tif").unlink()
    maps.write_side_file(folder / target.name, grid.crs, classes, palette, tally.pixels)
    for name, path in rasters_beside(target).items():
        if (folder / f"{name}.tif").exists():
            maps.write_cog(folder / f"{name}.tif", folder / path.name, "AVERAGE")
            (folder / f"{name}.tif").unlink()
            maps.write_side_file(folder / path.name, grid.crs)
    write_qgis_style(folder / target.with_suffix(".qml").name, classes, palette)
    write_legend(folder / legend_path(target).name, classes, palette)


def rasters_beside(target: Path) -> dict[str, Path]:
    """Where shares (the probabilities) and confidence (with entropy) of a map lie, if they are asked for."""
    return {
        "shares": target.with_name(f"{target.stem}.probabilities.tif"),
        "confidence": target.with_name(f"{target.stem}.confidence.tif"),
    }


def legend_path(target: Path) -> Path:
    """Where the legend of a map lies."""
    return target.with_name(f"{target.stem}.legend.svg")


def beside(target: Path) -> list[Path]:
    """What may stand beside a map, but for its polygons."""
    rasters = rasters_beside(target).values()
    others = [target.with_suffix(ending) for ending in (".json", ".png", ".qml", ".html")]
    return [*others, legend_path(target), *rasters, *map(maps.side_file, (target, *rasters))]


def publish_vector(folder: Path, vector: Path) -> None:
    """Moves the finished polygons to where they belong."""
    made = folder / f"polygons{vector.suffix}"
    with atomic_path(vector) as partial:
        shutil.copyfile(made, partial)
    made.unlink()


class CannotWriteError(InputError):
    """The disk takes no map."""
