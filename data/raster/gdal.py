"""The only reach into rasterio's private modules: errors of GDAL that rasterio lets through untranslated."""

from rasterio._err import CPLE_BaseError as GdalError

__all__ = ["GdalError"]
