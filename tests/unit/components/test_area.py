"""Areas of interest: boxes and polygons in any CRS, and what is refused of them."""

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform_bounds

from crossearth.components.predict.area import area_of, box, polygons_of
from crossearth.components.predict.config import PredictConfig
from crossearth.components.predict.maps import Grid
from crossearth.components.predict.sliding import plan
from crossearth.components.predict.step import predict
from crossearth.components.predict.strips import open_scene, open_view
from crossearth.data.common.errors import InputError
from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.weights.checkpoint import save

UTM = CRS.from_epsg(32633)
GRID = Grid(400, 300, UTM, Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000))


def scene_file(folder: Path) -> Path:
    path, pixels = folder / "scene.tif", np.random.default_rng(0).integers(0, 256, (3, 300, 400), np.uint8)
    size = {"width": 400, "height": 300, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", crs=UTM, transform=GRID.transform, **size) as file:
        file.write(pixels)
    return path


def test_a_box_is_in_degrees_unless_its_crs_is_named() -> None:
    bounds = (400_050.0, 4_999_900.0, 400_100.0, 4_999_950.0)
    named = area_of(box(bounds, "EPSG:32633"), GRID, "scene")
    assert (named.rows, named.columns) == ((100, 200), (100, 200))
    assert named.mask((0, 100), (0, 100)).all()
    degrees = area_of(box(transform_bounds(UTM, "EPSG:4326", *bounds), "EPSG:4326"), GRID, "scene")
    # the degrees around a square of UTM reach a little beyond it
    assert [*degrees.rows, *degrees.columns] == pytest.approx([100, 200, 100, 200], abs=4)


def test_polygons_of_any_crs_are_laid_on_the_scene(tmp_path: Path) -> None:
    triangle = shapely.Polygon([(400_010, 4_999_990), (400_110, 4_999_990), (400_010, 4_999_890)])
    own = geopandas.GeoDataFrame(geometry=[triangle], crs=UTM)
    for name in ("own.gpkg", "other.geojson", "other.parquet"):
        placed = own if name == "own.gpkg" else own.to_crs("EPSG:4326")
        write = placed.to_parquet if name.endswith("parquet") else placed.to_file
        write(tmp_path / name)
        area = area_of(polygons_of(tmp_path / name), GRID, "scene")
        mask = area.mask((0, area.rows[1] - area.rows[0]), (0, area.columns[1] - area.columns[0]))
        assert mask.mean() == pytest.approx(0.5, abs=0.01)
        assert mask[1:5, 1:5].all() and not mask[-5:, -5:].any()


@pytest.mark.parametrize("gsd", ["native", 1.1])
def test_a_map_of_an_area_is_that_part_of_the_grid_and_nodata_around(gsd: object, tmp_path: Path) -> None:
    hole = shapely.box(400_060, 4_999_900, 400_120, 4_999_960) - shapely.box(
        400_080, 4_999_920, 400_090, 4_999_930
    )
    geopandas.GeoDataFrame(geometry=[hole], crs=UTM).to_crs("EPSG:3857").to_file(tmp_path / "aoi.gpkg")
    model = save(
        crossearth_tiny(2, 64).eval(),
        tmp_path / "model",
        {"classes": ["a", "b"], "palette": ["#000000", "#ffffff"], "provenance": "own"},
    )
    config = PredictConfig(precision="float32", device="cpu", aoi=tmp_path / "aoi.gpkg", gsd=gsd)  # type: ignore[arg-type]
    [out] = predict([scene_file(tmp_path)], model, tmp_path / "map.tif", config)
    with rasterio.open(out) as file:
        ids, place = file.read(1), file.transform
    top, left = round((5_000_000 - place.f) / 0.5), round((place.c - 400_000) / 0.5)
    assert (top, left) == (pytest.approx(80, abs=1), pytest.approx(120, abs=1))
    inside = np.zeros((300, 400), bool)
    inside[80:200, 120:240], inside[140:160, 160:180] = True, False
    wanted = inside[top : top + ids.shape[0], left : left + ids.shape[1]]
    assert np.mean((ids != 255) == wanted) > 0.995 and abs(ids.shape[0] - 120) <= 2


def test_the_network_sees_what_lies_around_an_area(tmp_path: Path) -> None:
    path = scene_file(tmp_path)
    scene = open_scene(path, asked=box((400_050, 4_999_900, 400_100, 4_999_950), "EPSG:32633"))
    with rasterio.open(path) as file, open_view(scene) as view:
        image, valid = view.look((-10, 110), (-10, 110))
        assert np.array_equal(image, file.read()[:, 90:210, 90:210])
    assert valid[10:-10, 10:-10].all() and not valid[:9].any()
    how = plan(scene, crossearth_tiny(2, 64).config, 1)
    assert how.windows.tops[0] == -10


def refusal(tmp_path: Path, name: str, frame: geopandas.GeoDataFrame | str) -> str:
    path = tmp_path / name
    path.write_text(frame) if isinstance(frame, str) else frame.to_file(path)
    with pytest.raises(InputError) as caught:
        area_of(polygons_of(path), GRID, "scene")
    return str(caught.value)


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_what_is_no_area_is_refused(tmp_path: Path) -> None:
    square = shapely.box(400_010, 4_999_900, 400_100, 4_999_990)
    assert "not a vector file" in refusal(tmp_path, "a.gpkg", "no file")
    assert "no polygon" in refusal(
        tmp_path, "b.gpkg", geopandas.GeoDataFrame(geometry=[square.centroid], crs=UTM)
    )
    assert "without a CRS" in refusal(tmp_path, "c.gpkg", geopandas.GeoDataFrame(geometry=[square]))
    away = geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:4326")
    assert "does not meet the scene" in refusal(tmp_path, "d.gpkg", away)
    assert "13.72" in refusal(tmp_path, "e.gpkg", away), "the scene's own extent is said"
    with pytest.raises(InputError, match="no such file"):
        polygons_of(tmp_path / "absent.gpkg")


@pytest.mark.parametrize(
    ("bounds", "crs", "words"),
    [
        ((400_050, 4_999_900, 400_100, 4_999_950), "EPSG:4326", r"no degrees .*\n.*\n.*EPSG:32633"),
        ((2, 1, 1, 2), "EPSG:4326", "a box without inside"),
        ((1, 1, 2, 2), "EPSG:99999999", "not a CRS"),
    ],
)
def test_what_is_no_box_is_refused(bounds: tuple[float, ...], crs: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        box(bounds, crs)


@pytest.mark.parametrize(("crs", "transform"), [(None, GRID.transform), (UTM, Affine.identity())])
def test_a_scene_without_a_place_has_no_area(crs: CRS | None, transform: Affine) -> None:
    with pytest.raises(InputError, match="the scene has no"):
        area_of(box((13, 45, 14, 46), "EPSG:4326"), Grid(10, 10, crs, transform), "scene")
