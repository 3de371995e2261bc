"""Size and place of a raster's pixels: of stored scenes and of maps alike."""

from dataclasses import dataclass, replace

from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.io import DatasetReader
from rasterio.rpc import RPC
from rasterio.transform import Affine

from crossearth.data.raster.reading import fitted_size


@dataclass(frozen=True)
class Grid:
    """Where a raster's pixels lie.

    Attributes:
        width, height: size in px.
        crs, transform: where known, else None and identity.
        gcps, gcps_crs: ground control points, where there is no transform.
        rpcs: rational polynomial coefficients, where there is no transform.
    """

    width: int
    height: int
    crs: CRS | None
    transform: Affine
    gcps: tuple[GroundControlPoint, ...] = ()
    gcps_crs: CRS | None = None
    rpcs: RPC | None = None

    @classmethod
    def of(cls, source: DatasetReader) -> "Grid":
        size = (source.width, source.height)
        if not source.transform.is_identity:
            return cls(*size, source.crs, source.transform)
        gcps, gcps_crs = source.gcps
        return cls(*size, source.crs, source.transform, tuple(gcps), gcps_crs, source.rpcs)

    def part(self, rows: tuple[int, int], columns: tuple[int, int]) -> "Grid":
        """The grid of some of its rows and columns."""
        (top, bottom), (left, right) = rows, columns
        moved = self.transform @ Affine.translation(left, top)
        return Grid(right - left, bottom - top, self.crs, moved)

    def fitted(self, fit_px: int | None) -> "Grid":
        """The grid of this raster where its longer side is resampled to `fit_px`; None = as it is."""
        width, height = fitted_size(self.width, self.height, fit_px)
        shrink = Affine.scale(self.width / width, self.height / height)
        transform = self.transform if self.transform.is_identity else self.transform @ shrink
        return replace(self, width=width, height=height, transform=transform)

    def padded(self, least_px: int) -> "Grid":
        """This grid, both sides at least so long."""
        return replace(self, width=max(self.width, least_px), height=max(self.height, least_px))

    def notes(self, placed: bool) -> list[str]:
        """What a user should know of a map's place on the ground; `placed`: all of it lies on the Earth."""
        notes = []
        if self.gcps or self.rpcs:
            how, warp = ("ground control points", "-tps") if self.gcps else ("an RPC model", "-rpc")
            return [
                f"the scene is placed by {how} only: the map keeps that, areas are not known; "
                f"gdalwarp {warp} MAP.tif PLACED.tif lays it on the ground"
            ]
        if self.crs is None:
            notes.append("the scene has no CRS: the map has none either, and areas are not known")
        elif not placed:
            notes.append("the CRS and the transform give no place on the Earth: areas are not known")
        if self.transform.is_identity:
            notes.append("the scene has no geotransform: the map is in pixels")
        elif not self.transform.is_rectilinear:
            notes.append("the grid is rotated or sheared: the map keeps the scene's transform")
        return notes
