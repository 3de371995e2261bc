"""A server of files that answers by ranges, or refuses as real ones do."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Literal

Mood = Literal["fine", "no ranges", "breaks"] | int  # a number is the status of every answer


class RangeServer(ThreadingHTTPServer):
    """Files of a folder; `mood` says how it answers, `sent` counts their bytes."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.sent = folder, 0
        self.mood: Mood = "fine"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that has read enough hangs up."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: RangeServer

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path, mood = self.server.folder / self.path.partition("?")[0].lstrip("/"), self.server.mood
        status = mood if isinstance(mood, int) else 200 if path.is_file() else 404
        body = path.read_bytes() if status == 200 else b""
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if asked and status == 200 and mood != "no ranges":
            first, _, last = asked.partition("-")
            if mood == "breaks" and int(first) > len(body) // 2:
                status, body = 500, b""
            else:
                stop = min(int(last or len(body)) + 1, len(body))
                status, whole, body = 206, len(body), body[int(first) : stop]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{whole}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(ConnectionError):
            if with_body:
                self.server.sent += len(body)
                self.wfile.write(body)


@contextmanager
def range_server(folder: Path) -> Iterator[RangeServer]:
    """Serves a folder."""
    with RangeServer(folder) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
