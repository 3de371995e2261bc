"""A folder of recorded arrays that knows which of them were compared, and the table of the comparisons."""

import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ATOL, RTOL = 2e-4, 1e-4  # of the recordings; their own float32 noise is at most 5e-5


@dataclass
class Row:
    """One comparison: what, the largest absolute difference, the tolerance in words, and the verdict."""

    name: str
    difference: str
    tolerance: str
    holds: bool


@dataclass
class Recording:
    """The arrays of the folder's npz files by `file:key`, and what has become of each.

    `take` gives an array and marks it as used; `compare` also adds a row to the table.
    """

    folder: Path
    rows: list[Row] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    _files: dict[str, Any] = field(default_factory=dict)

    def keys(self, file: str) -> list[str]:
        """The arrays of an npz file, none if it is not there; one that is damaged differs."""
        path = self.folder / f"{file}.npz"
        if file not in self._files and path.exists():
            try:
                with np.load(path, allow_pickle=False) as loaded:
                    self._files[file] = dict(loaded)
            except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
                self._files[file] = {}
                self.check(path.name, False, "not readable", str(error)[:60])
        return list(self._files.get(file, {}))

    def has(self, file: str, key: str) -> bool:
        return key in self.keys(file)

    def take(self, file: str, key: str) -> Tensor:
        """An array that enters a comparison, as a tensor."""
        if not self.has(file, key):
            raise KeyError(f"{file}.npz has no array {key}")
        self.used.add(f"{file}:{key}")
        return torch.from_numpy(self._files[file][key])

    def json(self, name: str) -> Any:
        """A JSON file of the folder, None if it is not there."""
        path = self.folder / name
        if not path.exists():
            return None
        self.used.add(name)
        return json.loads(path.read_text())

    def compare(
        self, file: str, key: str, actual: Tensor, atol: float = ATOL, rtol: float = RTOL, note: str = ""
    ) -> None:
        """Adds a row; whole numbers and truth values have to be equal. An array that is not there differs."""
        if self.has(file, key):
            self.compare_values(f"{key}{note}", actual, self.take(file, key), atol, rtol)
        else:
            self.check(key, False, f"not in {file}.npz", "recorded")

    def compare_values(
        self, name: str, actual: Tensor, expected: Tensor, atol: float = ATOL, rtol: float = RTOL
    ) -> None:
        actual = actual.detach().cpu()
        if actual.shape != expected.shape:
            shapes = f"{tuple(actual.shape)}, recorded {tuple(expected.shape)}"
            self.rows.append(Row(name, f"shape {shapes}", "equal shapes", False))
            return
        if not expected.is_floating_point():
            count = int((actual != expected).sum())
            self.rows.append(Row(name, f"{count} differ", "equal", count == 0))
            return
        difference = (actual.double() - expected.double()).abs()
        largest = float(difference.max()) if difference.numel() else 0.0
        holds = bool((difference <= atol + rtol * expected.double().abs()).all())
        self.rows.append(Row(name, f"{largest:.2e}", f"{atol:.0e} + {rtol:.0e}|x|", holds))

    def check(self, name: str, holds: bool, difference: str = "", tolerance: str = "equal") -> None:
        """Adds a row for something that is not an array."""
        self.rows.append(Row(name, difference or ("0" if holds else "differs"), tolerance, holds))

    def unchecked(self) -> list[str]:
        """Arrays and files that nothing has used."""
        found: set[str] = set()
        for path in self.folder.rglob("*"):
            name = str(path.relative_to(self.folder))
            if path.parent == self.folder and path.suffix == ".npz":
                found |= {f"{path.stem}:{key}" for key in self.keys(path.stem)}
            elif path.is_file() and name != "README.md":
                found.add(name)
        return sorted(found - self.used)
