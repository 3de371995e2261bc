"""What shards leave for the one that finishes: a sealed file each."""

from pathlib import Path
from typing import Any

from crossearth.data.errors import InputError
from crossearth.data.files import read_sealed
from crossearth.data.shards import Shard


def read_parts(shard: Shard, folder: Path) -> list[dict[str, Any]] | None:
    """What every shard left in `folder` with `write_sealed`; None while parts are missing.

    Raises:
        InputError: a part is damaged.
    """
    parts = shard.parts(folder)
    if not all(part.exists() for part in parts):
        return None
    return [_read(part, Shard(index, shard.num)) for index, part in enumerate(parts)]


def _read(part: Path, shard: Shard) -> dict[str, Any]:
    try:
        return read_sealed(part)
    except InputError as error:
        raise InputError(
            "this part of the work is damaged",
            where=part,
            next_step=f"delete it, then run the command again with --shard {shard.index}/{shard.num}",
        ) from error
