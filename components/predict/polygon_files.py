"""Polygons of a map on disk: GeoPackage, GeoJSON or GeoParquet, written a few thousand at a time."""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError

from crossearth.components.predict.config import LONLAT
from crossearth.components.predict.maps import Grid
from crossearth.components.predict.vectors import Polygons

PARQUET, GEOJSON = ".parquet", ".geojson"
LAYER = "polygons"
BATCH = 10_000
COLUMNS = ("class", "class_id", "area_m2", "confidence")


class PolygonFile:
    """A file of polygons in the map's CRS (GeoJSON: longitude and latitude), a column per fact.

    Columns: `class` (name), `class_id`, `area_m2` (none where the map has no place on the Earth),
    `confidence` (0..1), geometry.
    """

    def __init__(self, path: Path, grid: Grid, classes: Sequence[str]) -> None:
        self.path, self._grid, self._classes = path, grid, list(classes)
        self._kept: list[Polygons] = []
        self._num = 0
        self._parquet: pq.ParquetWriter | None = None

    @classmethod
    @contextmanager
    def open(cls, path: Path, grid: Grid, classes: Sequence[str]) -> Iterator["PolygonFile"]:
        """Its ending says the format; the file is whole when this is left without an error.

        Raises:
            OSError: the disk takes no more.
        """
        file = cls(path, grid, classes)
        try:
            yield file
            if any(map(len, file._kept)) or not file._num:  # a map without polygons has a file, too
                file._write()
            if path.suffix == GEOJSON:
                file._write_geojson()
        except (DataSourceError, DataLayerError, pa.ArrowException) as error:
            raise OSError(str(error)) from error
        finally:
            if file._parquet is not None:
                file._parquet.close()
        file._check()

    def add(self, polygons: Polygons) -> None:
        """Takes polygons in px of the map."""
        self._kept.append(polygons)
        if sum(map(len, self._kept)) >= BATCH:
            self._write()

    def _write(self) -> None:
        table = self._table(self._kept)
        self._kept = []
        self._num += len(table)
        if self.path.suffix in (PARQUET, GEOJSON):
            self._write_parquet(table)
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'crs' was not provided")  # polygons in px have none
            pyogrio.write_dataframe(
                table,
                self.path,
                layer=LAYER,
                driver="GPKG",
                geometry_type="Polygon",
                append=self.path.exists(),
            )

    def _table(self, polygons: Sequence[Polygons]) -> geopandas.GeoDataFrame:
        def joined(values: Sequence[Any], dtype: Any) -> Any:
            return np.concatenate([np.empty(0, dtype), *values])

        class_ids = joined([each.class_ids for each in polygons], np.uint8)
        outlines = joined([each.outlines for each in polygons], object)
        columns = {
            "class": np.array(self._classes, object)[class_ids],
            "class_id": class_ids.astype(np.int32),
            "area_m2": joined([each.areas_m2 for each in polygons], float),
            "confidence": joined([each.confidences for each in polygons], float),
        }
        a, b, c, d, e, f = self._grid.transform[:6]

        def place(xy: Any) -> Any:
            return np.stack([a * xy[:, 0] + b * xy[:, 1] + c, d * xy[:, 0] + e * xy[:, 1] + f], axis=1)

        crs = None if self._grid.crs is None else self._grid.crs.to_wkt(version="WKT2_2019")
        # the outer ring counter-clockwise, as GeoJSON wants it
        placed = shapely.orient_polygons(shapely.transform(outlines, place))
        table = geopandas.GeoDataFrame(columns, geometry=placed, crs=crs)
        return table.to_crs(LONLAT) if self.path.suffix == GEOJSON else table

    def _write_parquet(self, table: geopandas.GeoDataFrame) -> None:
        crs = {} if table.crs is None else {"crs": table.crs.to_json_dict()}
        column = {"encoding": "WKB", "geometry_types": ["Polygon"], **crs}
        if table.crs is None:
            column["crs"] = None  # unknown; left out it would mean longitude and latitude
        geo = {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": column}}
        plain = pa.table(table.to_arrow(index=False, geometry_encoding="WKB"))
        # of no rows the type of `class` is not known
        types = {"class": pa.large_string()}
        schema = pa.schema(
            [pa.field(each.name, types.get(each.name, each.type)) for each in plain.schema],
            {"geo": json.dumps(geo)},
        )
        if self._parquet is None:
            self._parquet = pq.ParquetWriter(self.path.with_suffix(PARQUET), schema, compression="zstd")
        self._parquet.write_table(plain.cast(schema))

    def _write_geojson(self) -> None:
        """Of the rows in Parquet, at once: to append to GeoJSON, GDAL reads all that is there."""
        if self._parquet is not None:
            self._parquet.close()
        spooled = self.path.with_suffix(PARQUET)
        with pq.ParquetFile(spooled) as rows:
            pyogrio.write_arrow(
                pa.RecordBatchReader.from_batches(rows.schema_arrow, rows.iter_batches(BATCH)),
                self.path,
                layer=LAYER,
                driver="GeoJSON",
                geometry_name="geometry",
                geometry_type="Polygon",
                crs=LONLAT,
            )
        spooled.unlink()

    def _check(self) -> None:
        """A full disk may take the last polygons without a word."""
        if self.path.suffix == PARQUET:
            num = pq.read_metadata(self.path).num_rows
        else:
            num = pyogrio.read_info(self.path, force_feature_count=True)["features"]
        if num != self._num:
            raise OSError(f"{self.path.name} has {num} polygons, written were {self._num}")


def is_polygon_file(path: Path) -> bool:
    """Whether a file has the columns of a `PolygonFile`."""
    try:
        if path.suffix == PARQUET:
            names = pq.read_schema(path).names
        else:
            names = list(pyogrio.read_info(path)["fields"])
    except (DataSourceError, DataLayerError, pa.ArrowException, OSError):
        return False
    return set(COLUMNS) <= set(names)
