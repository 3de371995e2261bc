"""A server of files that answers by ranges, or refuses as real ones do.

It is a process of its own: GDAL holds Python's lock while it opens a file, and a thread could not answer it.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MOOD, SENT = ".mood", ".sent"


@dataclass(frozen=True)
class RangeServer:
    """A server of the files of a folder."""

    folder: Path
    address: str

    def answer(self, mood: str) -> None:
        """How it answers from now on: "fine", "no ranges", "breaks" (amid a file), or a status."""
        (self.folder / MOOD).write_text(mood)

    @property
    def sent(self) -> int:
        """Bytes of files that it sent."""
        return sum(map(int, (self.folder / SENT).read_text().split()))


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path, mood = Path(self.path.partition("?")[0].lstrip("/")), Path(MOOD).read_text()
        status = int(mood) if mood.isdecimal() else 200 if path.is_file() else 404
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
                self.wfile.write(body)
                with Path(SENT).open("a") as file:
                    file.write(f"{len(body)}\n")


@contextmanager
def range_server(folder: Path) -> Iterator[RangeServer]:
    """Serves a folder."""
    (folder / SENT).touch()
    (folder / MOOD).write_text("fine")
    command = [sys.executable, __file__]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield RangeServer(folder, f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.kill()


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
