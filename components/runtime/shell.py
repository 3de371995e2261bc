"""What stands around a step on the command line and in a pod alike."""

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crossearth.data.common.errors import InputError

# what a disk, its owner or what lies on it refuses, and what may be done
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
    """Around a step: what a disk or its owner refuses becomes InputError."""
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
