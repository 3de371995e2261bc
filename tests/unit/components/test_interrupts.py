"""Ctrl-C and SIGTERM are heard where work can stop, and nowhere else."""

import signal
import threading
from collections.abc import Iterator

import pytest

from crossearth.components.runtime.interrupts import EXIT_CODES, Interrupts


class HeardError(Exception):
    pass


def hear(number: int, _: object) -> None:
    raise HeardError(number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.signal(number, hear) for number in EXIT_CODES}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", EXIT_CODES)
def test_a_signal_waits_until_it_is_let_through(number: int) -> None:
    done = []
    with pytest.raises(HeardError, match=str(int(number))), Interrupts() as interrupts:
        interrupts.let_through()
        signal.raise_signal(number)
        done.append("what must not be cut short")
        interrupts.let_through()
        done.append("what comes after")
    assert done == ["what must not be cut short"]
    assert signal.getsignal(number) is hear


@pytest.mark.parametrize("number", EXIT_CODES)
def test_a_signal_that_nobody_asked_for_is_heard_at_the_end(number: int) -> None:
    with pytest.raises(HeardError), Interrupts() as interrupts:
        signal.raise_signal(number)
    assert interrupts.received == number
    assert signal.getsignal(number) is hear


def test_an_error_is_not_hidden_by_a_signal() -> None:
    with pytest.raises(ZeroDivisionError), Interrupts():
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is hear


def test_a_thread_leaves_signals_alone() -> None:
    found = []

    def run() -> None:
        with Interrupts() as interrupts:
            found.append(signal.getsignal(signal.SIGINT))
            interrupts.let_through()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [hear]
