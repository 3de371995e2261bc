"""What rasterio's private modules must go on doing for data/raster/gdal.py."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.errors import RasterioError
from rasterio.warp import transform

from crossearth.data.raster.gdal import GdalError, hearing


def test_an_error_of_gdal_is_none_of_rasterios_own() -> None:
    assert not issubclass(GdalError, RasterioError)
    with pytest.raises(GdalError, match="Cannot find coordinate operations"):
        transform('LOCAL_CS["x",UNIT["metre",1]]', "EPSG:4326", [0.0], [0.0])


def test_what_gdal_says_is_heard_and_a_silent_listener_keeps_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.tif"
    profile = {"driver": "GTiff", "width": 64, "height": 64, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.ones((1, 64, 64), np.uint8))
    path.write_bytes(path.read_bytes()[:-100])

    def read() -> None:
        with pytest.raises(RasterioError), rasterio.open(path) as file:
            file.read()

    said: list[str] = []
    with hearing(said, silent=True):
        read()
    assert any('Bogus "StripByteCounts"' in words for words in said), "from rasterio._env"
    assert any("IReadBlock failed" in words for words in said), "from rasterio._err"
    assert not caplog.records
    read()
    assert [record.levelname for record in caplog.records][:1] == ["WARNING"]
