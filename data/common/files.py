"""Files that a reader never sees half-written, and the hashes that identify them."""

import csv
import errno
import hashlib
import io
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
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
    file = path.with_name(f".{path.name}.lock")
    # the lock of a killed process is free at once, which a mere file would not be
    lock = FileLock(file, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _wait(lock, path, doing)
    try:
        with suppress(OSError):  # a full disk takes no words
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: whoever waits for this file sees that it is gone
        lock.release()


def _wait(lock: BaseFileLock, path: Path, doing: str) -> None:
    """Takes the lock that another process has."""
    holder = ""
    with suppress(OSError):  # it has just ended
        holder = Path(lock.lock_file).read_text()
    holder = holder or "another process"
    if not doing:
        log.warning("%s: waiting for %s, which writes it", path, holder)
        lock.acquire()
        return
    other = f"{doing} is running already: {holder}"
    log.warning("%s: %s; waiting up to %.0f s for its end", path, other, PATIENCE_S)
    try:
        lock.acquire(timeout=PATIENCE_S)
    except Timeout as error:
        raise InputError(other, where=path, next_step="wait for its end, or stop it") from error


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which nobody else writes meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path):
        try:
            yield path.with_name(f".{path.name}.partial")
        except OSError as error:  # a write that fails does not say where it wrote
            if error.errno:
                error.filename = error.filename or os.fspath(path)
            raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is synced and renamed to `path`, else removed."""
    path = Path(path)
    with _beside(path) as partial:
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
    with _beside(Path(path)) as partial:
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
    """Refuses (InputError) what the disk of `folder` cannot hold: `what` needs `num_bytes`."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise InputError(
            f"{what} needs about {decimal(num_bytes)}, {decimal(free)} are free",
            where=folder,
            next_step="free some disk, or choose another folder",
        )


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV below a header of all their keys; None and what a row lacks are empty, floats exact."""
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows as a table of Markdown, cells as they stand."""
    from tabulate import tabulate

    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(cells, list(columns), tablefmt="github", disable_numparse=True)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with sorted keys atomically: equal values give equal bytes. Paths become text."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=os.fspath)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; InputError where it holds something else."""
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
    """The values that `write_checksummed` wrote to `path`; InputError where they were changed since."""
    return verified(read_json(path), path)


def verified(checksummed: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What `write_checksummed` was given, of what it wrote; InputError where that was changed since."""
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
