"""Finished parts of a map on disk: an interrupted map goes on from them, and several processes write them."""

import logging
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossearth.components.predict.outputs import Kept
from crossearth.data.common.files import digest, write_checksummed
from crossearth.data.common.shards import is_done

IDENTITY = "identity.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """One file per strip and panel, each what `outputs.keep` returns, in a hidden folder beside the map."""

    folder: Path

    @classmethod
    def of(cls, target: Path) -> "Parts":
        """The parts of a map."""
        return cls(target.with_name(f".{target.name}.parts"))

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Keeps the parts of an earlier run of the same identity, and none of another."""
        record, own = self.folder / IDENTITY, digest(identity)
        if not is_done(record, own):
            self.remove()
            write_checksummed(record, {"identity": own})
        for path in self.folder.glob("*.zip"):
            if not _is_whole(path):
                path.unlink()  # cut short by a power loss or a full disk
        found = len(list(self.folder.glob("*.zip")))
        if found:
            log.warning("%s: goes on with %d parts of an earlier run", self.folder, found)

    def remove(self) -> None:
        """Removes all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_if_empty(self) -> None:
        """Removes what holds no part."""
        if not any(self.folder.glob("*.zip")):
            self.remove()

    def has(self, strip: int, panel: int) -> bool:
        """Whether a part is there."""
        return self._path(strip, panel).exists()

    def save(self, strip: int, panel: int, kept: Kept) -> None:
        """Stores a part; a reader sees all of it or none."""
        path = self._path(strip, panel)
        partial = path.with_suffix(".partial")
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, values in kept.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.ascontiguousarray(values), allow_pickle=False)
        partial.replace(path)

    def load(self, strip: int, panel: int) -> dict[str, NDArray[Any]]:
        """What was stored of a part."""
        with np.load(self._path(strip, panel), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def _path(self, strip: int, panel: int) -> Path:
        return self.folder / f"{strip}-{panel}.zip"


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False
