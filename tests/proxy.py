"""A server that stands before another one and spoils some of its answers."""

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Literal

Fault = Literal["drop", "delay", "truncate", "corrupt"]
FAULTS: tuple[Fault, ...] = ("drop", "delay", "truncate", "corrupt")
DELAY_S = 0.3


class Proxy(ThreadingTCPServer):
    """Hands what it is asked to the server at `port`, and spoils a `share` of the pieces that come back.

    Attributes:
        port: of the server behind; may be changed while connections come in.
        faults: drop = nothing more comes, truncate = half of the piece is the last, corrupt = one bit is
            another, delay = it comes `delay_s` late.
        share: 0..1 of pieces; 0 = none.
        spoilt: how many were.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, port: int, faults: tuple[Fault, ...] = FAULTS, share: float = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.port, self.faults, self.share, self.spoilt = port, faults, share, 0
        self.delay_s = DELAY_S
        self._random = random.Random(0)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def spoil(self, piece: bytes) -> tuple[bytes, bool]:
        """The piece as the client gets it, and whether the connection lives on."""
        if self._random.random() >= self.share:
            return piece, True
        self.spoilt += 1
        fault = self._random.choice(self.faults)
        if fault == "delay":
            time.sleep(self.delay_s)
        elif fault == "drop":
            return b"", False
        elif fault == "truncate":
            return piece[: len(piece) // 2], False
        else:
            place = self._random.randrange(len(piece))
            piece = (
                piece[:place] + bytes([piece[place] ^ 1 << self._random.randrange(8)]) + piece[place + 1 :]
            )
        return piece, True


class _Relay(BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.server.port)) as behind:
            threading.Thread(target=self._ask, args=(behind,), daemon=True).start()
            alive = True
            while alive and (piece := behind.recv(2**16)):
                piece, alive = self.server.spoil(piece)
                self.request.sendall(piece)

    def _ask(self, behind: socket.socket) -> None:
        with suppress(OSError):
            while piece := self.request.recv(2**16):
                behind.sendall(piece)
            behind.shutdown(socket.SHUT_WR)


@contextmanager
def before(port: int) -> Iterator[Proxy]:
    """A proxy before the server at `port` that spoils nothing yet."""
    with Proxy(port) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
