"""A small disk of a test's own, that fills up or may not be written to."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(path: Path) -> Iterator[Path]:
    """Mounts an empty disk at `path`; skips the test where that is not allowed."""
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "none", str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def fill(disk: Path, left: int) -> None:
    """Makes the disk so small that `left` more bytes go onto it."""
    space = os.statvfs(disk)
    used = space.f_blocks - space.f_bfree
    remount(disk, f"size={(used + -(-left // space.f_bsize)) * space.f_bsize}")
