"""Hugging Face's image folder: a table beside the images names the mask of each."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import PurePosixPath

from crossearth.data.annotations.documents import parse_json
from crossearth.data.common.config import listed, nearest, shown
from crossearth.data.common.errors import InputError
from crossearth.data.raster.archives import Member, opened, read

TABLES = ("metadata.jsonl", "metadata.csv")
HEAD_BYTES = 2**20
IMAGE_COLUMNS = ("file_name", "image_file_name", "input_file_name")


def is_table(member: Member) -> bool:
    """Whether a file of such a name is a table of images, by its first line."""
    with opened(member) as file:
        line = file.readline(HEAD_BYTES).decode("utf-8-sig", "replace")
    if member.path.lower().endswith(".csv"):
        columns = next(csv.reader([line]), [])
    else:
        try:
            columns = json.loads(line)
        except (ValueError, RecursionError):
            return False
    return any(name in columns for name in IMAGE_COLUMNS) if isinstance(columns, list | dict) else False


def read_table(member: Member, column: str | None) -> dict[str, str]:
    """Path of an image -> path of its mask, both below the folder that the tables were looked for in.

    Args:
        column: the one that names masks; None = the only other one of file names.

    Raises:
        InputError: no such column, or several that may be it; a line that is none, by its number; a path that
            leaves its folder.
    """
    rows = _rows(member)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    images = [name for name in IMAGE_COLUMNS if name in columns]
    if not images:
        raise InputError(
            f"columns {listed(columns)}", where=member, expected=f"one of {listed(IMAGE_COLUMNS)}"
        )
    others = [name for name in columns if name.endswith("file_name") and name != images[0]]
    if column is None and len(others) != 1:
        raise InputError(
            f"{len(others)} columns that may name masks: {listed(others) or 'none'}",
            where=member,
            expected=f"`column`: one of {listed(name for name in columns if name != images[0])}",
        )
    chosen = column or others[0]
    if chosen not in columns:
        raise InputError(f"no column {chosen!r}", where=member, expected=nearest(chosen, columns))
    folder = PurePosixPath(member.path).parent
    return {
        _below(folder, row.get(images[0]), member): _below(folder, row.get(chosen), member)
        for row in rows
        if row.get(chosen)
    }


def _rows(member: Member) -> list[Mapping[str, object]]:
    content = read(member)
    if member.path.lower().endswith(".csv"):
        try:
            return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"not CSV: {error}", where=member) from error
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            row = parse_json(line, f"{member}: line {number}")
            if not isinstance(row, Mapping):
                raise InputError(shown(row), where=f"{member}: line {number}", expected="a JSON object")
            rows.append(row)
    return rows


def _below(folder: PurePosixPath, name: object, member: Member) -> str:
    path = PurePosixPath(str(name).replace("\\", "/"))
    if not isinstance(name, str) or path.is_absolute() or ".." in path.parts:
        raise InputError(f"{shown(name)} is no file below its folder", where=member)
    return str(folder / path)
