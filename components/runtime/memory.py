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
    """If memory runs out inside this block, the error says what used it and what to change.

    Args:
        used: the device, and the numbers that memory grows with.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        ran_out = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not ran_out and not OUT_OF_MEMORY.search(str(error)):
            raise
        raise InputError(f"out of memory on {used}", where=where, next_step=next_step) from error
