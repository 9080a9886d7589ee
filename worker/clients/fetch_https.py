"""https:// references: the address is checked where it is connected to, and one deadline covers everything.

httpcore's network backend is the seam: it looks the name up once, checks each address and connects to that very
address, so
that a second answer of the name server (DNS rebinding) is never asked for. Every read and write gets what is left of
the
deadline, so that a server which trickles cannot hold the thread longer. No cookies, no proxies, no compression.

Use:  source = HttpsSource(settings, rules, clock, system_addresses); source.read(target, collect)
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any

import httpcore
import httpx

from worker.addresses import Resolve, forbidden
from worker.clients.fetch_body import Broken, Collect
from worker.clients.fetch_uri import HttpsTarget, Rules, host_port
from worker.errors import Rejected, RejectReason, SettingsError, Unavailable
from worker.settings import ReferenceSettings, variable

_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (429, 502, 503, 504)
_TRY_AGAIN = (408, 425)
_IDLE_SECONDS = 15.0
_HEADERS = [(b"User-Agent", b"assay-worker"), (b"Accept", b"image/*, */*;q=0.5"), (b"Accept-Encoding", b"identity")]


class _Exchange(threading.local):
    """What the streams must know of the request that their thread is making; a kept-alive connection serves many."""

    deadline = 0.0
    received_bytes = 0
    connected = False


class _NoSuchName(httpcore.ConnectError):
    """The name server answers, and knows no such name."""


class HttpsSource:
    """Reads https:// targets. Thread-safe: connections are kept alive and shared.

    Raises SettingsError when the CA file cannot be read.
    """

    def __init__(self, settings: ReferenceSettings, rules: Rules, clock: Callable[[], float], resolve: Resolve) -> None:
        self._rules = rules
        self._clock = clock
        self._max_redirects = settings.max_redirects
        self._exchange = _Exchange()
        self._pool = httpcore.ConnectionPool(
            ssl_context=_ssl_context(settings),
            max_connections=None,  # the callers' pool is the bound
            max_keepalive_connections=settings.concurrency,
            keepalive_expiry=_IDLE_SECONDS,
            network_backend=_CheckedBackend(
                self._exchange, clock, resolve, allow_private=settings.allow_private_addresses
            ),
        )

    def read(self, target: HttpsTarget, deadline: float, collect: Collect) -> bytes:
        """The body. `deadline`: on the clock, for everything together, redirects included.

        Raises Rejected, Unavailable, or Broken for what is worth another try.
        """
        self._exchange.deadline = deadline
        for _ in range(self._max_redirects + 1):
            found = self._get(target, collect)
            if isinstance(found, bytes):
                return found
            if self._max_redirects == 0:
                raise Rejected(
                    RejectReason.FETCH_DENIED,
                    f"{target} redirects, which is off; {variable('references', 'max_redirects')} allows it",
                    stage="intake",
                )
            target = self._redirected(target, found)
        raise Rejected(
            RejectReason.FETCH_FAILED, f"{target}: more than {self._max_redirects} redirects", stage="intake"
        )

    def close(self) -> None:
        self._pool.close()

    def _redirected(self, source: HttpsTarget, url: httpx.URL) -> HttpsTarget:
        try:
            return self._rules.https(url)
        except Rejected as rejected:
            if rejected.reason is RejectReason.BAD_REFERENCE:  # the server's fault, the reference is well-formed
                raise Rejected(
                    RejectReason.FETCH_FAILED, f"{source} redirects to nowhere: {rejected.detail}", stage="intake"
                ) from None
            raise

    def _get(self, target: HttpsTarget, collect: Collect) -> bytes | httpx.URL:
        """One hop: the body, or where it redirects to. A kept-alive connection that turns out closed costs no try."""
        while True:
            self._exchange.received_bytes = 0
            self._exchange.connected = False
            try:
                return self._exchange_once(target, collect)
            except _NoSuchName as error:
                if target.exact:
                    raise Unavailable("storage", f"{target}: {error}") from error
                # The operator vouches for names on the list, not for whatever a producer puts before a wildcard.
                raise Broken(f"{target}: {error}") from error
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                raise Unavailable("storage", f"{target} cannot be reached: {_reason(error)}") from error
            except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.RemoteProtocolError) as error:
                if self._exchange.received_bytes:
                    raise Broken(f"{target} broke off: {_reason(error)}") from error
                if self._exchange.connected or isinstance(error, httpcore.TimeoutException):
                    raise Unavailable("storage", f"{target} does not answer: {_reason(error)}") from error
            except httpcore.LocalProtocolError as error:
                raise Rejected(
                    RejectReason.BAD_REFERENCE, f"the uri cannot be requested: {_reason(error)}", stage="intake"
                ) from error

    def _exchange_once(self, target: HttpsTarget, collect: Collect) -> bytes | httpx.URL:
        url = httpcore.URL(scheme=b"https", host=target.host.encode(), port=target.port, target=target.request_target)
        headers = [(b"Host", host_port(target.host, target.port).encode()), *_HEADERS]
        with self._pool.stream("GET", url, headers=headers) as response:
            answer = {name.lower(): value for name, value in response.headers}
            status = response.status
            if status in _REDIRECTS:
                return _location(target, answer.get(b"location"))
            if status in _BUSY:
                raise Unavailable("storage", f"{target} answers {status}")
            if status in _TRY_AGAIN or status >= 500:
                raise Broken(f"{target} answers {status}")
            if not 200 <= status < 300 or status == 206:
                raise Rejected(RejectReason.FETCH_FAILED, f"{target} answers {status}", stage="intake")
            encoding = answer.get(b"content-encoding", b"identity").strip().lower()
            if encoding not in (b"", b"identity"):
                detail = (
                    f"{target} sends content-encoding {encoding.decode('latin-1')[:40]} though identity was asked for"
                )
                raise Rejected(RejectReason.FETCH_FAILED, detail, stage="intake")
            length = answer.get(b"content-length")
            return collect(response.iter_stream(), int(length) if length is not None and length.isdigit() else None)


def _location(target: HttpsTarget, location: bytes | None) -> httpx.URL:
    try:
        if location is None:
            raise ValueError("no Location")
        return target.url.join(location.decode("ascii"))
    except (ValueError, httpx.InvalidURL) as error:
        raise Rejected(RejectReason.FETCH_FAILED, f"{target} redirects to nowhere: {error}", stage="intake") from None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _ssl_context(settings: ReferenceSettings) -> ssl.SSLContext:
    path = settings.https_ca_path
    try:
        return ssl.create_default_context(cafile=None if path is None else str(path))
    except OSError as error:  # SSLError is one
        raise SettingsError(
            [f"{variable('references', 'https_ca_path')}={str(path)!r}: {error}; a PEM file is expected"]
        ) from error


class _CheckedBackend(httpcore.NetworkBackend):
    """Looks up, checks, connects: in this order, once, to the address that was checked."""

    def __init__(
        self, exchange: _Exchange, clock: Callable[[], float], resolve: Resolve, *, allow_private: bool
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
            kind = _NoSuchName if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA) else httpcore.ConnectError
            raise kind(f"its name cannot be looked up: {error.strerror}") from error
        if not addresses:
            raise _NoSuchName("its name has no address")
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

    def __init__(self, stream: httpcore.NetworkStream, exchange: _Exchange, clock: Callable[[], float]) -> None:
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


def _time_left(exchange: _Exchange, clock: Callable[[], float], error: type[httpcore.TimeoutException]) -> float:
    left = exchange.deadline - clock()
    if left <= 0:
        raise error("the deadline has passed")
    return left
