"""A faulty S3: moto's server behind a small HTTP proxy that spoils a share of the requests, by a fixed seed.

The kinds of fault:

    500, 502, 503   that status, with S3's XML (503 is SlowDown); the store never hears of the request
    stall           nothing is answered for `stall_s`, longer than the client's read timeout; then it is reset
    reset           the connection is reset before the answer; the store never hears of the request
    lost            the store does what was asked, and the connection is reset before the answer
    cut             the answer's Content-Length is right and its body is cut in half. Of an upload the store gets
                    half of the body and says that all is well
    short           the answer's body is cut in half, and its Content-Length says so: nobody notices but who counts
    drip            the answer's body comes at 20 bytes a second; not one of KINDS, for it would take for ever

Stalls, and answers without a body, are no different for `cut` and `short`: they are reset.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import struct
import threading
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KINDS = ("500", "502", "503", "stall", "reset", "lost", "cut", "short")

_CODES = {"500": "InternalError", "502": "BadGateway", "503": "SlowDown", "403": "AccessDenied"}
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@dataclass
class Faults:
    """Which requests go wrong. `choose` may be replaced by a test: (method, path) to a kind or None."""

    kinds: Sequence[str] = ()
    share: float = 0.0
    seed: int = 0
    stall_s: float = 0.8
    choose: Callable[[str, str], str | None] | None = None
    counts: Counter[str] = field(default_factory=Counter)
    """Faults by kind, and the number of all requests under `requests`."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each, in order of arrival."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()

    def next(self, method: str, path: str) -> str | None:
        """The fault of a request, which is counted."""
        with self._lock:
            self.counts["requests"] += 1
            self.requests.append((method, path))
            if self.choose is not None:
                kind = self.choose(method, path)
            else:
                kind = self._random.choice(self.kinds) if self._random.random() < self.share else None
            if kind is not None:
                self.counts[kind] += 1
            return kind


class FaultyS3:
    """The proxy. `faults` may be exchanged at any time; without any it only passes on."""

    def __init__(self, host: str, port: int) -> None:
        self.faults = Faults()
        self._ending = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:  # the client hung up
                    self.close_connection = True

            def pass_on(self) -> None:
                proxy._pass_on(self, host, port)

            def log_message(self, format: str, *args: object) -> None:
                pass

        for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.pass_on)

        class Server(ThreadingHTTPServer):
            daemon_threads = True  # a kept connection of a client would hold up the end
            block_on_close = False
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                pass

        self._httpd = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        """The endpoint, without a slash at the end."""
        return f"http://127.0.0.1:{self._httpd.server_address[1]}"

    def close(self) -> None:
        """Refuse connections from now on."""
        self._ending.set()
        self._httpd.shutdown()
        self._thread.join()
        self._httpd.server_close()

    def _pass_on(self, client: BaseHTTPRequestHandler, host: str, port: int) -> None:
        body = _body_of(client)
        kind = self.faults.next(client.command, client.path)
        if kind in _CODES:
            _answer_error(client, int(kind), _CODES[kind])
            return
        if kind == "stall":
            self._ending.wait(self.faults.stall_s)
        if kind in ("stall", "reset"):
            _reset(client)
            return
        if kind in ("cut", "short") and client.command == "PUT" and body:
            body, kind = body[: len(body) // 2], None
        connection = http.client.HTTPConnection(host, port, timeout=60)
        try:
            headers = {
                name: value for name, value in client.headers.items() if name.lower() != "content-length"
            }
            if body or client.command in ("PUT", "POST"):
                headers["Content-Length"] = str(len(body))
            connection.putrequest(client.command, client.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() not in ("transfer-encoding", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if kind == "lost" or (kind in ("cut", "short") and not content):
            _reset(client)
            return
        length = response.getheader("Content-Length") if client.command == "HEAD" else str(len(content))
        if kind in ("cut", "short"):
            content = content[: len(content) // 2]
        client.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                client.send_header(name, value)
        client.send_header("Content-Length", (str(len(content)) if kind == "short" else length) or "0")
        client.end_headers()
        if kind == "drip":
            with contextlib.suppress(ConnectionError):
                for index in range(len(content)):
                    client.wfile.write(content[index : index + 1])
                    self._ending.wait(0.05)
            client.close_connection = True
            return
        client.wfile.write(content)
        if kind == "cut":
            client.wfile.flush()
            client.close_connection = True


def _body_of(client: BaseHTTPRequestHandler) -> bytes:
    if client.headers.get("Expect", "").lower() == "100-continue":
        client.send_response_only(100)
        client.end_headers()
    if "chunked" not in client.headers.get("Transfer-Encoding", ""):
        return client.rfile.read(int(client.headers.get("Content-Length") or 0))
    pieces = []
    while size := int(client.rfile.readline().split(b";")[0], 16):
        pieces.append(client.rfile.read(size))
        client.rfile.readline()
    while client.rfile.readline().strip():
        pass  # trailers
    return b"".join(pieces)


def _answer_error(client: BaseHTTPRequestHandler, status: int, code: str) -> None:
    text = (
        f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>Made up.</Message></Error>"
    )
    body = b"" if client.command == "HEAD" else text.encode()
    client.send_response_only(status)
    client.send_header("Content-Type", "application/xml")
    client.send_header("Content-Length", str(len(body)))
    client.end_headers()
    client.wfile.write(body)


def _reset(client: BaseHTTPRequestHandler) -> None:
    client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close_connection = True
    client.connection.close()


def environment(url: str) -> dict[str, str]:
    """The variables that lead s3fs to a local S3, impatiently, so that the retries of the storage layer are tested.

    FSSPEC_S3 is fsspec's own way to configure s3fs: a subprocess reads it. botocore makes one attempt, not five.
    """
    config = {"connect_timeout": 1, "read_timeout": 0.5, "retries": {"max_attempts": 0}}
    return {**login(url), "FSSPEC_S3": json.dumps({"config_kwargs": config})}


def login(url: str) -> dict[str, str]:
    """The variables that lead s3fs to a local S3."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
    }


@contextmanager
def moto() -> Iterator[str]:
    """URL of a new, empty S3 of moto's, over real HTTP."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        # All of moto's servers in a process share their buckets: other tests may have left some.
        urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST")).close()
        yield url
    finally:
        server.stop()


@contextmanager
def serve() -> Iterator[FaultyS3]:
    """A new, empty S3 of moto's and the proxy before it."""
    with moto() as url:
        address = urllib.parse.urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        with contextlib.closing(FaultyS3(address.hostname, address.port)) as proxy:
            yield proxy
