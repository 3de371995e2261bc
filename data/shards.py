"""Steps that run as shards: shard i of n leaves a part, and whoever finds all parts finishes the whole."""

import re
from dataclasses import dataclass
from pathlib import Path

from crossearth.data.errors import InputError
from crossearth.data.files import read_json

MAX_SHARDS = 10_000


@dataclass(frozen=True)
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
        """The shard that "I/N" means.

        Raises:
            InputError: it is not of that form, or out of range.
        """
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
        """The parts of all shards."""
        return [Shard(index, self.num).part(folder) for index in range(self.num)]


WHOLE = Shard()


def is_done(record: Path, identity: str) -> bool:
    """Whether the JSON file `record` says that a run of that identity was finished; no damaged one does."""
    try:
        return record.is_file() and read_json(record).get("identity") == identity
    except InputError:
        return False
