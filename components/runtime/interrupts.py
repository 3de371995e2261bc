"""Ctrl-C and SIGTERM take effect only at points where the work can stop."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Interrupts:
    """Holds SIGINT and SIGTERM back, in the main thread, until they are asked for or all is done.

    An exception out of nowhere does harm: C code that calls back into Python swallows it, and a pool forgets
    a thread whose start it cuts short, so that a file is closed which the thread still reads.

    Attributes:
        received: number of the last signal; 0 = none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in EXIT_CODES}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if error is None and self.received:
            signal.raise_signal(self.received)

    def let_through(self) -> None:
        """If a signal came, calls the handler that the program had before."""
        if self.received:
            self.__exit__(None, None, None)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number
