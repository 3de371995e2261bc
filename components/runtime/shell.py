"""What surrounds a step, both on the command line and in a pod."""

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crossearth.data.common.errors import InputError

# errors of the file system, and what a user can do about each
REFUSALS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some disk, then run the command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder that you may write to"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
        "a file lies where a folder should, or a folder where a file should: move it away",
    ),
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def refusals() -> Iterator[None]:
    """Turns errors of the file system in a step into InputError."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise InputError(
            error.strerror or str(error),
            where=error.filename2 or error.filename or Path.cwd(),
            next_step=REFUSALS[error.errno],
        ) from error


def quieten() -> None:
    """Turns off rasterio's warning of images without a place on the ground: PNG and JPEG have none."""
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")
