"""A real TLS server on 127.0.0.1 for https:// references, which misbehaves as its paths are called."""

from __future__ import annotations

import gzip
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from worker.clients.fetch import Fetcher
from worker.contract import ImageReference
from worker.errors import Rejected

HOST = "img.example.org"


LIMIT = 100_000


BODY = bytes(range(256)) * 40


class Handler(BaseHTTPRequestHandler):
    """/status/N answers N, /ok the body; the other paths misbehave as they are called. `requests` counts the paths."""

    protocol_version = "HTTP/1.1"
    requests: Counter[str]
    headers_seen: list[dict[str, str]]
    connections: Counter[str]

    def setup(self) -> None:
        self.connections["tls"] += 1
        super().setup()

    def do_GET(self) -> None:
        self.requests[self.path] += 1
        self.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
        name = self.path.split("/")[1]
        {"ok": self.ok, "status": self.status}.get(name, getattr(self, f"serve_{name}", self.ok))()

    def answer(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def ok(self) -> None:
        self.answer(200, BODY, Set_Cookie="a=b")

    def status(self) -> None:
        self.answer(int(self.path.split("/")[2]), b"")

    def serve_redirect(self) -> None:
        self.answer(302, Location=self.path.removeprefix("/redirect/"))

    def serve_hop(self) -> None:
        self.answer(301, Location=f"/hop/{int(self.path.split('/')[2]) + 1}")

    def serve_nowhere(self) -> None:
        self.answer(302)

    def serve_declared(self) -> None:
        self.answer(200, b"", length=LIMIT + 1)
        self.close_connection = True

    def serve_endless(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chunk = b"x" * 8192
        while True:  # until the client hangs up
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    def serve_cut(self) -> None:
        self.answer(200, BODY[:100], length=len(BODY))
        self.close_connection = True

    def serve_flaky(self) -> None:
        if self.requests[self.path] < 3:
            self.serve_cut()
        else:
            self.ok()

    def serve_trickle(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n")
        self.drip(b"x" * 60)

    def serve_slowheaders(self) -> None:
        self.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Slow: very\r\n\r\nbody")

    def serve_silent(self) -> None:
        self.connections["silent"] += 1
        self.server.stop.wait(30)
        self.close_connection = True

    def serve_hangup(self) -> None:
        self.close_connection = True

    def serve_garbage(self) -> None:
        self.wfile.write(b"220 smtp.example.org ESMTP\r\n")
        self.close_connection = True

    def serve_gzip(self) -> None:
        self.answer(200, gzip.compress(b"\0" * 10_000_000), Content_Encoding="gzip")

    def serve_partial(self) -> None:
        self.answer(206, b"part")

    def drip(self, data: bytes) -> None:
        """All of `data` in about 3 seconds, no pause longer than the deadline of the tests."""
        for byte in data:
            self.wfile.write(bytes([byte]))
            self.server.stop.wait(0.05)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, context: ssl.SSLContext) -> None:
        self.stop = threading.Event()
        self.handler = type(
            "Counting", (Handler,), {"requests": Counter(), "headers_seen": [], "connections": Counter()}
        )
        super().__init__(("127.0.0.1", 0), self.handler)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


def local(_host: str, _port: int) -> list[str]:
    return ["127.0.0.1"]


Make = Callable[..., Fetcher]


def get(fetcher: Fetcher, server: Server, path: str, host: str = HOST, sha256: str | None = None) -> bytes:
    return fetcher.fetch(ImageReference(uri=f"https://{host}:{server.port}{path}", sha256=sha256))


def rejected(fetcher: Fetcher, server: Server, path: str, host: str = HOST) -> Rejected:
    with pytest.raises(Rejected) as caught:
        get(fetcher, server, path, host)
    return caught.value
