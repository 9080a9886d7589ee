"""botocore's requests over our own connections: a deadline for everything, where botocore knows one for each read.

A storage that sends a byte now and then would hold its thread for hours. `before-send` is botocore's own seam for
another transport. Proxies of the environment are not asked, as for https:// references.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import httpcore

from worker.addresses import system_addresses
from worker.clients.fetch_network import CheckedBackend, Exchange

AWAY = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.UnsupportedProtocol)
BROKEN_OFF = (httpcore.NetworkError, httpcore.RemoteProtocolError)  # behind the beginning of a body
_IDLE_S = 15.0


class S3Transport:
    """Sends what botocore has signed. Thread-safe; `deadline` is the thread's own and is set before each call."""

    def __init__(self, clock: Callable[[], float], make_response: Callable[..., Any], most_idle: int) -> None:
        self._make_response = make_response
        self._exchange = Exchange()
        self._pool = httpcore.ConnectionPool(
            ssl_context=ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE")),
            max_connections=None,
            max_keepalive_connections=most_idle,
            keepalive_expiry=_IDLE_S,
            # The operator names the endpoint: it may be a private one.
            network_backend=CheckedBackend(self._exchange, clock, system_addresses, allow_private=True),
        )

    @property
    def deadline(self) -> float:
        return self._exchange.deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        self._exchange.deadline = deadline

    def send(self, request: Any, **_event: Any) -> Any:
        """The answer to an AWSPreparedRequest, its body not read yet. Raises what is in `AWAY`."""
        url = httpcore.URL(request.url)
        port = f":{url.port}" if url.port is not None else ""
        headers = [(b"Host", url.host + port.encode())]
        headers += [(_bytes(name), _bytes(value)) for name, value in request.headers.items() if name.lower() != "host"]
        response = self._pool.handle_request(httpcore.Request(request.method, url, headers=headers))
        answered = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
        return self._make_response(request.url, response.status, answered, _Body(response))

    def close(self) -> None:
        self._pool.close()


class _Body:
    """A response's body as botocore reads urllib3's: by pieces of at most `amt` bytes, or all of it."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response
        self._chunks = response.iter_stream()
        self._rest = b""

    def read(self, amt: int | None = None) -> bytes:
        if amt is None:
            whole = b"".join([self._rest, *self._chunks])
            self._rest = b""
            return whole
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = chunk
        piece, self._rest = self._rest[:amt], self._rest[amt:]
        return piece

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        try:
            while piece := self.read(64 * 1024):
                yield piece
        finally:
            self.close()

    def close(self) -> None:
        self._response.close()


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")
