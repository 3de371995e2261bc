"""Which files are images and which belong to one, by their names: in folders, archives and stores alike."""

import json
import logging
import re
import shlex
from collections.abc import Callable, Sequence, Set
from pathlib import Path, PurePosixPath

from crossearth.data.common.config import some
from crossearth.data.common.errors import InputError

log = logging.getLogger(__name__)

# each whole in one file; of the others some are two files, and a VRT may point anywhere
LONE_SUFFIXES = (
    *(".tif", ".tiff", ".jp2", ".j2k", ".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"),
    *(".pgm", ".ppm", ".pnm"),
)
RASTER_SUFFIXES = (
    *LONE_SUFFIXES,
    *(".img", ".bil", ".bip", ".bsq", ".dat", ".raw", ".pix", ".ntf", ".nitf", ".vrt"),
)
# these are images where a header stands beside them, and anything else where none does
ONLY_WITH_HEADER = (".dat", ".raw")
QUICKLOOK = re.compile(
    r"(?:^|[-_. ])(?:browse|quick-?looks?|ql|previews?|thumb(?:nail)?s?|icon|pvi)(?:[-_. ]|$)"
)
QUICKLOOK_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".jp2")
BAND = re.compile(r"(?:^|(?<=[-_. ]))(?:b0?(?P<number>\d{1,2})|red|green|blue)(?=[-_. ]|$)", re.IGNORECASE)
EARLIER_LANDSAT = ("lt04", "lt05", "le07")  # their blue is band 1; Sentinel-2's and later Landsats' is 2
REPORT_KEYS = {"scene", "model", "classes"}


def rasters_among(names: Sequence[str], content: Callable[[str], bytes]) -> list[str]:
    """Those of a folder's files that are images, in their order.

    Left out is what lies hidden (such as macOS' `._scene.tif`) and, with a word in the log, quicklooks beside
    scenes and the maps that `crossearth predict` wrote.

    Args:
        names: paths with "/", all files of the folder.
        content: the bytes of one of them, asked for a map's report only.
    """
    lower = {name.lower() for name in names}
    found = [name for name in names if is_raster(name, lower)]
    maps = {part for name in found for part in _parts_of_map(name, lower, content)}
    scenes = [name for name in found if name not in maps]
    pictures = {name for name in scenes if _is_quicklook(name)}
    with_scenes = {PurePosixPath(name).parent for name in scenes if name not in pictures}
    quicklooks = {name for name in pictures if PurePosixPath(name).parent in with_scenes}
    for what, left in (("quicklooks", quicklooks), ("maps of crossearth predict", maps & set(found))):
        if left:
            log.warning("left out: %s", f"{what} ({some(sorted(left))})")
    return [name for name in scenes if name not in quicklooks]


def is_raster(name: str, beside: Set[str]) -> bool:
    """Whether a file is an image by its name.

    Args:
        name: path with "/", below the folder that is looked through.
        beside: names of all files there, in lower case.
    """
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    if suffix not in RASTER_SUFFIXES or any(part.startswith(".") for part in path.parts):
        return False
    if suffix in ONLY_WITH_HEADER:
        return not beside.isdisjoint((f"{path.with_suffix('.hdr')}".lower(), f"{path}.hdr".lower()))
    return True


def sidecar_names(name: str) -> set[str]:
    """Names, in lower case, of the files beside a raster that GDAL reads with it."""
    path = PurePosixPath(name.lower())
    kind = path.suffix[1:]
    stem = str(path.with_suffix(""))
    world = {f"{kind[0]}{kind[-1]}w", f"{kind}w", "wld"} if kind else {"wld"}
    return {
        *(f"{stem}.{suffix}" for suffix in (*world, "tab", "hdr")),
        *(f"{path}.{suffix}" for suffix in ("aux.xml", "msk", "hdr")),
    }


def stacking(path: Path) -> str:
    """The command that makes one scene of files that hold a band each; with made-up names where none are."""
    match = BAND.search(path.stem)
    if match is not None:
        before, after = path.name[: match.start()], path.name[match.end() :]
        found = {}
        for other in path.parent.iterdir():
            band = BAND.search(other.stem)
            if band and (other.name[: band.start()], other.name[band.end() :]) == (before, after):
                found[int(band["number"]) if band["number"] else band[0].lower()] = other
        numbers = (3, 2, 1) if before.lower().startswith(EARLIER_LANDSAT) else (4, 3, 2)
        for wanted in (numbers, ("red", "green", "blue")):
            if all(band in found for band in wanted):
                scene = path.with_name(f"{before}rgb.vrt")
                files = [scene, *(found[band] for band in wanted)]
                return f"gdalbuildvrt -separate {shlex.join(map(str, files))}"
    return "gdalbuildvrt -separate scene.vrt RED.tif GREEN.tif BLUE.tif"


def is_map_report(content: bytes) -> bool:
    """Whether a file's bytes are the report that stands beside a map."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() >= REPORT_KEYS


def _is_quicklook(name: str) -> bool:
    path = PurePosixPath(name.lower())
    return path.suffix in QUICKLOOK_SUFFIXES and QUICKLOOK.search(path.stem) is not None


def _parts_of_map(name: str, lower: Set[str], content: Callable[[str], bytes]) -> list[str]:
    """The images of a map, if `name` is one's main file: itself, its preview and its probabilities."""
    path = PurePosixPath(name)
    report, preview = str(path.with_suffix(".json")), str(path.with_suffix(".png"))
    written = {report.lower(), preview.lower(), f"{name}.aux.xml".lower()}
    if path.suffix.lower() not in (".tif", ".tiff") or not written <= lower:
        return []
    try:
        ours = is_map_report(content(report))
    except (InputError, OSError, KeyError):
        return []  # named otherwise in capitals, which no map is
    beside = [str(path.with_name(f"{path.stem}.{kind}.tif")) for kind in ("probabilities", "confidence")]
    return [name, preview, *beside] if ours else []
