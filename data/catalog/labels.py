"""Raw values, colours and bands of label rasters become class ids here and nowhere else.

A label map, as catalogs write it, has one raw value per key and a class name or `ignore` per value:

    {0: ignore, 1: background, -1: building}            one band, whole numbers
    {"#ffffff": road, "#000000": ignore}                RGB colours
    {"<128": background, ">=128": road}                 one band, two sides of a threshold
    {"band 1": background, "band roads": road}          one band per class, by place from 1 or by name
    {Gebaeude: building, Strasse: road}                 names: labels are shapes, or have a table

Several raw values may mean one class.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from crossearth.data.common.config import listed, nearest, shown
from crossearth.data.common.errors import InputError

IGNORE = 255
UNKNOWN = 254
IGNORE_NAME = "ignore"
MIN_VALUE, MAX_VALUE = -(2**63), 2**64 - 1
ROWS_AT_ONCE = 512

Kind = Literal["value", "colour", "threshold", "band", "name"]
Unknown = Literal["error", "ignore"]
Raw = int | float | str
Table = tuple[tuple[Raw, int], ...]


@dataclass(frozen=True)
class LabelSpec:
    """How one domain's label rasters are read.

    Attributes:
        classes: names in id order.
        kind: what `table` keys are.
        table: (raw, id) pairs; raw is a value, a colour packed as 0xRRGGBB, the least value of a threshold's
            side (both 0: the upper one is what is above 0), a band (its place from 1, or its name in lower
            case), or a name as `plain_label` leaves it. id is a class id or IGNORE.
        snap: colours only; channels count as 0 or 255, whichever is nearer. For publishers' labels that went
            through a lossy format.
    """

    classes: tuple[str, ...]
    kind: Kind
    table: Table
    snap: bool = False

    def decode(
        self,
        raw: NDArray[Any],
        where: object = "",
        unknown: Unknown = "error",
        masked_HW: NDArray[np.bool_] | None = None,
        nodata_HW: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.uint8]:
        """Class ids of a raw label raster.

        Args:
            raw: (H, W), or (bands, H, W) as rasterio reads; of kind "band", the bands in the table's order.
                Integers, or floats that hold whole numbers.
            where: the file, for messages.
            unknown: what becomes of values that the map lacks: an error, or ignore.
            masked_HW: px that are ignored whatever their value.
            nodata_HW: px that are ignored if the map lacks their value.

        Returns:
            uint8 (H, W): class ids, IGNORE = 255.

        Raises:
            InputError: values that are not in the map, with the pixels of each; a band count or type that
                cannot be this domain's.
        """
        planes = raw[None] if raw.ndim == 2 else raw
        planes = self._checked(planes, where)
        ids = np.empty(planes.shape[1:], np.uint8)
        # strips bound the memory that packed colours take
        for top in range(0, len(ids), ROWS_AT_ONCE):
            strip = slice(top, top + ROWS_AT_ONCE)
            ids[strip] = self._look_up(planes[:, strip])
        if masked_HW is not None:
            ids[masked_HW] = IGNORE
        if nodata_HW is not None:
            ids[(ids == UNKNOWN) & nodata_HW] = IGNORE
        self._settle_unknown(ids, planes, where, unknown)
        return ids

    def ids_of(
        self, counts: Mapping[str, int], where: object, unknown: Unknown = "error", what: str = "shapes"
    ) -> dict[str, int]:
        """Class id (or IGNORE) of every name that a file has.

        Args:
            counts: name -> how many `what` have it.
            unknown: what becomes of names that the map lacks: an error, or ignore.

        Raises:
            InputError: names that are not in the map, with the number of each.
        """
        known = dict(self.table)
        lacking = [name for name in counts if plain_label(name) not in known]
        if lacking and unknown == "error":
            examples = listed([f"{name!r} ({counts[name]} {what})" for name in lacking], 5)
            classes = listed([*self.classes, IGNORE_NAME])
            raise InputError(
                f"classes that nobody named: {examples}",
                where=where,
                expected=nearest(lacking[0], map(str, known)),
                next_step=f"add them to the domain's `labels` in its catalog file, e.g. "
                f"labels: {{{lacking[0]}: CLASS}}, where CLASS is one of {classes}; "
                "or say there `unknown_labels: ignore`",
            )
        return {name: known.get(plain_label(name), IGNORE) for name in counts}

    def of_colours(self, colours: Mapping[str, str], where: object, unknown: Unknown) -> "LabelSpec":
        """This map of names, for rasters in which every name has a colour.

        Args:
            colours: name -> "#rrggbb".

        Raises:
            InputError: names that are not in the map; no colours, or one of two names.
        """
        ids = self.ids_of(dict.fromkeys(colours, 1), where, unknown, "colours")
        names = {**dict(enumerate(self.classes)), IGNORE: IGNORE_NAME}
        twice = [name for name, count in Counter(colours.values()).items() if count > 1]
        if twice:
            raise InputError(f"two names of the colour {twice[0]}", where=where)
        return parse_labels(
            {colour: names[ids[name]] for name, colour in colours.items()}, self.classes, where
        )

    def encode(self, ids: NDArray[np.uint8]) -> NDArray[Any]:
        """A raw raster that decodes to `ids`: what a publisher would ship.

        Args:
            ids: uint8 (H, W), class ids or IGNORE.

        Returns:
            (H, W) of the smallest type that holds the values; for colours uint8 (3, H, W); for bands uint8
            (bands, H, W) of 0 and 1. The first raw value of a class stands for it; thresholds use 0 and 255.

        Raises:
            InputError: an id that the map cannot express.
        """
        raw_of: dict[int, Any] = {target: raw for raw, target in reversed(self.table)}
        if self.kind == "threshold":
            raw_of = {target: max(255, math.ceil(raw)) if raw else 0 for target, raw in raw_of.items()}
        if self.kind == "band":
            raw_of = {target: place for place, (_, target) in reversed(list(enumerate(self.table)))}
        if missing := sorted(set(np.unique(ids).tolist()) - set(raw_of)):
            raise InputError(
                f"the label map has no raw value for ids {missing}", expected=f"ids {sorted(raw_of)}"
            )
        lut = np.zeros(256, np.result_type(np.uint8, *map(np.min_scalar_type, raw_of.values())))
        lut[list(raw_of)] = list(raw_of.values())
        raw = lut[ids]
        if self.kind == "colour":
            return np.stack([raw >> 16, raw >> 8 & 255, raw & 255]).astype(np.uint8)
        if self.kind == "band":
            return (raw == np.arange(len(self.table))[:, None, None]).astype(np.uint8)
        return raw

    def _checked(self, planes: NDArray[Any], where: object) -> NDArray[Any]:
        """The planes that are looked up: three of a colour, one of a value, all of bands."""
        if planes.dtype.kind not in "ubif":
            raise InputError(f"a label of {planes.dtype}", where=where, expected="whole numbers")
        if self.kind == "band":
            return planes
        return _three_bands(planes, where) if self.kind == "colour" else _one_band(planes, where)

    def _look_up(self, planes: NDArray[Any]) -> NDArray[np.uint8]:
        """Ids of checked planes, UNKNOWN where the map has none."""
        if self.kind == "band":
            above = planes > 0
            targets = np.array([target for _, target in self.table], np.uint8)
            return np.where(above.sum(axis=0) == 1, targets[above.argmax(axis=0)], np.uint8(UNKNOWN))
        # mode="clip" spares the bounds check: keys are inside already
        if self.kind == "colour":
            return np.take(_colour_lut(self.table), _packed(planes, self.snap), mode="clip")
        values, kind = planes[0], planes.dtype
        if kind.kind == "f" or kind.itemsize > 2:
            return _ids_of(values, self.kind, self.table)
        keys = values.view(f"u{kind.itemsize}").astype(np.intp)
        return np.take(_short_lut(self.kind, self.table, kind.str), keys, mode="clip")

    def _settle_unknown(
        self, ids: NDArray[np.uint8], planes: NDArray[Any], where: object, unknown: Unknown
    ) -> None:
        if not (mask := ids == UNKNOWN).any():
            return
        pixels = planes[:, mask]
        if self.kind == "value" and pixels.dtype.kind == "f" and (pixels > np.floor(pixels)).any():
            raise InputError(
                f"a label of {pixels.dtype} with fractions",
                where=where,
                expected="whole numbers",
                next_step='where they are probabilities, give `labels` a threshold: "<0.5" and ">=0.5"',
            )
        if unknown == "ignore":
            ids[mask] = IGNORE
            return
        if self.kind == "colour":
            what, keys = "colours", _packed(pixels[:, None], self.snap)[0]
        elif self.kind == "band":
            what, keys = "numbers of bands", np.count_nonzero(pixels > 0, axis=0)
        else:
            what, keys = "values", pixels[0]
        found, counts = np.unique(keys, return_counts=True)
        most = counts.argsort(kind="stable")[::-1][:5]
        examples = [f"{self._show(found[index])} ({counts[index]} px)" for index in most]
        rest = len(found) - len(examples)
        raise InputError(
            f"{counts.sum()} of {ids.size} label pixels have {what} outside the map: {', '.join(examples)}"
            + (f" and {rest} more" if rest else ""),
            where=where,
            expected={"band": "one band above 0", "threshold": "numbers from 0"}.get(
                self.kind, listed([self._show(raw) for raw, _ in self.table])
            ),
            next_step="gdal_edit.py -a_nodata nan FILE has NaN ignored; where it is a class, write a number"
            if pixels.dtype.kind == "f" and np.isnan(pixels).any()
            else "add them to the domain's `labels` in its catalog file, "
            "or say there `unknown_labels: ignore`",
        )

    def _show(self, raw: Any) -> str:
        return f"#{raw:06x}" if self.kind == "colour" else f"{raw}"


def parse_labels(values: Mapping[Any, Any], classes: Sequence[str], where: object) -> LabelSpec:
    """Reads a label map as catalogs write it (see the module).

    Raises:
        InputError: an empty map, an unknown class, keys of different kinds, two keys of one raw value, a
            colour or value out of range, a threshold whose two sides do not meet.
    """
    ids = _ids(values, classes, where)
    parsed = [(_parse_key(raw, where), target) for raw, target in zip(values, ids, strict=True)]
    kinds = {kind for (kind, _), _ in parsed}
    if len(kinds) != 1:
        raise InputError(f"label keys of several kinds: {', '.join(sorted(kinds))}", where=where)
    table: Table = tuple((raw, target) for (_, raw), target in parsed)
    kind: Kind = kinds.pop()
    if kind == "threshold":
        _check_sides(values, table, where)
    _refuse_twice(values, table, where)
    return LabelSpec(tuple(classes), kind, table)


def parse_names(values: Mapping[Any, Any] | None, classes: Sequence[str], where: object) -> LabelSpec:
    """Reads a label map whose keys are names; without one, every name is its class's.

    Raises:
        InputError: an empty map, an unknown class, two keys that are one name.
    """
    if values is None:
        values = {name: name for name in (*classes, IGNORE_NAME)}
    ids = _ids(values, classes, where)
    table = tuple((plain_label(str(raw)), target) for raw, target in zip(values, ids, strict=True))
    _refuse_twice(values, table, where)
    return LabelSpec(tuple(classes), "name", table)


def plain_label(name: str) -> str:
    """What of a name counts: neither case nor what stands between its words."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def remap_table(remap: Sequence[int]) -> NDArray[np.uint8]:
    """Table (256,) from ids of a class set to another's, of `Catalog.remap`: `table[ids]`; IGNORE stays."""
    table = np.full(256, IGNORE, np.uint8)
    table[: len(remap)] = remap
    return table


def _ids(values: Any, classes: Sequence[str], where: object) -> list[int]:
    """Id of each value of a label map."""
    if not isinstance(values, Mapping) or not values:
        raise InputError(
            f"labels are not a map: {shown(values)}",
            where=where,
            expected="raw value -> class, e.g. {0: background, 255: road}",
        )
    return [class_id(name, classes, where, f" for raw value {raw!r}") for raw, name in values.items()]


def class_id(name: Any, classes: Sequence[str], where: object, of: str = "") -> int:
    """Id of a class, IGNORE of `ignore`; InputError where there is none; `of` tells whose class it is."""
    ids = {each: index for index, each in enumerate(classes)} | {IGNORE_NAME: IGNORE}
    if not isinstance(name, str) or name not in ids:
        raise InputError(f"unknown class {name!r}{of}", where=where, expected=nearest(str(name), ids))
    return ids[name]


def _refuse_twice(values: Mapping[Any, Any], table: Table, where: object) -> None:
    if twice := [raw for raw, count in Counter(raw for raw, _ in table).items() if count > 1]:
        keys = [key for key, (raw, _) in zip(values, table, strict=True) if raw == twice[0]]
        raise InputError(f"label keys {listed(map(repr, keys))}: they are one raw value", where=where)


def _parse_key(raw: Any, where: object) -> tuple[Kind, Raw]:
    if isinstance(raw, str) and re.fullmatch(r"-?\d{1,20}", raw):
        raw = int(raw)  # JSON, in which pipelines hand catalogs on, knows no other keys
    if isinstance(raw, int) and not isinstance(raw, bool):
        if MIN_VALUE <= raw <= MAX_VALUE:
            return "value", raw
        raise InputError(f"label value {raw} out of range", where=where, expected=f"{MIN_VALUE}..{MAX_VALUE}")
    text = str(raw)
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return "colour", int(text[1:], 16)
    if match := re.fullmatch(r"(<|>=)(\d{1,9}(?:\.\d{1,9})?)", text):
        threshold = float(match[2])
        if threshold == 0:
            raise InputError(f"threshold {text!r} out of range", where=where, expected="above 0")
        return "threshold", 0 if match[1] == "<" else threshold
    if match := re.fullmatch(r"band +(\S.*)", text):
        name = match[1].strip().lower()
        return "band", int(name) if re.fullmatch(r"[1-9]\d{0,4}", name) else name
    raise InputError(
        f"label key {repr(raw)[:40]} is no raw value",
        where=where,
        expected='a whole number, a colour "#rrggbb", "<N" or ">=N", "band N" or "band NAME"',
    )


def _check_sides(values: Mapping[Any, Any], table: Table, where: object) -> None:
    numbers = {float(str(raw).lstrip("<>=")) for raw in values}
    if len(table) != 2 or len(numbers) != 1 or len({raw for raw, _ in table}) != 2:
        raise InputError(
            f"thresholds {listed(values)} are not the two sides of one number",
            where=where,
            expected='"<128" and ">=128"',
        )


def _ids_of(values: NDArray[Any], kind: Kind, table: Table) -> NDArray[np.uint8]:
    """Ids of values or of sides of a threshold, in numbers of any type; below 0 there is no side."""
    if kind == "threshold":
        (_, lower), (threshold, upper) = sorted(cast("tuple[tuple[float, int], ...]", table))
        above = values >= threshold if threshold else values > 0
        ids = np.where(above, np.uint8(upper), np.uint8(lower))
        ids[~((values >= 0) & np.isfinite(values))] = UNKNOWN
        return ids
    known = sorted((raw, target) for raw, target in table if _holds(values.dtype, cast(int, raw)))
    if not known:
        return np.full(values.shape, UNKNOWN, np.uint8)
    keys = np.array([raw for raw, _ in known], values.dtype)
    targets = np.array([target for _, target in known], np.uint8)
    place = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    return np.where(keys[place] == values, targets[place], np.uint8(UNKNOWN))


def _holds(dtype: np.dtype[Any], value: int) -> bool:
    """Whether numbers of that type can be `value`."""
    with np.errstate(over="ignore"), suppress(OverflowError):
        number = dtype.type(value)
        return math.isfinite(number) and int(number) == value
    return False


@lru_cache(maxsize=8)
def _short_lut(kind: Kind, table: Table, dtype: str) -> NDArray[np.uint8]:
    """Table of ids over all numbers of at most 16 bits, at their bits read as an unsigned number."""
    bits = np.dtype(f"u{np.dtype(dtype).itemsize}")
    every = np.arange(1 << 8 * bits.itemsize, dtype=bits)
    return _ids_of(every if dtype == "|b1" else every.view(dtype), kind, table)


@lru_cache(maxsize=2)
def _colour_lut(table: Table) -> NDArray[np.uint8]:
    lut = np.full(2**24, UNKNOWN, np.uint8)
    for raw, target in table:
        lut[cast(int, raw)] = target
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


def _three_bands(planes: NDArray[Any], where: object) -> NDArray[Any]:
    if planes.shape[0] not in (1, 3) or planes.dtype != np.uint8:
        scale = "" if planes.size == 0 or planes.max() <= 255 else " -scale 0 65535 0 255"
        raise InputError(
            f"a label of {_count(planes)} of {planes.dtype}",
            where=where,
            expected="colours: 3 bands of uint8, 1 band with a colour table, or 1 band of grey",
            next_step="give `labels` the raw values as keys"
            if planes.shape[0] == 1
            else f"gdal_translate -b 1 -b 2 -b 3 -ot Byte{scale} IN OUT.tif",
        )
    return np.broadcast_to(planes, (3, *planes.shape[1:]))


def _one_band(planes: NDArray[Any], where: object) -> NDArray[Any]:
    first = planes[0]
    # grey labels are often saved as RGB
    if planes.shape[0] not in (1, 3) or not all(np.array_equal(first, plane) for plane in planes[1:]):
        raise InputError(
            f"a label of {_count(planes)} that differ",
            where=where,
            expected="1 band of raw values",
            next_step='colours are keys like "#ff0000" in `labels`; one band per class, keys like "band 1"',
        )
    return planes[:1]


def _count(planes: NDArray[Any]) -> str:
    return f"{len(planes)} band{'s' * (len(planes) != 1)}"
