"""The only file that knows rasterio's private modules: errors of GDAL, and what GDAL tells the loggers."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rasterio._err import CPLE_BaseError as GdalError  # errors that rasterio does not translate

__all__ = ["GdalError", "hearing"]

LOGGERS = ("rasterio._err", "rasterio._env")


class _Listener(threading.local):
    """Collects GDAL's warnings of this thread, and the errors that rasterio logs without raising them."""

    said: list[str] | None = None
    silent = False

    def take(self, record: logging.LogRecord) -> bool:
        """Filter of a logger; outside `hearing` each record goes on as it would without this filter."""
        if self.said is not None and record.levelno >= logging.INFO:
            self.said.append(str(record.args[-1] if isinstance(record.args, tuple) else record.msg))
            if self.silent:
                return False
        return record.levelno >= logging.getLogger("rasterio").getEffectiveLevel()


_LISTENER = _Listener()


@contextmanager
def hearing(said: list[str], silent: bool = False) -> Iterator[None]:
    """Adds to `said` what GDAL says in this thread meanwhile; `silent` = to nobody else."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.addFilter(_LISTENER.take)
        if not logger.isEnabledFor(logging.INFO):
            logger.setLevel(logging.INFO)
    _LISTENER.said, _LISTENER.silent = said, silent
    try:
        yield
    finally:
        _LISTENER.said = None
