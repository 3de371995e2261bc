"""Scenes that lie on servers, and STAC items: which raster an address or an item stands for."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urljoin, urlsplit, urlunsplit
from urllib.request import urlopen
from xml.etree import ElementTree

from rasterio.dtypes import dtype_rev, typename_fwd
from rasterio.transform import array_bounds

from crossearth.data.common.config import listed, nearest
from crossearth.data.common.errors import InputError
from crossearth.data.raster.reader import Address, Raster, UnreachableError, open_raster, refused

SCHEMES = ("http", "https", "s3")
MOST_BYTES = 16 << 20  # of a STAC item
TIMEOUT_S = 60
AS_GEOTIFF = "GTIFF_DIR:1:"  # what has this prefix GDAL opens as nothing else: a VRT could point anywhere
ONE_GRID = 1e-3  # px by which the borders of an item's bands may lie apart


@dataclass(frozen=True)
class Band:
    """One band of a STAC item: where its file is, and which of the file's it is."""

    href: str
    index: int


@dataclass(frozen=True)
class Pending:
    """A scene whose raster is found when its turn comes: one that fails does not keep the others waiting.

    Attributes:
        where: how the user named it, an address without its query.
        find: gives the raster, or raises an InputError.
    """

    where: str | Path
    find: Callable[[], Path | Address] = field(compare=False)

    def __str__(self) -> str:
        return str(self.where)

    @property
    def stem(self) -> str:
        """Its name without suffix."""
        return PurePosixPath(self.where).stem


Source = Path | Address | Pending


def raster_of(source: Source) -> Path | Address:
    """The raster of a scene.

    Raises:
        InputError: it cannot be found.
    """
    return source.find() if isinstance(source, Pending) else source


def is_remote(scene: object) -> bool:
    """Whether a scene is an address of a server."""
    return isinstance(scene, str) and "://" in scene


def address_of(url: str) -> Address:
    """The raster at an address.

    Raises:
        InputError: an address of another kind than https:// and s3://.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc or not parts.path.strip("/"):
        raise InputError(
            "not an address of a scene", where=url, expected="https://server/scene.tif, s3://bucket/scene.tif"
        )
    if parts.scheme == "s3":
        return Address(url, f"/vsis3/{parts.netloc}{parts.path}")
    return Address(_plain(url), f"/vsicurl/{url}")


def is_item(scene: str | Path) -> bool:
    """Whether a scene is named as a STAC item is."""
    path = urlsplit(scene).path if isinstance(scene, str) else scene.name
    return path.lower().endswith((".json", ".geojson"))


def pending_item(item: str | Path, names: Sequence[str] | None) -> Pending:
    """The scene of a STAC item; see `item_scene`."""
    return Pending(_plain(item) if isinstance(item, str) else item, partial(item_scene, item, names))


def item_scene(item: str | Path, names: Sequence[str] | None) -> Address | Path:
    """The raster that a STAC item describes.

    Args:
        names: of three bands in the network's order, as the item has them: of an asset, of a band or its
            common name, such as red. None = the item has one image of several bands.

    Raises:
        InputError: not an item, no such bands, bands of several grids or kinds, a file outside its folder.
    """
    where = _plain(str(item))
    content = _read(item, where)
    assets = content.get("assets")
    if content.get("type") != "Feature" or not isinstance(assets, dict):
        raise InputError("not a STAC item", where=where, expected='a JSON object with "assets"')
    if names is None:
        images = sorted({band.href for band in _bands(assets).values() if _is_image(assets, band.href)})
        if len(images) != 1:
            raise InputError(
                f"an item of {len(images)} images",
                where=where,
                expected=f"the names of three of its bands: {listed(sorted(_bands(assets)))}",
                next_step="choose them with --bands, for example --bands red,green,blue",
            )
        return _address(item, images[0], where)
    found = _bands(assets)
    for name in names:
        if name not in found:
            raise InputError(f"no band {name!r}", where=where, expected=nearest(name, found))
    return _stacked(item, {name: found[name] for name in names}, names, where)


def _read(item: str | Path, where: str) -> dict[str, Any]:
    """The JSON object of an item."""
    try:
        if isinstance(item, Path):
            text = item.read_bytes()
        elif urlsplit(item).scheme == "s3":
            # boto3 comes with an extra that who only maps does not need
            from crossearth.data.tiles.store import read_object

            text = read_object(item, MOST_BYTES)
        else:
            address_of(item)  # refuses what is not of a server
            with urlopen(item, timeout=TIMEOUT_S) as answer:  # noqa: S310
                text = answer.read(MOST_BYTES + 1)
        content = json.loads(text) if len(text) <= MOST_BYTES else None
    except HTTPError as error:
        raise refused(f"HTTP response code: {error.code}", where) from error
    except (OSError, HTTPException) as error:
        if isinstance(item, Path):
            raise
        raise UnreachableError(
            f"the server does not answer: {error}", where=where, next_step="look at the address"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}", where=where, expected="a STAC item") from error
    if not isinstance(content, dict):
        raise InputError("not a STAC item", where=where, expected='a JSON object with "assets"')
    return content


def _bands(assets: Mapping[str, Any]) -> dict[str, Band]:
    """Bands of an item by all of their names; what several have names none of them."""
    named: dict[str, set[Band]] = {}
    for key, asset in assets.items():
        if not isinstance(asset, dict) or not isinstance(asset.get("href"), str):
            continue
        bands = asset.get("bands") or asset.get("eo:bands") or []
        bands = [band if isinstance(band, dict) else {} for band in bands]
        for index, band in enumerate(bands or [{}], 1):
            names = {band.get("name"), band.get("common_name"), band.get("eo:common_name")}
            if len(bands) <= 1:
                names.add(key)
            for name in names:
                if isinstance(name, str) and (bands or "data" in asset.get("roles", ())):
                    named.setdefault(name, set()).add(Band(asset["href"], index))
    # an asset's own key says which one is meant where a preview names the same bands
    own = {
        name: {band for band in found if name in assets and assets[name]["href"] == band.href}
        for name, found in named.items()
    }
    meant = {name: own[name] or found for name, found in named.items()}
    return {name: next(iter(found)) for name, found in meant.items() if len(found) == 1}


def _is_image(assets: Mapping[str, Any], href: str) -> bool:
    asset = next(each for each in assets.values() if isinstance(each, dict) and each.get("href") == href)
    return len(asset.get("bands") or asset.get("eo:bands") or []) >= 3


def _address(item: str | Path, href: str, where: str) -> Address | Path:
    """An asset's raster: of a server, or a file below the item's own folder."""
    if isinstance(item, str):
        href = urljoin(item, href) if urlsplit(item).scheme != "s3" or "://" in href else _beside(item, href)
    if "://" in href:
        return address_of(href)
    root = Path(item).parent.resolve()
    path = (root / href).resolve()
    if not path.is_relative_to(root):
        raise InputError(
            f"an item of a file outside its folder: {href}",
            where=where,
            expected="https://, s3://, or files beside the item",
        )
    return path


def _beside(item: str, href: str) -> str:
    """urljoin knows no s3://."""
    parts = urlsplit(item)
    joined = urljoin(f"https://{parts.netloc}{parts.path}", href)
    return f"s3://{joined.removeprefix('https://')}"


def _stacked(item: str | Path, bands: Mapping[str, Band], names: Sequence[str], where: str) -> Address:
    """A VRT of the three bands on the finest one's grid; each file is opened as a GeoTIFF or not at all."""
    vrt = ElementTree.Element("VRTDataset")
    found = {}
    for name, band in bands.items():
        address = _address(item, band.href, where)
        path = f"{AS_GEOTIFF}{address if isinstance(address, Path) else address.gdal}"
        with open_raster(Address(str(address), path, ("GTiff",))) as raster:
            found[name] = _source(raster, band, path)
    sources = [found[name] for name in names]
    finest = max(sources, key=lambda source: source["width"] * source["height"])
    for source in sources:
        apart = max(abs(a - b) for a, b in zip(source["bounds"], finest["bounds"], strict=True))
        px = min(abs(finest["transform"].a), abs(finest["transform"].e))
        if source["crs"] != finest["crs"] or apart > ONE_GRID * px or source["type"] != finest["type"]:
            raise InputError(
                "bands of several grids or types",
                where=where,
                expected="three of one place, CRS and type",
                next_step="gdalbuildvrt -separate makes a scene of files on this machine",
            )
    vrt.set("rasterXSize", str(finest["width"]))
    vrt.set("rasterYSize", str(finest["height"]))
    if finest["crs"]:
        ElementTree.SubElement(vrt, "SRS", dataAxisToSRSAxisMapping="1,2").text = finest["crs"].to_wkt()
    ElementTree.SubElement(vrt, "GeoTransform").text = ",".join(
        repr(value) for value in finest["transform"].to_gdal()
    )
    for number, source in enumerate(sources, 1):
        _add_band(vrt, number, source, finest)
    return Address(where, ElementTree.tostring(vrt, encoding="unicode"), ("VRT",), tuple(names))


def _source(raster: Raster, band: Band, path: str) -> dict[str, Any]:
    dataset = raster.dataset
    if band.index > dataset.count:
        raise InputError(f"{dataset.count} bands, the item says {band.index} or more", where=raster.where)
    return {
        "path": path,
        "band": band.index,
        "width": dataset.width,
        "height": dataset.height,
        "crs": dataset.crs,
        "transform": dataset.transform,
        "bounds": array_bounds(dataset.height, dataset.width, dataset.transform),
        "type": typename_fwd[dtype_rev[dataset.dtypes[band.index - 1]]],
        "nodata": dataset.nodatavals[band.index - 1],
        "scale": dataset.scales[band.index - 1],
        "offset": dataset.offsets[band.index - 1],
    }


def _add_band(
    vrt: ElementTree.Element, number: int, source: Mapping[str, Any], finest: Mapping[str, Any]
) -> None:
    band = ElementTree.SubElement(vrt, "VRTRasterBand", dataType=source["type"], band=str(number))
    if source["nodata"] is not None:
        ElementTree.SubElement(band, "NoDataValue").text = repr(float(source["nodata"]))
    ElementTree.SubElement(band, "Offset").text = repr(float(source["offset"]))
    ElementTree.SubElement(band, "Scale").text = repr(float(source["scale"]))
    kind = "SimpleSource" if source["nodata"] is None else "ComplexSource"
    part = ElementTree.SubElement(band, kind, resampling="bilinear")
    ElementTree.SubElement(part, "SourceFilename", relativeToVRT="0").text = source["path"]
    ElementTree.SubElement(part, "SourceBand").text = str(source["band"])
    for name, of in (("SrcRect", source), ("DstRect", finest)):
        ElementTree.SubElement(
            part, name, xOff="0", yOff="0", xSize=str(of["width"]), ySize=str(of["height"])
        )
    if source["nodata"] is not None:
        ElementTree.SubElement(part, "NODATA").text = repr(float(source["nodata"]))


def _plain(url: str) -> str:
    """An address without its query, which may hold a key."""
    return urlunsplit(urlsplit(url)._replace(query="", fragment="")) if "://" in url else url
