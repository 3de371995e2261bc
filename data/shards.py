"""Steps that run as shards: shard i of n leaves a part, and whoever finds all parts finishes the whole."""

import json
from dataclasses import dataclass
from pathlib import Path

from crossearth.data.errors import InputError


@dataclass(frozen=True)
class Shard:
    """One of `num` equal shares of a step's items: those at index, index + num, ..."""

    index: int = 0
    num: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.num:
            raise InputError(f"shard {self.index} of {self.num}", expected="0 <= index < num")

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The shard that "I/N" means.

        Raises:
            InputError: it is not of that form, or out of range.
        """
        index, _, num = text.partition("/")
        if not (index.isdecimal() and num.isdecimal()):
            raise InputError(f"shard {text!r}", expected="I/N, such as 0/4 to 3/4")
        return cls(int(index), int(num))

    def __str__(self) -> str:
        return f"{self.index}-of-{self.num}"

    def part(self, folder: Path) -> Path:
        """This shard's part, a file in `folder`."""
        return self.parts(folder)[self.index]

    def parts(self, folder: Path) -> list[Path]:
        """The parts of all shards."""
        return [folder / f"part-{Shard(index, self.num)}" for index in range(self.num)]


WHOLE = Shard()


def is_done(record: Path, identity: str) -> bool:
    """Whether the JSON file `record` says that the run of that identity was finished."""
    return record.is_file() and json.loads(record.read_text(encoding="utf-8")).get("identity") == identity
