"""Polygons of a map: those of the whole, whatever the rows come in; their areas, files and limits."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import Geod
from rasterio.crs import CRS
from rasterio.transform import Affine
from scipy import ndimage
from shapely.geometry import shape

from crossearth.components.predict import polygon_files, vectors
from crossearth.components.predict.maps import NODATA, PROBABILITY_STEP, Grid
from crossearth.components.predict.polygon_files import PolygonFile, is_polygon_file
from crossearth.components.predict.vectors import Polygons, Regions
from crossearth.data.raster.pixel_area import Ground

CLASSES = ["field", "road", "water"]
HEIGHT, WIDTH = 90, 70
UTM = Grid(WIDTH, HEIGHT, CRS.from_epsg(32633), Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000))
DEGREES = Grid(WIDTH, HEIGHT, CRS.from_epsg(4326), Affine(1e-4, 0, 10, 0, -1e-4, 50))
NOWHERE = Grid(WIDTH, HEIGHT, None, Affine.identity())
Ids = NDArray[np.uint8]


class Polygon(NamedTuple):
    """One of `Polygons`."""

    geometry: Any
    class_id: int
    area_m2: float
    confidence: float


class Collected(list[Polygon]):
    """A sink that keeps them."""

    def add(self, polygons: Polygons) -> None:
        columns = (polygons.outlines, polygons.class_ids, polygons.areas_m2, polygons.confidences)
        self.extend(map(Polygon, *(each.tolist() for each in columns)))


def map_of(seed: int, block: int) -> Ids:
    """A map of square blocks, with holes of nodata."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, (HEIGHT // block + 1, WIDTH // block + 1), np.uint8)
    ids = coarse.repeat(block, 0).repeat(block, 1)[:HEIGHT, :WIDTH].copy()
    ids[rng.random(ids.shape) < 0.03] = NODATA
    return ids


def regions_of(
    ids: Ids,
    sink: Any,
    grid: Grid = UTM,
    seed: int = 0,
    classes: tuple[int, ...] = (0, 1, 2),
    most_rows: int = 29,
    **options: Any,
) -> Regions:
    """The map given in bunches of rows of random heights."""
    height, width = ids.shape
    ground = Ground.of(grid.crs, grid.transform, width, height)
    regions = Regions(sink.add, width, ground, classes, **options)
    confidence = np.where(ids == NODATA, NODATA, 100 + ids).astype(np.uint8)
    top, rng = 0, np.random.default_rng(seed)
    while top < height:
        rows = slice(top, top + int(rng.integers(1, most_rows + 1)))
        regions.add(top, ids[rows], confidence[rows])
        top = min(height, rows.stop)
    regions.close()
    return regions


def refuse_other_than_gdals(found: Collected, ids: Ids) -> None:
    """GDAL's polygons of the map at once are the oracle."""
    theirs = rasterio.features.shapes(ids, ids != NODATA, connectivity=4)
    wanted = sorted((int(value), shapely.normalize(shape(outline)).wkt) for outline, value in theirs)
    assert sorted((each.class_id, shapely.normalize(each.geometry).wkt) for each in found) == wanted
    assert all(each.geometry.is_valid for each in found)


@pytest.mark.parametrize(("seed", "block"), [(0, 1), (1, 1), (2, 7), (3, 20)])
def test_polygons_are_those_of_the_whole_map(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "TRACED_CORNERS", 300)
    ids, found = map_of(seed, block), Collected()
    regions_of(ids, found, seed=seed)
    refuse_other_than_gdals(found, ids)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 15), st.integers(1, 15), st.integers(1, 4))
def test_polygons_of_any_map_are_gdals_wherever_it_is_cut(
    seed: int, height: int, width: int, most_rows: int
) -> None:
    # drawn px by px: regions that meet themselves in a corner are many
    ids = np.random.default_rng(seed).choice(np.array([0, 0, 1, NODATA], np.uint8), (height, width))
    found = Collected()
    regions_of(ids, found, NOWHERE, seed, most_rows=most_rows)
    refuse_other_than_gdals(found, ids)


@pytest.mark.parametrize("grid", [UTM, DEGREES], ids=["UTM", "degrees"])
def test_areas_are_those_on_the_ellipsoid(
    tmp_path: Path, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "ROWS_AT_A_TIME", 3)
    with PolygonFile.open(tmp_path / "a.gpkg", grid, CLASSES) as file:
        regions_of(map_of(0, 10), file, grid)
    table = geopandas.read_file(tmp_path / "a.gpkg")
    geod = Geod(ellps="WGS84")
    for polygon, area in zip(table.to_crs(4326).geometry, table.area_m2, strict=True):
        # sides are straight in the map's CRS
        assert area == pytest.approx(abs(geod.geometry_area_perimeter(polygon)[0]), rel=1e-5)


def test_confidence_is_the_mean_over_the_polygon() -> None:
    found = Collected()
    regions_of(map_of(0, 5), found)
    for each in found:
        assert each.confidence == pytest.approx((100 + each.class_id) * PROBABILITY_STEP)


def test_simplified_neighbours_keep_their_common_sides() -> None:
    fields = np.random.default_rng(4).random((3, HEIGHT, WIDTH))
    ids = ndimage.gaussian_filter(fields, (0, 4, 4)).argmax(0).astype(np.uint8)  # borders that bend
    plain, simple = Collected(), Collected()
    regions_of(ids, plain)
    regions_of(ids, simple, simplify_px=3)
    corners = [
        shapely.get_num_coordinates([each.geometry for each in found]).sum() for found in (plain, simple)
    ]
    assert corners[1] < 0.5 * corners[0]
    outlines = [each.geometry for each in simple]
    assert all(each.is_valid for each in outlines)
    assert shapely.union_all(outlines).area == pytest.approx(HEIGHT * WIDTH), "gaps between them"
    assert sum(each.area for each in outlines) == pytest.approx(HEIGHT * WIDTH), "they overlap"
    assert len(simple) == len(plain)
    assert sum(each.area_m2 for each in simple) == pytest.approx(sum(each.area_m2 for each in plain))
    one = Collected()
    regions_of(ids, one, simplify_px=3, classes=(1,))
    alike = [each.geometry for each in simple if each.class_id == 1]
    assert shapely.union_all([each.geometry for each in one]).equals(shapely.union_all(alike)), "others count"


def test_small_polygons_and_other_classes_are_left_out() -> None:
    ids, all_of_them, some = map_of(5, 6), Collected(), Collected()
    regions_of(ids, all_of_them)
    regions = regions_of(ids, some, classes=(1,), min_area_m2=20)
    roads = [each for each in all_of_them if each.class_id == 1]
    assert sorted(each.area_m2 for each in some) == pytest.approx(
        sorted(each.area_m2 for each in roads if each.area_m2 >= 20)
    )
    assert regions.left_out == len(roads) - len(some) > 0


class Counted(list[int]):
    """A sink that keeps the number of corners of what comes at a time."""

    def add(self, polygons: Polygons) -> None:
        self.append(int(shapely.get_num_coordinates(polygons.outlines).sum()))


def test_what_waits_and_what_is_traced_do_not_grow_with_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "TRACED_CORNERS", 200)
    traced, waiting = Counted(), []
    ids = np.random.default_rng(0).integers(0, 3, (600, WIDTH), np.uint8)
    regions = Regions(traced.add, WIDTH, None, (0, 1, 2))
    for top in range(0, len(ids), 10):
        regions.add(top, ids[top : top + 10], ids[top : top + 10])
        waiting.append(len(regions._shapes))
    assert max(waiting) < 2 * max(waiting[:6]), "of the whole map as of a tenth of it"
    assert max(traced) < 2 * 200 < sum(traced) / len(waiting), "a bunch has more"


def test_what_waits_is_bounded_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[::2, 1::2] = 1  # one region with a hole at every second place
    monkeypatch.setattr(vectors, "MOST_CORNERS", 3000)
    found = Collected()
    regions = regions_of(ids, found, classes=(0,))
    assert regions.cut > 0
    assert all(shapely.get_num_coordinates(each.geometry) < 10_000 for each in found)
    assert sum(each.geometry.area for each in found) == (ids == 0).sum()
    assert all(not one.geometry.overlaps(other.geometry) for one in found for other in found)


@pytest.fixture(params=[".gpkg", ".geojson", ".parquet"])
def ending(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def read(path: Path) -> geopandas.GeoDataFrame:
    return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)


def test_files_hold_all_polygons_in_their_place(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polygon_files, "BATCH", 7)
    ids, found = map_of(6, 9), Collected()
    regions_of(ids, found)
    path = tmp_path / f"a{ending}"
    with PolygonFile.open(path, UTM, CLASSES) as file:
        regions_of(ids, file)
    table = read(path)
    assert list(table.columns) == ["class", "class_id", "area_m2", "confidence", "geometry"]
    assert len(table) == len(found) > 14
    assert table.crs.to_epsg() == (4326 if ending == ".geojson" else 32633)
    assert [CLASSES[each] for each in table.class_id] == list(table["class"])
    placed = table.to_crs(32633).total_bounds
    assert placed == pytest.approx(
        [400_000, 5_000_000 - HEIGHT / 2, 400_000 + WIDTH / 2, 5_000_000], abs=1e-3
    )
    assert all(each.exterior.is_ccw for each in table.geometry), "GeoJSON's right-hand rule"
    assert is_polygon_file(path)


def test_a_map_without_polygons_has_a_file_without_polygons(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    with PolygonFile.open(path, UTM, CLASSES):
        pass
    assert len(read(path)) == 0


@pytest.mark.parametrize("kind", [".gpkg", ".parquet"])
def test_a_map_without_a_place_has_polygons_in_px(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a{kind}"
    with PolygonFile.open(path, NOWHERE, CLASSES) as file:
        regions_of(map_of(0, 10), file, NOWHERE)
    table = read(path)
    assert table.crs is None and table.area_m2.isna().all()
    assert list(table.total_bounds) == [0, 0, WIDTH, HEIGHT]


def test_a_disk_that_loses_polygons_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygon_files, "BATCH", 5)
    written = pyogrio.write_dataframe
    monkeypatch.setattr(
        polygon_files.pyogrio, "write_dataframe", lambda table, *args, **kw: written(table[:3], *args, **kw)
    )
    with (
        pytest.raises(OSError, match=r"a\.gpkg has \d+ polygons, written were \d+"),
        PolygonFile.open(tmp_path / "a.gpkg", UTM, CLASSES) as file,
    ):
        regions_of(map_of(0, 10), file)


def test_files_of_others_are_known_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": []}))
    (tmp_path / "a.gpkg").write_bytes(b"no database")
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    assert not any(map(is_polygon_file, tmp_path.iterdir()))
