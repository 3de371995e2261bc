"""Reads files written by `torch.save` without running anything that they hold.

A pickle is a program. torch's restricted unpickler builds tensors and plain containers from it and nothing
else; what training frameworks leave beside the weights becomes inert objects here, which swallow their
content. Any other word is refused by name, so nothing of the file's choosing is ever imported or called.
"""

import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.serialization import safe_globals

from crossearth.data.common.errors import InputError

DICTIONARIES = (
    "addict.addict.Dict",
    "collections.defaultdict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
)
# numpy arrays are inert too: mmengine keeps them in logs only, never in the weights.
# getattr stands for a method of HistoryBuffer in pickles of protocol 2; here it builds an inert object.
INERT = (
    "_codecs.encode",
    "builtins.getattr",
    "mmengine.config.config.Config",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.PosixPath",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"numpy.{name}" for name in ("bool_", "float32", "float64", "int32", "int64", "str_")),
)


class Inert:
    """An object of a known class whose content does not matter: takes whatever would build or fill it."""

    __slots__ = ()

    def __new__(cls, *args: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class PlainDict:
    def __new__(cls, *args: Any) -> dict[Any, Any]:  # type: ignore[misc]
        return {}


KNOWN: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *((Inert, word) for word in INERT),
    *((PlainDict, word) for word in DICTIONARIES),
]


def read_torch_file(path: Path) -> Any:
    """What a file of `torch.save` holds: plain containers, numbers, text, and tensors on the CPU.

    Tensors keep the file's dtypes.

    Raises:
        InputError: it is not such a file, is damaged, or names anything but tensors and known containers.
    """
    try:
        # zipfile.is_zipfile looks for an index near the end, and raw weights may hold its bytes by chance
        with Path(path).open("rb") as stream:
            zipped = stream.read(4) == b"PK\x03\x04"
        if zipped:
            _check_zip(path)
        with safe_globals(KNOWN):
            # not mapped from the file: torch would not look whether a tensor is as long as its index says
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}", where=path) from error
    except Exception as error:  # a damaged file fails in any way it likes
        word = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if word:
            raise InputError(
                f"the pickle asks for {word[1]!r}, which is no tensor and no known container; "
                "nothing of it was run",
                where=path,
                expected="a checkpoint of weights",
                next_step="do not open this file with torch.load unless you trust who made it",
            ) from error
        detail = (
            str(error).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0]
        )  # torch's advice is not ours
        raise InputError(
            f"not a readable PyTorch checkpoint ({type(error).__name__}: {detail[:200]})",
            where=path,
            expected="a file written by torch.save, whole",
            next_step="compare its size with the publisher's and fetch it again",
        ) from error


def _check_zip(path: Path) -> None:
    """torch looks at no checksum; and it never compresses: a compressed member can only be a bomb."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile(f"{member.filename} is compressed")
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"bad CRC-32 of {damaged}")
