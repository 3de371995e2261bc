"""CVAT's export "Segmentation mask": coloured rasters, and labelmap.txt which says what the colours are."""

import re

from crossearth.data.common.errors import InputError
from crossearth.data.raster.archives import Member, read

LABELMAP = "labelmap.txt"
MASKS = "SegmentationClass"


def read_colours(member: Member) -> dict[str, str]:
    """Name -> "#rrggbb", of lines `name:red,green,blue:parts:actions`; InputError: a line that is none."""
    found: dict[str, str] = {}
    for number, line in enumerate(read(member).decode("utf-8-sig", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"(.+?):(\d{1,3}),(\d{1,3}),(\d{1,3}):[^:]*:[^:]*", line.strip())
        if match is None or max(map(int, match.groups()[1:])) > 255:
            raise InputError(
                f"{line[:60]!r}", where=f"{member}: line {number}", expected="name:red,green,blue::"
            )
        found[match[1]] = "#{:02x}{:02x}{:02x}".format(*map(int, match.groups()[1:]))
    if not found:
        raise InputError("no colours", where=member, expected="a line name:red,green,blue:: for each class")
    return found
