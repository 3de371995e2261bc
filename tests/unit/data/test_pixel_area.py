"""Sizes of pixels on the ground, held against what is known of the projections and of the Earth."""

import math

import pytest
from rasterio.crs import CRS
from rasterio.transform import Affine

from crossearth.data.raster.pixel_area import Ground, pixel_side_m

EARTH_M2 = 510_065_621_724_089  # area of WGS 84's ellipsoid
A, E2 = 6_378_137.0, 0.006_694_379_990_14
HALF_WORLD_M = A * math.pi
ROTATED_POLE = CRS.from_string("+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=40 +lon_0=10")


def square_degree(latitude: float) -> float:
    """Area per square degree, by the ellipsoid's radii of curvature."""
    sine = math.sin(math.radians(latitude))
    radii = A * (1 - E2) / (1 - E2 * sine**2) ** 1.5 * A / math.sqrt(1 - E2 * sine**2)
    return radii * math.cos(math.radians(latitude)) * math.radians(1) ** 2


def mercator(latitude: float) -> float:
    """Northing of a latitude in web Mercator."""
    return A * math.asinh(math.tan(math.radians(latitude)))


def around(x: float, y: float, width: float = 1, height: float = -1) -> Affine:
    """A raster of 10 px a side whose middle lies there."""
    return Affine(width, 0, x - 5 * width, 0, height, y - 5 * height)


@pytest.mark.parametrize(
    ("crs", "affine", "area_m2"),
    [
        ("EPSG:6933", around(3e6, 5e6), 1),
        ("EPSG:32633", around(5e5, 5e6), 0.9996**-2),
        ("EPSG:2263", around(984250, 2e5), 0.3048006096012192**2),
        ("EPSG:3413", around(0, 0), 0.97**-2),
        ("EPSG:4326", around(10, 60, 1e-5, -2e-5), 2e-10 * square_degree(60)),
        ("EPSG:4326", around(180, -60, 1e-5, 1e-5), 1e-10 * square_degree(60)),
        ("EPSG:4807", around(10, 60, 1e-5, -1e-5), 0.81e-10 * square_degree(54)),
        (
            "EPSG:3857",
            around(1e6, mercator(60)),
            square_degree(60) / math.radians(1) ** 2 / A**2 * math.cos(math.radians(60)),
        ),
        # its equator runs through 50 degrees north
        (ROTATED_POLE, around(0, 0, 1e-5, -1e-5), 1e-10 * square_degree(50) / math.cos(math.radians(50))),
        ("EPSG:32633", around(5e5, 5e6, 4) @ Affine.rotation(30), 4 * 0.9996**-2),
    ],
    ids=[
        "6933",
        "UTM",
        "feet",
        "pole",
        "anisotropic",
        "antimeridian, south up",
        "grads",
        "3857",
        "rotated pole",
        "turned",
    ],
)
def test_a_pixel_has_the_area_that_the_ellipsoid_gives_it(
    crs: str | CRS, affine: Affine, area_m2: float
) -> None:
    crs = CRS.from_user_input(crs)
    side = pixel_side_m(crs, affine, 10, 10)
    assert side is not None
    assert side**2 == pytest.approx(area_m2, rel=3e-4)
    ground = Ground.of(crs, affine, 10, 10)
    assert ground is not None
    assert ground.areas_m2(5)[5] == pytest.approx(side**2, rel=1e-5)


@pytest.mark.parametrize(
    ("crs", "affine", "share"),
    [
        ("EPSG:4326", Affine(2, 0, -180, 0, -2, 90), 1),
        ("EPSG:4326", Affine(2, 0, 0, 0, 2, -90), 1),
        # the atlas ends at 85.05 degrees
        (
            "EPSG:3857",
            Affine(HALF_WORLD_M / 90, 0, -HALF_WORLD_M, 0, -HALF_WORLD_M / 45, HALF_WORLD_M),
            0.99626,
        ),
        ("EPSG:6933", Affine(17367530.45 / 90, 0, -17367530.45, 0, -7342230.13 / 45, 7342230.13), 1),
    ],
)
def test_the_pixels_of_the_world_are_as_large_as_the_earth(crs: str, affine: Affine, share: float) -> None:
    ground = Ground.of(CRS.from_string(crs), affine, 180, 90)
    assert ground is not None
    whole = sum(ground.areas_m2(row).sum() for row in range(90))
    assert whole == pytest.approx(EARTH_M2 * share, rel=2e-4)


@pytest.mark.parametrize(
    ("crs", "affine"),
    [
        (None, around(5e5, 5e6)),
        (CRS.from_epsg(32633), Affine.identity()),
        (CRS.from_wkt('LOCAL_CS["plan",UNIT["metre",1]]'), around(5e5, 5e6)),
        (CRS.from_wkt('GEOCCS["x",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257]]]'), around(5e5, 5e6)),
        (CRS.from_string("IAU_2015:30100"), around(10, 60, 1e-5, -1e-5)),  # on the Moon
        (CRS.from_epsg(4326), around(5e5, 5e6)),  # metres, said to be degrees
        (CRS.from_string("+proj=geos +h=35785831"), around(0, 0, 1.1e6, -1.1e6)),  # corners in space
    ],
    ids=["no CRS", "no transform", "plan", "geocentric", "Moon", "no degrees", "space"],
)
def test_what_has_no_place_on_the_earth_has_no_area(crs: CRS | None, affine: Affine) -> None:
    assert Ground.of(crs, affine, 10, 10) is None
