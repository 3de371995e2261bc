"""Files that a reader never sees half-written, and the hashes that identify them."""

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rich.filesize import decimal

from crossearth.data.common.errors import InputError

PATIENCE_S = 60.0  # a pod that was told to leave saves what it has, while the next one is there already
AGAIN = "bring the file back, or make it again"

log = logging.getLogger(__name__)


def fsync_dir(directory: Path) -> None:
    """Makes a rename inside `directory` survive a power loss."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def file_lock(path: Path, doing: str = "") -> Iterator[None]:
    """Keeps other processes that write `path` out, and waits for one that is at it.

    Args:
        doing: what takes so long that no other process should wait for its end: "a training of deepglobe".

    Raises:
        InputError: another process that said what it is doing still does it after `PATIENCE_S` seconds.
    """
    lock = path.with_name(f".{path.name}.lock")
    patience = time.monotonic() + PATIENCE_S if doing else math.inf
    while True:
        with lock.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _wait(file, path, doing, patience)
            if not _is_open(lock, file):
                continue  # the other process removed what this one waited for
            file.truncate(0)
            if doing:
                with suppress(OSError):  # a full disk takes no words
                    os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            try:
                yield
            finally:
                lock.unlink()
            return


def _wait(lock: IO[str], path: Path, doing: str, patience: float) -> None:
    """Takes the lock that another process has."""
    if not doing:
        log.warning("%s: waiting for another process that writes it", path)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return
    lock.seek(0)
    other = f"{doing} is running already: {lock.read() or 'another process'}"
    log.warning("%s: %s; waiting up to %.0f s for its end", path, other, patience - time.monotonic())
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > patience:
                raise InputError(other, where=path, next_step="wait for its end, or stop it") from error
        time.sleep(0.1)


def _is_open(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A write that fails does not say where it wrote: this does."""
    try:
        yield
    except OSError as error:
        if error.errno:
            error.filename = error.filename or os.fspath(path)
        raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is synced and renamed to `path`, else removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path), _naming(path):
        partial = path.with_name(f".{path.name}.partial")
        partial.unlink(missing_ok=True)  # a killed process left it
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    fsync_dir(path.parent)


@contextmanager
def partial_dir(path: Path) -> Iterator[Path]:
    """Yields an empty hidden folder beside `path`, gone at the end."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path), _naming(path):
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # a killed process left it
        partial.mkdir()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`; on success it takes the place of `path`, else it is removed."""
    with partial_dir(path) as partial:
        yield partial
        replace_dir(partial, Path(path))


def replace_dir(partial: Path, path: Path) -> None:
    """Moves the finished folder `partial` to `path`, on the same disk, in place of what was there."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    retired = path.with_name(f".{path.name}.retired")
    shutil.rmtree(retired, ignore_errors=True)  # a killed process left it
    if path.exists():
        path.replace(retired)
    partial.replace(path)
    shutil.rmtree(retired, ignore_errors=True)
    fsync_dir(path.parent)


def require_free(folder: Path, num_bytes: int, what: str) -> None:
    """Refuses to begin what the disk cannot hold.

    Raises:
        InputError: less than `num_bytes` are free below `folder`; it says that `what` needs them.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise InputError(
            f"{what} needs about {decimal(num_bytes)}, {decimal(free)} are free",
            where=folder,
            next_step="free some disk, or choose another folder",
        )


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with sorted keys atomically: equal values give equal bytes. Paths become text."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=os.fspath)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: it holds something else.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}", where=path, next_step=AGAIN) from error
    if not isinstance(value, dict):
        raise InputError(
            f"JSON of a {type(value).__name__}", where=path, expected="an object", next_step=AGAIN
        )
    return value


def write_checksummed(path: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON as `write_json` does, with the digest of `values` as "digest"."""
    plain = json.loads(json.dumps(values, default=os.fspath))
    write_json(path, {**plain, "digest": digest(plain)})


def read_checksummed(path: Path) -> dict[str, Any]:
    """The values that `write_checksummed` wrote to `path`.

    Raises:
        InputError: they were changed since, or something else wrote them.
    """
    return verified(read_json(path), path)


def verified(checksummed: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What `write_checksummed` was given, of the JSON object that it wrote to `path`.

    Raises:
        InputError: it was changed since, or something else wrote it.
    """
    plain = {key: value for key, value in checksummed.items() if key != "digest"}
    if checksummed.get("digest") != digest(plain):
        raise InputError(
            "it was changed since it was written: its digest is another", where=path, next_step=AGAIN
        )
    return plain


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hex SHA-256 of a JSON value in canonical form: a run's identity is the digest of its inputs."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()
