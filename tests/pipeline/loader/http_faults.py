"""A real HTTP server with range requests, whose faults are chosen by the test.

`server.faults` is a list: each request takes the first. `None` or an empty list answers properly. A number is
a status; "stall" sends the headers and then nothing until the server stops or `release` is set; "short" sends
half of the promised bytes; "less" promises and sends half of the range; "reset" resets the connection before
the headers; "whole" ignores the range. With `forever` set, every request has that fault.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = int | str | None


class FaultyServer:
    """Serves `files` (path to content) and records what was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.faults: list[Fault] = []
        self.forever: Fault = None
        self.head_fault: int | None = None
        """Status of every HEAD."""
        self.requests: list[tuple[str, str]] = []
        """Path and Range header of each GET, in order of arrival."""
        self.release = threading.Event()
        """Set to end all stalls."""
        self._arrived = threading.Condition()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            def do_HEAD(self) -> None:
                content = server.files.get(self.path)
                self.send_response(server.head_fault or (404 if content is None else 200))
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(content or b"")))
                self.send_header("Connection", "close")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = False  # server_close joins them
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that hangs up is what some tests are about

        self._httpd = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return f"http://127.0.0.1:{self._httpd.server_address[1]}"

    def wait_for(self, num_requests: int) -> None:
        """Return when so many GETs have arrived."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.requests) >= num_requests, timeout=60)

    def close(self) -> None:
        """End the server and all its threads."""
        self.release.set()
        self._httpd.shutdown()
        self._thread.join()
        self._httpd.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """One GET, with the fault whose turn it is."""
        asked = handler.headers.get("Range", "")
        with self._arrived:
            self.requests.append((handler.path, asked))
            fault = self.faults.pop(0) if self.faults else self.forever
            self._arrived.notify_all()
        if fault == "reset":
            # Linger 0: the kernel sends RST instead of FIN.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            handler.close_connection = True
            return
        content = self.files.get(handler.path.split("?")[0])
        status = fault if isinstance(fault, int) else 404 if content is None else 206 if asked else 200
        if isinstance(fault, int) or content is None:
            _send(handler, status, b"", 0)
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        if match is None and fault == "short":
            _send(handler, 200, content[: len(content) // 2], len(content))
            return
        if match is None or fault == "whole":
            _send(handler, 200, content, len(content))
            return
        start, end = int(match[1]), min(int(match[2]) + 1, len(content))
        if start >= len(content):
            _send(handler, 416, b"", 0)
            return
        body = content[start:end]
        if fault == "stall":
            _send(handler, 206, body[:10], len(body), start, len(content))
            self.release.wait()
        elif fault == "short":
            _send(handler, 206, body[: len(body) // 2], len(body), start, len(content))
        elif fault == "less":
            body = body[: len(body) // 2]
            _send(handler, 206, body, len(body), start, len(content))
        else:
            _send(handler, 206, body, len(body), start, len(content))


def _send(
    handler: BaseHTTPRequestHandler, status: int, body: bytes, promised: int, start: int = 0, total: int = 0
) -> None:
    handler.send_response(status)
    if status == 206:
        handler.send_header("Content-Range", f"bytes {start}-{start + promised - 1}/{total}")
    handler.send_header("ETag", '"1"')
    handler.send_header("Content-Length", str(promised))
    # An idle connection would keep the handler's thread, and so close(), waiting.
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(body)
    handler.wfile.flush()


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[FaultyServer]:
    """A server of `files` for the length of a with block."""
    server = FaultyServer(files)
    try:
        yield server
    finally:
        server.close()
