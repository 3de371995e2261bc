"""JSON that other tools wrote: read with the place of what is wrong in it."""

import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, repeat
from typing import IO, Any

import ijson
import numpy as np
from numpy.typing import NDArray

from crossearth.data.common.config import shown
from crossearth.data.common.errors import InputError
from crossearth.data.raster.archives import Member, opened

BLOCK = 2**16  # bytes


def parse_json(content: bytes, where: object) -> Any:
    """What a JSON file holds; InputError with the line and the column where it is not JSON."""
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


def streamed(member: Member, place: str) -> Iterator[Any]:
    """The values at a place in a JSON file of any size, of which one is held at a time.

    Args:
        place: in ijson's words: `annotations.item` is every element of the list `annotations`.

    Raises:
        InputError: it is not JSON up to there; says the line and the column.
    """
    with opened(member) as file:
        try:
            yield from ijson.items(_behind_mark(file), place, use_float=True)
        except ijson.JSONError as error:
            raise _not_json(member, file) from error


def top_level(member: Member) -> Iterator[tuple[str, Any]]:
    """Keys of a JSON object of any size, with those values that are plain; raises as `streamed`."""
    depth, key = 0, ""
    with opened(member) as file:
        try:
            for event, value in ijson.basic_parse(_behind_mark(file), use_float=True):
                if event == "map_key":
                    key = value if depth == 1 else key
                elif event.startswith("end_"):
                    depth -= 1
                else:
                    if depth == 1:
                        yield key, value
                    depth += event.startswith("start_")
        except ijson.JSONError as error:
            raise _not_json(member, file) from error


def _behind_mark(file: IO[bytes]) -> IO[bytes]:
    """The file from its beginning, without the mark that some editors set before UTF-8."""
    file.seek(0)
    if file.read(len(BOM_UTF8)) != BOM_UTF8:
        file.seek(0)
    return file


def _not_json(member: Member, file: IO[bytes]) -> InputError:
    blocks, *_ = _fault(file, repeat(BLOCK))
    # of the block that has the fault, byte by byte
    _, line, column, words = _fault(file, chain(repeat(BLOCK, blocks), repeat(1)))
    return InputError(
        f"not JSON: {words}",
        where=f"{member}: line {line}, column {column}",
        next_step="export the file again",
    )


def _fault(file: IO[bytes], sizes: Iterable[int]) -> tuple[int, int, int, str]:
    """Of what is no JSON: pieces before the first wrong one, its line and column, and the parser's words."""
    found = ijson.sendable_list()
    parser = ijson.basic_parse_coro(found, use_float=True)
    number, line, column = 0, 1, 1
    _behind_mark(file)
    try:
        for size in sizes:
            piece = file.read(size)
            if not piece:
                parser.close()
                break
            parser.send(piece)
            found.clear()
            number += 1
            line += piece.count(b"\n")
            last = piece.rpartition(b"\n")
            column = len(last[2].decode(errors="ignore")) + (1 if last[1] else column)
    except ijson.JSONError as error:
        return number, line, column, str(error).partition("\n")[0]
    return number, line, column, "it changed while it was read"


def entry(values: Any, key: str, kind: type | tuple[type, ...], where: object) -> Any:
    """A value of a JSON map; InputError where it is absent or of another type."""
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
    """Points (N, 2), x and y, of a list of numbers; InputError: none, not finite, or fewer than `least`."""
    try:
        found = np.asarray(values, np.float64).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise InputError(f"no points: {shown(values)}", where=where, expected="x, y, x, y, ...") from error
    if len(found) < least or not np.isfinite(found).all():
        raise InputError(
            f"{len(found)} points: {shown(values)}", where=where, expected=f"at least {least}, finite numbers"
        )
    return found
