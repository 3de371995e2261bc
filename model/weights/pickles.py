"""Reads files written by `torch.save` without running anything that they hold.

A pickle is a program. This reader knows three kinds of words in it: tensors (rebuilt from their storages by
this file), dictionaries, and containers that training frameworks leave beside the weights, which become inert
objects that swallow their content. Any other word is refused by name before it is looked up, so nothing of
the file's choosing is ever imported or called.
"""

import math
import pickle
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor

from crossearth.data.common.errors import InputError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DICTIONARIES = {
    "collections.OrderedDict",
    "collections.defaultdict",
    "addict.addict.Dict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
}
# numpy arrays are inert too: mmengine keeps them in logs only, never in the weights.
# getattr stands for a method of HistoryBuffer in pickles of protocol 2; here it builds an inert object.
INERT = {
    "_codecs.encode",
    "builtins.getattr",
    "builtins.set",
    "mmengine.config.config.Config",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.PosixPath",
    "torch.Size",
    "torch.device",
    *(f"torch.{str(dtype).removeprefix('torch.')}" for dtype in STORAGE_DTYPES.values()),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"numpy.{name}" for name in ("bool_", "float32", "float64", "int32", "int64", "str_")),
}


class Inert:
    """An object of a known class whose content does not matter: takes whatever would build or fill it."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def add(self, item: Any) -> None: ...


class PlainDict(dict[Any, Any]):
    """A dictionary that keeps its items and drops attributes (such as a state dict's `_metadata`)."""

    __slots__ = ()

    def __init__(self, *args: Any) -> None:
        super().__init__(args[0] if args and isinstance(args[0], list | dict) else ())

    def __setstate__(self, state: Any) -> None: ...


@dataclass(frozen=True)
class Storage:
    """Where a tensor's numbers lie in the file."""

    key: str
    dtype: torch.dtype
    count: int

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a storage with a state")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file, not read yet."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a tensor with a state")


class _RebuildTensor:
    """Stands for torch._utils._rebuild_tensor_v2. A class, so that no pickle can alter it."""

    __slots__ = ()

    def __new__(cls, storage: Any, offset: Any, size: Any, stride: Any, *unused: Any) -> StoredTensor:  # type: ignore[misc]
        whole = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
        if type(storage) is not Storage or not whole:
            raise pickle.UnpicklingError("a tensor without a storage")
        if any(type(number) is not int or number < 0 for number in (offset, *size, *stride)):
            raise pickle.UnpicklingError("a tensor with wrong sizes")
        last = sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if math.prod(size) > storage.count or (math.prod(size) and offset + last >= storage.count):
            raise pickle.UnpicklingError("a tensor larger than its storage")
        return StoredTensor(storage, offset, size, stride)

    def __setstate__(self, state: Any) -> None: ...


class _RebuildParameter:
    """Stands for torch._utils._rebuild_parameter."""

    __slots__ = ()

    def __new__(cls, data: Any, *unused: Any) -> StoredTensor:  # type: ignore[misc]
        if type(data) is not StoredTensor:
            raise pickle.UnpicklingError("a parameter that is no tensor")
        return data

    def __setstate__(self, state: Any) -> None: ...


class _StorageKind:
    """Stands for a torch storage class; never called, only named by a storage's address."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a storage class with a state")


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickles tensors, dictionaries and inert containers.

    Raises:
        InputError: the stream names anything else; the name is in the message.
    """

    def __init__(self, stream: BinaryIO, where: Path) -> None:
        super().__init__(stream)
        self._stream, self._where = stream, where

    def load(self) -> Any:
        # picklers count their memos up; the memory for one far ahead would be taken at once
        start = self._stream.tell()
        for opcode, memo, place in pickletools.genops(self._stream):
            if opcode.name.endswith("PUT") and (memo or 0) > (place or 0):
                raise pickle.UnpicklingError(f"memo {memo} within {place} bytes")
        self._stream.seek(start)
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        word = f"{module}.{name}".replace("__builtin__.", "builtins.", 1)
        if word in DICTIONARIES:
            return PlainDict
        if word in INERT:
            return Inert
        if word in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            return _RebuildTensor
        if word == "torch._utils._rebuild_parameter":
            return _RebuildParameter
        if module == "torch" and name in STORAGE_DTYPES:
            return _StorageKind(STORAGE_DTYPES[name])
        raise InputError(
            f"the pickle asks for {word!r}, which is no tensor and no known container; nothing of it was run",
            where=self._where,
            expected="a checkpoint of weights",
            next_step="do not open this file with torch.load unless you trust who made it",
        )

    def persistent_load(self, pid: Any) -> Storage:
        # ("storage", class, key, device, count) and, in the format before torch 1.6, a view that nobody wrote
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise pickle.UnpicklingError("an outside reference that is no storage")
        _, kind, key, _, count = pid[:5]
        if (
            type(kind) is not _StorageKind
            or type(key) is not str
            or type(count) is not int
            or count < 0
            or (len(pid) == 6 and pid[5] is not None)
        ):
            raise pickle.UnpicklingError("a storage with a wrong address")
        return Storage(key, kind.dtype, count)


class TorchFile:
    """The contents of a file written by `torch.save`.

    Attributes:
        root: plain dictionaries, lists, numbers and strings; tensors are `StoredTensor` until read.
    """

    def __init__(self, path: Path) -> None:
        """Opens `path`.

        Raises:
            InputError: it is not such a file, is damaged, or names anything but tensors and known containers.
        """
        self.path = Path(path)
        self._storages: dict[str, Tensor] = {}
        try:
            # zipfile.is_zipfile looks for an index near the end, and raw weights may hold its bytes by chance
            with self.path.open("rb") as stream:
                zipped = stream.read(4) == b"PK\x03\x04"
            self.root: Any = self._open_zip() if zipped else self._open_legacy()
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"cannot read: {error.strerror}", where=path) from error
        except Exception as error:  # a damaged pickle fails in any way it likes
            raise self._damaged(error) from error

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Reads one tensor, in the file's dtype, on the CPU; tensors of one storage share memory.

        Raises:
            InputError: its numbers are missing or damaged.
        """
        key = stored.storage.key
        try:
            if key not in self._storages:
                self._storages[key] = self._read_zip_storage(key)
            numbers = self._storages[key].view(stored.storage.dtype)
            return torch.as_strided(numbers, stored.size, stored.stride, stored.offset)
        except Exception as error:  # a damaged archive fails in any way it likes
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> InputError:
        detail = f"{type(error).__name__}: {error}"[:200]
        return InputError(
            f"not a readable PyTorch checkpoint ({detail})",
            where=self.path,
            expected="a file written by torch.save, whole",
            next_step="compare its size with the publisher's and fetch it again",
        )

    def _open_zip(self) -> Any:
        with zipfile.ZipFile(self.path) as archive:
            indices = [
                name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1
            ]
            if len(indices) != 1:
                raise pickle.UnpicklingError("no data.pkl inside")
            self._folder = indices[0].removesuffix("data.pkl")
            if f"{self._folder}byteorder" in archive.namelist():
                order = archive.read(f"{self._folder}byteorder")
                if order != b"little":
                    raise pickle.UnpicklingError(f"byte order {order[:10]!r}, expected little")
            self._refuse_compressed(archive.getinfo(indices[0]))
            with archive.open(indices[0]) as stream:
                return RestrictedUnpickler(stream, self.path).load()  # type: ignore[arg-type]

    @staticmethod
    def _refuse_compressed(member: zipfile.ZipInfo) -> None:
        # torch never compresses: a compressed member can only be a bomb
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise zipfile.BadZipFile(f"{member.filename} is compressed")

    def _read_zip_storage(self, key: str) -> Tensor:
        with zipfile.ZipFile(self.path) as archive:
            member = archive.getinfo(f"{self._folder}data/{key}")
            self._refuse_compressed(member)
            if member.file_size > self.path.stat().st_size:
                raise zipfile.BadZipFile(f"{member.filename} is larger than the file")
            numbers = torch.empty(member.file_size, dtype=torch.uint8)
            with archive.open(member) as stream:
                _fill(numbers, stream)
                stream.read(1)  # the end of the member: its checksum is compared here
        return numbers

    def _open_legacy(self) -> Any:
        with self.path.open("rb") as stream:
            if RestrictedUnpickler(stream, self.path).load() != LEGACY_MAGIC:
                raise pickle.UnpicklingError("a pickle that torch.save did not write")
            for _ in ("protocol", "machine"):
                RestrictedUnpickler(stream, self.path).load()
            unpickler = _StorageCollector(stream, self.path)
            root = unpickler.load()
            for key in RestrictedUnpickler(stream, self.path).load():
                self._storages[key] = self._read_legacy_storage(stream, unpickler.storages[key])
        return root

    def _read_legacy_storage(self, stream: BinaryIO, storage: Storage) -> Tensor:
        count = int.from_bytes(stream.read(8), "little")
        size = count * storage.dtype.itemsize
        if count != storage.count or size > self.path.stat().st_size:
            raise pickle.UnpicklingError(f"storage {storage.key} has a wrong length")
        numbers = torch.empty(size, dtype=torch.uint8)
        _fill(numbers, stream)
        return numbers


class _StorageCollector(RestrictedUnpickler):
    """Remembers the storages: the old format keeps their numbers behind the pickle, without their types."""

    def __init__(self, stream: BinaryIO, where: Path) -> None:
        super().__init__(stream, where)
        self.storages: dict[str, Storage] = {}

    def persistent_load(self, pid: Any) -> Storage:
        storage = super().persistent_load(pid)
        return self.storages.setdefault(storage.key, storage)


def _fill(numbers: Tensor, stream: Any) -> None:
    view = numbers.numpy().data
    done = 0
    while done < len(view):
        read = stream.readinto(view[done:])
        if not read:
            raise EOFError("the file ends inside a tensor")
        done += read
