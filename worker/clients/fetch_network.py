"""Connections for fetching: the address is checked where it is connected to, and one deadline covers everything.

httpcore's network backend is the seam: it looks the name up once, checks each address and connects to that very
address, so that a second answer of the name server (DNS rebinding) is never asked for. Every read and write gets what
is left of the deadline, so that a server which trickles cannot hold the thread longer.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any

import httpcore

from worker.addresses import Resolve, forbidden
from worker.errors import Rejected, RejectReason
from worker.settings import variable


class Exchange(threading.local):
    """What the streams must know of the request that their thread is making; a kept-alive connection serves many."""

    deadline = 0.0
    received_bytes = 0
    connected = False


class NoSuchName(httpcore.ConnectError):
    """The name server answers, and knows no such name."""


class CheckedBackend(httpcore.NetworkBackend):
    """Looks up, checks, connects: in this order, once, to the address that was checked."""

    def __init__(
        self, exchange: Exchange, clock: Callable[[], float], resolve: Resolve, *, allow_private: bool
    ) -> None:
        self._exchange = exchange
        self._clock = clock
        self._resolve = resolve
        self._allow_private = allow_private
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the deadline of the exchange counts
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        self._exchange.connected = True
        addresses = self._allowed(host, port)
        failure: Exception | None = None
        for position, address in enumerate(addresses):
            # An address that swallows packets leaves time for the next one.
            share = _time_left(self._exchange, self._clock, httpcore.ConnectTimeout) / (len(addresses) - position)
            try:
                stream = self._backend.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _DeadlineStream(stream, self._exchange, self._clock)
        assert failure is not None
        raise failure

    def _allowed(self, host: str, port: int) -> list[str]:
        try:
            addresses = list(dict.fromkeys(self._resolve(host, port)))
        except socket.gaierror as error:
            kind = NoSuchName if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA) else httpcore.ConnectError
            raise kind(f"its name cannot be looked up: {error.strerror}") from error
        if not addresses:
            raise NoSuchName("its name has no address")
        reasons = {address: forbidden(address, allow_private=self._allow_private) for address in addresses}
        allowed = [address for address, reason in reasons.items() if reason is None]
        if not allowed:
            address, reason = next(iter(reasons.items()))
            raise Rejected(
                RejectReason.FETCH_DENIED,
                f"host {host} has the {reason} address {address}; "
                f"{variable('references', 'allow_private_addresses')} allows private ones",
                stage="intake",
            )
        return allowed


class _DeadlineStream(httpcore.NetworkStream):
    """A stream whose every wait ends at the deadline of the exchange, and which counts what came in."""

    def __init__(self, stream: httpcore.NetworkStream, exchange: Exchange, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._exchange = exchange
        self._clock = clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the deadline counts
        data = self._stream.read(max_bytes, _time_left(self._exchange, self._clock, httpcore.ReadTimeout))
        self._exchange.received_bytes += len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - the deadline counts
        self._stream.write(buffer, _time_left(self._exchange, self._clock, httpcore.WriteTimeout))

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - the deadline counts
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(
            ssl_context, server_hostname, _time_left(self._exchange, self._clock, httpcore.ConnectTimeout)
        )
        return _DeadlineStream(stream, self._exchange, self._clock)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _time_left(exchange: Exchange, clock: Callable[[], float], error: type[httpcore.TimeoutException]) -> float:
    left = exchange.deadline - clock()
    if left <= 0:
        raise error("the deadline has passed")
    return left
