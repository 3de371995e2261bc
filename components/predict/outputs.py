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
from crossearth.components.predict.estimate import Estimate, block_sums
from crossearth.components.predict.style import write_legend, write_qgis_style
from crossearth.data.common.config import nearest
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_path
from crossearth.model.inference import best_class

Kept = Mapping[str, NDArray[Any]]  # by name, each (bands, H, W), but that W of what is summed is smaller

if TYPE_CHECKING:
    from crossearth.components.predict.vectors import Regions

FORMATS = (".gpkg", ".geojson", ".parquet")  # of polygons


@dataclass(frozen=True)
class Wanted:
    """What is written besides the map.

    Attributes:
        probabilities, confidence, vector, min_area_m2, simplify_px, classes: as `PredictConfig`
            has them.
    """

    probabilities: bool = False
    confidence: bool = False
    vector: Path | None = None
    min_area_m2: float = 0
    simplify_px: float = 0
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, value in (("--min-area", self.min_area_m2), ("--simplify", self.simplify_px)):
            if not 0 <= value < math.inf:
                raise InputError(f"{name} {value:g}", expected="a number of at least 0")
        if self.vector is None:
            given = [
                option
                for option, value in (
                    ("--min-area", self.min_area_m2),
                    ("--simplify", self.simplify_px),
                    ("--classes", self.classes),
                )
                if value
            ]
            if given:
                raise InputError(
                    f"{given[0]} is about polygons, and none are asked for",
                    next_step="name their file: --vector MAP.gpkg",
                )
        elif self.vector_ending not in FORMATS:
            raise InputError(
                "a file of polygons of a kind that is not known",
                where=f"--vector {self.vector}",
                expected=f"a name that ends in {', '.join(FORMATS)}; an ending alone puts it beside the map",
            )

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the arrays that `keep` makes."""
        names = {
            "ids": True,
            "shares": self.probabilities,
            "confidence": self.confidence or self.vector is not None,
            **dict.fromkeys(("entropy", "expected", "spread"), self.confidence),
        }
        return tuple(name for name, wanted in names.items() if wanted)

    @property
    def vector_ending(self) -> str:
        # Path(".gpkg") has no suffix
        return self.vector.suffix or self.vector.name if self.vector else ""

    def vector_of(self, target: Path) -> Path | None:
        """The file of polygons of a map; None = none."""
        if self.vector is None or self.vector.suffix:
            return self.vector
        return target.with_suffix(self.vector.name)

    def class_ids(self, classes: Sequence[str]) -> list[int]:
        """Ids of the classes that become polygons.

        Raises:
            InputError: a class that the model does not have.
        """
        for name in self.classes or ():
            if name not in classes:
                raise InputError(
                    f"unknown class {name!r}", where="--classes", expected=nearest(name, classes)
                )
        return [index for index, name in enumerate(classes) if self.classes is None or name in self.classes]

    def refuse_unplaced(self, grid: maps.Grid, scene: object) -> None:
        """Refuses what needs a place on the ground of a scene that has none.

        Raises:
            InputError: a least area, or GeoJSON, which is in longitude and latitude.
        """
        placed = grid.crs is not None and not grid.transform.is_identity
        reason = "--min-area" if self.min_area_m2 else "GeoJSON" if self.vector_ending == ".geojson" else ""
        if reason and not placed:
            raise InputError(
                f"{reason} needs a place on the ground, and the scene has no CRS or no geotransform",
                where=scene,
                next_step="place the scene with gdal_translate -a_srs ... -a_ullr ..., "
                "or ask for --vector MAP.gpkg alone: polygons in px",
            )


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
        names: `Wanted.kept`.

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
        wanted: Wanted,
        about: Mapping[str, str],
    ) -> Iterator["Outputs"]:
        """Opens `ids.tif` and what else is wanted in a folder; all is whole when this is left.

        Args:
            about: further tags of each raster.
        """
        with ExitStack() as stack:
            outputs = cls(folder, grid, stack)
            maps.describe_classes(outputs._raster("ids", ["ids"]), classes, palette)
            if wanted.probabilities:
                maps.describe_shares(outputs._raster("shares", ["shares"] * len(classes)), classes)
            if wanted.confidence:
                names = ["confidence", "entropy"]
                maps.describe_shares(outputs._raster("confidence", names), names)
                outputs.estimate = Estimate(len(classes))
            for _, raster in outputs._rasters.values():
                raster.update_tags(**about)
            if wanted.vector:
                # their libraries take half a second, and most maps do without
                from crossearth.components.predict.polygon_files import PolygonFile
                from crossearth.components.predict.vectors import Regions

                vector = folder / f"polygons{wanted.vector_ending}"
                file = stack.enter_context(PolygonFile.open(vector, grid, classes))
                outputs.regions = Regions(
                    file,
                    grid.width,
                    outputs.tally.ground,
                    wanted.class_ids(classes),
                    wanted.min_area_m2,
                    wanted.simplify_px,
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
    for name, path in (("shares", probabilities_path(target)), ("confidence", confidence_path(target))):
        if (folder / f"{name}.tif").exists():
            maps.write_cog(folder / f"{name}.tif", folder / path.name, "AVERAGE")
            (folder / f"{name}.tif").unlink()
            maps.write_side_file(folder / path.name, grid.crs)
    write_qgis_style(folder / target.with_suffix(".qml").name, classes, palette)
    write_legend(folder / legend_path(target).name, classes, palette)


def probabilities_path(target: Path) -> Path:
    """Where the probabilities of a map lie."""
    return target.with_name(f"{target.stem}.probabilities.tif")


def confidence_path(target: Path) -> Path:
    """Where confidence and entropy of a map lie."""
    return target.with_name(f"{target.stem}.confidence.tif")


def legend_path(target: Path) -> Path:
    """Where the legend of a map lies."""
    return target.with_name(f"{target.stem}.legend.svg")


def beside(target: Path) -> list[Path]:
    """What may stand beside a map, but for its polygons."""
    rasters = [probabilities_path(target), confidence_path(target)]
    others = [target.with_suffix(ending) for ending in (".json", ".png", ".qml", ".html")]
    return [*others, legend_path(target), *rasters, *map(maps.side_file, (target, *rasters))]


def refuse_foreign_vector(vector: Path) -> None:
    """Refuses to replace a file that `PolygonFile` did not write."""
    from crossearth.components.predict.polygon_files import is_polygon_file

    if vector.exists() and not is_polygon_file(vector):
        raise InputError(
            "it was not written by crossearth predict, and would be replaced",
            where=vector,
            next_step="move it away, or choose another --vector",
        )


def publish_vector(folder: Path, vector: Path) -> None:
    """Moves the finished polygons to where they belong."""
    made = folder / f"polygons{vector.suffix}"
    with atomic_path(vector) as partial:
        shutil.copyfile(made, partial)
    made.unlink()


class CannotWriteError(InputError):
    """The disk takes no map."""
