"""Out-of-memory errors that name the settings a user can change."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from crossearth.data.common.errors import InputError

# messages of errors other than torch's own: the CPU's allocator, CUDA's runtime, CUDA's libraries
OUT_OF_MEMORY = re.compile(r"an't allocate memory|out of memory|ALLOC_FAILED")


@contextmanager
def enough_memory(where: object, used: str, next_step: str) -> Iterator[None]:
    """An InputError where memory runs out, with what `used` it (device and numbers) and what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        ran_out = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not ran_out and not OUT_OF_MEMORY.search(str(error)):
            raise
        raise InputError(f"out of memory on {used}", where=where, next_step=next_step) from error
