"""Commands whose standard error is a terminal, on which long work shows its progress."""

import os
from contextlib import suppress


def shown_on(terminal: int) -> str:
    """What a terminal is told until nobody writes to it any more; its descriptor is closed then."""
    shown = b""
    with os.fdopen(terminal, "rb", buffering=0) as screen, suppress(OSError):  # EIO once nobody writes to it
        while part := screen.read(4096):
            shown += part
    return shown.decode()
