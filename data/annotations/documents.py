"""JSON that other tools wrote: read with the place of what is wrong in it."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossearth.data.common.config import shown
from crossearth.data.common.errors import InputError


def parse_json(content: bytes, where: object) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: it is not JSON; says the line and the column.
    """
    try:
        return json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"not JSON: {error.msg}",
            where=f"{where}: line {error.lineno}, column {error.colno}",
            next_step="export the file again",
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"not JSON: {error}", where=where, next_step="export the file again") from error


def entry(values: Any, key: str, kind: type | tuple[type, ...], where: object) -> Any:
    """A value of a JSON map, of the type that it must have.

    Raises:
        InputError: it is absent or of another type.
    """
    found = values.get(key) if isinstance(values, Mapping) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise InputError(
            f"{key}: {shown(found)}",
            where=where,
            expected=f"{key}, a JSON {' or '.join(JSON_NAMES[each] for each in kinds)}",
        )
    return found


JSON_NAMES = {dict: "object", list: "array", str: "string", int: "number", float: "number"}


def points(values: Any, where: object, least: int = 3) -> NDArray[np.float64]:
    """Points (N, 2), x and y, of a flat or nested list of numbers.

    Raises:
        InputError: something else, numbers that are not finite, or fewer than `least` points.
    """
    try:
        found = np.asarray(values, np.float64).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise InputError(f"no points: {shown(values)}", where=where, expected="x, y, x, y, ...") from error
    if len(found) < least or not np.isfinite(found).all():
        raise InputError(
            f"{len(found)} points: {shown(values)}", where=where, expected=f"at least {least}, finite numbers"
        )
    return found
