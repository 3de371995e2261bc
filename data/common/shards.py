"""Steps that run as shards: shard i of n leaves a part, and whoever finds all parts finishes the whole."""

import logging
import re
from pathlib import Path
from typing import Any

from crossearth.data.common.config import checked
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import read_checksummed

MAX_SHARDS = 10_000

log = logging.getLogger(__name__)


@checked
class Shard:
    """One of `num` equal shares of a step's items: those at index, index + num, ..."""

    index: int = 0
    num: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.num <= MAX_SHARDS:
            raise InputError(
                f"shard {self.index} of {self.num}", expected=f"0 <= index < num <= {MAX_SHARDS}"
            )

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The shard that "I/N" means; InputError where it is not of that form, or out of range."""
        numbers = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if numbers is None:
            raise InputError(f"shard {text!r}", expected="I/N, such as 0/4 to 3/4")
        return cls(int(numbers[1]), int(numbers[2]))

    def __str__(self) -> str:
        return f"{self.index}-of-{self.num}"

    def part(self, folder: Path) -> Path:
        """This shard's part, a file in `folder`."""
        return folder / f"part-{self}"

    def parts(self, folder: Path) -> list[Path]:
        return [shard.part(folder) for shard in self._all()]

    def read_parts(self, folder: Path) -> list[dict[str, Any]] | None:
        """What each shard left in `folder`; None while parts are missing, InputError where one is damaged."""
        if not all(part.exists() for part in self.parts(folder)):
            return None
        return [shard._read(folder) for shard in self._all()]

    def _all(self) -> list["Shard"]:
        return [Shard(index, self.num) for index in range(self.num)]

    def _read(self, folder: Path) -> dict[str, Any]:
        try:
            return read_checksummed(self.part(folder))
        except InputError as error:
            raise InputError(
                "this part of the work is damaged",
                where=self.part(folder),
                next_step=f"delete it, then run the command again with --shard {self.index}/{self.num}",
            ) from error


WHOLE = Shard()


def is_done(record: Path, identity: str) -> bool:
    """Whether the JSON file `record` says that a run of that identity was finished; no damaged one does."""
    try:
        return record.exists() and read_checksummed(record).get("identity") == identity
    except InputError as error:
        log.warning("made anew, for its record is damaged: %s", error)
        return False
