"""Raw values and colours of label rasters become class ids here and nowhere else.

A label map, as catalogs write it, has one raw value per key and a class name or `ignore` per value:

    {0: ignore, 1: background, 2: building}             one band, integers
    {"#ffffff": road, "#000000": ignore}                three bands, RGB colours
    {"<128": background, ">=128": road}                 one band, two sides of a threshold

Several raw values may mean one class.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crossearth.data.config import nearest
from crossearth.data.errors import InputError

IGNORE = 255
UNKNOWN = 254
IGNORE_NAME = "ignore"
MAX_VALUE = 65535
ROWS_AT_ONCE = 512

Kind = Literal["value", "colour", "threshold"]
Unknown = Literal["error", "ignore"]


@dataclass(frozen=True)
class LabelSpec:
    """How one domain's label rasters are read.

    Attributes:
        classes: names in id order.
        kind: what `table` keys are.
        table: (raw, id) pairs; raw is a value, a colour packed as 0xRRGGBB, or the least value of a
            threshold's side. id is a class id or IGNORE.
        snap: colours only; channels count as 0 or 255, whichever is nearer. For publishers' labels that went
            through a lossy format.
    """

    classes: tuple[str, ...]
    kind: Kind
    table: tuple[tuple[int, int], ...]
    snap: bool = False

    def decode(self, raw: NDArray[Any], where: object = "", unknown: Unknown = "error") -> NDArray[np.uint8]:
        """Class ids of a raw label raster.

        Args:
            raw: (H, W), or (bands, H, W) as rasterio reads. Integers, or floats that hold whole numbers.
            where: the file, for messages.
            unknown: what becomes of values that the map lacks: an error, or ignore.

        Returns:
            uint8 (H, W): class ids, IGNORE = 255.

        Raises:
            InputError: values that are not in the map, with the pixels of each; a band count or type that
                cannot be this domain's.
        """
        planes = raw[None] if raw.ndim == 2 else raw
        colours = _three_bands(planes, where) if self.kind == "colour" else None
        values = _one_band(planes, where) if colours is None else colours[0]
        ids = np.empty(values.shape, np.uint8)
        lut = _lut(self.kind, self.table)
        # strips bound the memory that packed colours take
        for top in range(0, len(values), ROWS_AT_ONCE):
            strip = slice(top, top + ROWS_AT_ONCE)
            keys = _packed(colours[:, strip], self.snap) if colours is not None else _clipped(values[strip])
            # mode="clip" spares the bounds check: keys are inside already
            np.take(lut, keys, out=ids[strip], mode="clip")
        self._settle_unknown(ids, colours, values, where, unknown)
        return ids

    def encode(self, ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A raw raster that decodes to `ids`: what a publisher would ship.

        Args:
            ids: uint8 (H, W), class ids or IGNORE.

        Returns:
            uint8 (H, W), or (3, H, W) for colours. The first raw value of a class stands for it; thresholds
            use 0 and 255.

        Raises:
            InputError: an id that the map cannot express.
        """
        raw_of = {target: raw for raw, target in reversed(self.table)}
        if self.kind == "threshold":
            raw_of = {target: 255 if raw else 0 for target, raw in raw_of.items()}
        lut = np.zeros(256, np.uint32)
        lut[list(raw_of)] = list(raw_of.values())
        if missing := sorted(set(np.unique(ids).tolist()) - set(raw_of)):
            raise InputError(
                f"the label map has no raw value for ids {missing}", expected=f"ids {sorted(raw_of)}"
            )
        raw = lut[ids]
        if self.kind == "colour":
            return np.stack([raw >> 16, raw >> 8 & 255, raw & 255]).astype(np.uint8)
        return raw.astype(np.uint8)

    def snapped(self) -> "LabelSpec":
        """This map with `snap` on."""
        return replace(self, snap=True)

    def _settle_unknown(
        self,
        ids: NDArray[np.uint8],
        colours: NDArray[Any] | None,
        values: NDArray[Any],
        where: object,
        unknown: Unknown,
    ) -> None:
        if not (mask := ids == UNKNOWN).any():
            return
        if unknown == "ignore":
            ids[mask] = IGNORE
            return
        keys = _packed(colours[:, mask][:, None], self.snap)[0] if colours is not None else values[mask]
        found, counts = np.unique(keys, return_counts=True)
        most = counts.argsort(kind="stable")[::-1][:5]
        shown = [f"{self._show(found[index])} ({counts[index]} px)" for index in most]
        rest = len(found) - len(shown)
        what = "colours" if self.kind == "colour" else "values"
        raise InputError(
            f"{counts.sum()} of {ids.size} label pixels have {what} outside the map: {', '.join(shown)}"
            + (f" and {rest} more" if rest else ""),
            where=where,
            expected=", ".join(self._show(raw) for raw, _ in self.table),
            next_step="add them to the domain's labels in its catalog, or set `unknown_labels: ignore`",
        )

    def _show(self, raw: Any) -> str:
        return f"#{int(raw):06x}" if self.kind == "colour" else f"{raw}"


def parse_labels(values: Mapping[Any, Any], classes: Sequence[str], where: object) -> LabelSpec:
    """Reads a label map as catalogs write it (see the module).

    Raises:
        InputError: an empty map, an unknown class, keys of different kinds, two keys of one raw value, a
            colour or value out of range, a threshold whose two sides do not meet.
    """
    if not isinstance(values, Mapping) or not values:
        raise InputError(
            f"labels are not a map: {values!r}",
            where=where,
            expected="raw value -> class, e.g. {0: background, 255: road}",
        )
    ids = {name: index for index, name in enumerate(classes)} | {IGNORE_NAME: IGNORE}
    for raw, name in values.items():
        if not isinstance(name, str) or name not in ids:
            raise InputError(
                f"unknown class {name!r} for raw value {raw!r}", where=where, expected=nearest(str(name), ids)
            )
    parsed = [(_parse_key(raw, where), ids[name]) for raw, name in values.items()]
    kinds = {kind for (kind, _), _ in parsed}
    if len(kinds) != 1:
        raise InputError(f"label keys of several kinds: {', '.join(sorted(kinds))}", where=where)
    table = tuple((raw, target) for (_, raw), target in parsed)
    kind: Kind = kinds.pop()
    if kind == "threshold":
        lower, upper = min(table)[0], max(table)[0]
        numbers = {str(raw).lstrip("<>=") for raw in values}
        if len(table) != 2 or lower != 0 or upper == 0 or len(numbers) != 1:
            raise InputError(
                f"thresholds {', '.join(map(str, values))} are not the two sides of one number",
                where=where,
                expected='"<128" and ">=128"',
            )
    if len(dict(table)) != len(table):
        raise InputError(f"label keys {', '.join(map(repr, values))}: two are one raw value", where=where)
    return LabelSpec(tuple(classes), kind, table)


def remap_table(remap: Sequence[int]) -> NDArray[np.uint8]:
    """Table (256,) from ids of one class set to those of another: `table[ids]`; IGNORE stays.

    Args:
        remap: new id (or IGNORE) per old id, as `Catalog.remap` gives.
    """
    table = np.full(256, IGNORE, np.uint8)
    table[: len(remap)] = remap
    return table


def _parse_key(raw: Any, where: object) -> tuple[Kind, int]:
    if isinstance(raw, str) and re.fullmatch(r"\d{1,9}", raw):
        raw = int(raw)  # JSON, in which pipelines hand catalogs on, knows no other keys
    if isinstance(raw, int) and not isinstance(raw, bool):
        if 0 <= raw <= MAX_VALUE:
            return "value", raw
        raise InputError(f"label value {raw} out of range", where=where, expected=f"0..{MAX_VALUE}")
    text = str(raw)
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return "colour", int(text[1:], 16)
    if match := re.fullmatch(r"(<|>=)(\d{1,9})", text):
        threshold = int(match[2])
        if not 0 < threshold <= MAX_VALUE:
            raise InputError(f"threshold {text!r} out of range", where=where, expected=f"1..{MAX_VALUE}")
        return "threshold", 0 if match[1] == "<" else threshold
    raise InputError(
        f"label key {raw!r} is no raw value",
        where=where,
        expected=f'a number up to {MAX_VALUE}, a colour "#rrggbb", "<N" or ">=N"',
    )


@lru_cache(maxsize=8)
def _lut(kind: Kind, table: tuple[tuple[int, int], ...]) -> NDArray[np.uint8]:
    """Table of ids over all raw keys: 2^24 colours, or 0..MAX_VALUE and one slot for everything outside."""
    size = 2**24 if kind == "colour" else MAX_VALUE + 2
    lut = np.full(size, UNKNOWN, np.uint8)
    if kind == "threshold":
        for raw, target in sorted(table):
            lut[raw : MAX_VALUE + 1] = target
        return lut
    for raw, target in table:
        lut[raw] = target
    return lut


def _packed(colours: NDArray[Any], snap: bool) -> NDArray[np.uint32]:
    """(3, H, W) uint8 -> (H, W) 0xRRGGBB."""
    if snap:
        colours = np.where(colours < 128, np.uint8(0), np.uint8(255))
    red, green, blue = (plane.astype(np.uint32) for plane in colours)
    red <<= 8
    red |= green
    red <<= 8
    red |= blue
    return red


def _clipped(values: NDArray[Any]) -> NDArray[np.intp]:
    """Values as keys of the table, those outside 0..MAX_VALUE moved to its last slot."""
    if values.dtype.itemsize <= 2 and values.dtype.kind in "ub":
        return values.astype(np.intp)
    # a plain 65536 would take the values' type, in which it may be 0
    return np.where((values >= 0) & (values <= MAX_VALUE), values, np.int64(MAX_VALUE + 1)).astype(np.intp)


def _three_bands(planes: NDArray[Any], where: object) -> NDArray[Any]:
    if planes.shape[0] not in (3, 4) or planes.dtype != np.uint8:
        raise InputError(
            f"a label of {planes.shape[0]} bands of {planes.dtype}",
            where=where,
            expected="3 bands of uint8: RGB colours",
        )
    return planes[:3]


def _one_band(planes: NDArray[Any], where: object) -> NDArray[Any]:
    first = planes[0]
    # grey labels are often saved as RGB, with or without alpha
    if planes.shape[0] not in (1, 3, 4) or not all(np.array_equal(first, plane) for plane in planes[1:3]):
        raise InputError(
            f"a label of {planes.shape[0]} bands that differ", where=where, expected="1 band of raw values"
        )
    # what is no number is no fraction either: it is a value outside the map
    if planes.dtype.kind == "f" and not np.array_equal(first, np.floor(first), equal_nan=True):
        raise InputError(f"a label of {planes.dtype} with fractions", where=where, expected="whole numbers")
    if planes.dtype.kind not in "ubif":
        raise InputError(f"a label of {planes.dtype}", where=where, expected="integers")
    return first
