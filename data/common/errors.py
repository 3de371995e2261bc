"""The one error that means "the input is wrong"; no error shows credentials."""

import re
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

LOGIN = re.compile(r"(?<=://)(?:[^/\s]*|[^/\s:]+:\S*)@")  # a password may hold a slash
SECRET_FIELD = re.compile(r"([?&][\w.-]*(?:token|signature|password|secret|credential|key)=)[^&\s]*", re.I)


def without_credentials(text: str) -> str:
    """`text`, in whose addresses `user:password@` became `***@`, and the value of `?token=` `***`."""
    return SECRET_FIELD.sub(r"\1***", LOGIN.sub("***@", text))


def print_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A `sys.excepthook` that shows no credentials, and of wrong input what is wrong alone."""
    wrong = isinstance(error, InputError)
    text = f"error: {error}\n" if wrong else "".join(traceback.format_exception(kind, error, trace))
    print(without_credentials(text), end="", file=sys.stderr)


class InputError(ValueError):
    """Bad usage or bad input: the command line prints it without a traceback and exits with 2.

    `what` stays, for lists that name the file themselves.

    Args:
        what: what is wrong, with the offending value.
        where: file, key or tile that holds it.
        expected: what would have been right (the choices).
        next_step: what the user should do.
    """

    def __init__(self, what: str, *, where: object = "", expected: str = "", next_step: str = "") -> None:
        self.what = what
        lines = [f"{where}: {what}" if where else what]
        if expected:
            lines.append(f"  expected: {expected}")
        if next_step:
            lines.append(f"  next: {next_step}")
        super().__init__(without_credentials("\n".join(lines)))


class PartlyDoneError(RuntimeError):
    """Some of what was given could not be done, all else is: the command line says which and exits with 1.

    Args:
        what: how many of how many.
        errors: what was wrong with each.
        done: the results of all else.
    """

    def __init__(self, what: str, errors: Sequence[InputError], done: Sequence[Any]) -> None:
        super().__init__("\n".join([what, *map(str, errors)]))
        self.done = list(done)
