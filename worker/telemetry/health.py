"""One HTTP port for operators: /metrics (Prometheus or OpenMetrics), /livez and /readyz as JSON that names each check.

The standard library's server is enough for a scrape and two probes, and brings no framework into the worker.

Use:  server = HealthServer("127.0.0.1", 9464, metrics, livez, readyz); server.start(); server.port; server.stop()
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import urlsplit

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from worker.errors import SettingsError
from worker.settings import variable

Check = Callable[[], tuple[bool, dict[str, Any]]]
"""Answers (well or not, JSON-able detail by check name). Called in the server's threads: quick and thread-safe."""


class HasRegistry(Protocol):
    """Metrics of a worker or of the console."""

    @property
    def registry(self) -> CollectorRegistry: ...


_JSON = "application/json; charset=utf-8"
_log = structlog.get_logger()


class HealthServer:
    """Serves metrics and health from daemon threads.

    `livez` and `readyz` answer 200 when well and 503 when not, with `{"status": "ok" | "failing", "checks": {…}}`.
    Port 0 takes a free one; `port` is the one in use. Raises SettingsError when the address cannot be listened on.
    """

    def __init__(self, host: str, port: int, metrics: HasRegistry, livez: Check, readyz: Check) -> None:
        checks = {"/livez": livez, "/readyz": readyz}

        class Handler(_Handler):
            def respond(self, path: str) -> tuple[HTTPStatus, str, bytes]:
                if path == "/metrics":
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    return HTTPStatus.OK, content_type, encode(metrics.registry)
                if path in checks:
                    return _run(path, checks[path])
                return (
                    HTTPStatus.NOT_FOUND,
                    "text/plain; charset=utf-8",
                    b"/metrics, /livez and /readyz are served here\n",
                )

        try:
            self._server = _Server(host, port, Handler)
        except OSError as error:
            problem = f"{variable('http', 'port')}={port}: cannot listen on {host}:{port} ({error.strerror or error})"
            raise SettingsError(
                [f"{problem}; set another port, 0 for a free one, or another {variable('http', 'host')}"]
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="health", daemon=True
        )

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Close the port. Requests under way end with the process. May be called twice, and without start()."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _run(path: str, check: Check) -> tuple[HTTPStatus, str, bytes]:
    try:
        well, details = check()
    except Exception as error:  # noqa: BLE001 - a probe must answer: a check that breaks is a failing check
        _log.exception("health_check_broken", path=path)
        well, details = False, {"error": f"{type(error).__name__}: {error}"}
    body = json.dumps({"status": "ok" if well else "failing", "checks": details}, default=str) + "\n"
    return HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, _JSON, body.encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        super().__init__((str(address[0]), port), handler)

    def server_bind(self) -> None:
        """Bind without the look-up of the host's own name that http.server does: it can hang where DNS is slow."""
        if self.allow_reuse_address:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the signature is socketserver's
        _log.debug("health_request_failed", client=client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds: a client that sends nothing must not hold its thread for ever
    server_version = "assay"
    sys_version = ""

    def respond(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        raise AssertionError(f"{path}: the server's own handler answers")

    def do_GET(self) -> None:
        status, content_type, body = self.respond(urlsplit(self.path).path)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the name is http.server's

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        _log.debug("health_request", line=format % args)
