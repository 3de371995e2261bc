"""What a user may choose when scenes are mapped."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from crossearth.data.catalog.domains import known_entry
from crossearth.data.common.config import Rising, checked
from crossearth.data.common.errors import InputError
from crossearth.data.raster.grid import Grid
from crossearth.model.inference import Tta

LONLAT = "EPSG:4326"  # of a box, and what GeoJSON is in, whatever the map is in (RFC 7946)
FORMATS = (".gpkg", ".geojson", ".parquet")  # of polygons

# of a file: numbers, or names
Bands = Annotated[tuple[PositiveInt, ...] | tuple[str, ...], Field(min_length=3, max_length=3)]
Gsd = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto", "native"]
Precision = Literal["auto", "float32", "bfloat16"]


@checked
class PredictConfig:
    """How scenes are mapped.

    Attributes:
        bands: 1-based band numbers, or names (of the file's bands or of a STAC item's), in the order in which
            the network was trained (red, green, blue, or infrared, red, green); None = those of the model's
            training files. A model that does not know them takes the first three that are not alpha.
        value_range: values that become 0 and 255, after the scene's scale and offset tags; None = those of
            the model's training files. A model that does not know them takes 8-bit scenes as they are, and of
            others the 2nd and 98th percentile of the chosen bands together, estimated per scene.
        precision: of the network; "auto" = bfloat16 on GPUs and on CPUs with AMX, else float32.
        device: torch device; "auto" = the GPU where there is one.
        batch_size: windows per pass of the network; None = so many as keep the device busy. The map's classes
            depend on it in the last digits of their scores only.
        gsd: metres per px that the network is to see; "auto" = the training's, where it and the scene's are
            known and differ; "native" = the scene's px as they are.
        tta: "d4" = scores are the mean over the 8 flips and quarter turns of each window.
        bbox: west, south, east, north of the area to map, in `bbox_crs`.
        aoi: vector file whose polygons are mapped.
        jobs: processes that share a scene; on GPUs they take the GPUs in turn.
        probabilities: also write `<map>.probabilities.tif`, one band per class.
        confidence: also write `<map>.confidence.tif`: the probability of the class that is named, and the
            entropy as a share of the most that there can be; and tell each class's expected area and the
            interval in which it lies, see `estimate`.
        quick_look: also write `<map>.html`, the map over the image.
        vector: also write polygons to this file, GeoPackage, GeoJSON or GeoParquet by its ending; an ending
            alone (".gpkg") puts them beside each map.
        min_area_m2: polygons below it are left out.
        simplify_px: by how many px, about, their outlines may be straightened; neighbours keep common sides.
        classes: names of the classes that become polygons; None = all.
        backbone: file of the model's shared backbone where it was moved.
    """

    bands: Bands | None = None
    value_range: Rising | None = None
    precision: Precision = "auto"
    device: str = "auto"
    batch_size: PositiveInt | None = None
    gsd: Gsd = "auto"
    tta: Tta = "none"
    bbox: tuple[float, float, float, float] | None = None
    bbox_crs: str = LONLAT
    aoi: Path | None = None
    jobs: PositiveInt = 1
    probabilities: bool = False
    confidence: bool = False
    quick_look: bool = False
    vector: Path | None = None
    min_area_m2: float = 0
    simplify_px: float = 0
    classes: tuple[str, ...] | None = None
    backbone: Path | None = None

    def __post_init__(self) -> None:
        if self.bbox is not None and self.aoi is not None:
            raise InputError("bbox and aoi", expected="one of them: they are two ways to name one area")
        numbers = {"--min-area": self.min_area_m2, "--simplify": self.simplify_px}
        for option, value in numbers.items():
            if not 0 <= value < math.inf:
                raise InputError(f"{option} {value:g}", expected="a number of at least 0")
        given = [option for option, value in {**numbers, "--classes": self.classes}.items() if value]
        if self.vector is None and given:
            raise InputError(
                f"{given[0]} is about polygons, and none are asked for",
                next_step="name their file: --vector MAP.gpkg",
            )
        if self.vector is not None and self.vector_ending not in FORMATS:
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
            known_entry(dict.fromkeys(classes), name, "class", "--classes")
        return [index for index, name in enumerate(classes) if self.classes is None or name in self.classes]

    def refuse_unplaced(self, grid: Grid, scene: object) -> None:
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


DEFAULTS = PredictConfig()
