"""What a domain is, and its pixels."""

import warnings

# rasterio's NotGeoreferencedWarning, without importing rasterio: much of the imagery is PNG and JPEG that has
# no place on the ground, and that is no news
warnings.filterwarnings("ignore", message="Dataset has no geotransform")
