"""https:// references over checked connections (fetch_network.py): no cookies, no proxies, no compression.

Use:  source = HttpsSource(settings, rules, clock, system_addresses); source.read(target, deadline, collect)
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

import httpcore
import httpx

from worker.addresses import Resolve
from worker.clients.fetch_body import Broken, Collect
from worker.clients.fetch_network import CheckedBackend, Exchange, NoSuchName
from worker.clients.fetch_uri import HttpsTarget, Rules, host_port
from worker.errors import Rejected, RejectReason, SettingsError, Unavailable
from worker.settings import ReferenceSettings, variable

_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 429)
_TRY_AGAIN = 425
_IDLE_SECONDS = 15.0
_HEADERS = [(b"User-Agent", b"assay-worker"), (b"Accept", b"image/*, */*;q=0.5"), (b"Accept-Encoding", b"identity")]


class HttpsSource:
    """Reads https:// targets. Thread-safe: connections are kept alive and shared.

    Raises SettingsError when the CA file cannot be read.
    """

    def __init__(self, settings: ReferenceSettings, rules: Rules, clock: Callable[[], float], resolve: Resolve) -> None:
        self._rules = rules
        self._clock = clock
        self._max_redirects = settings.max_redirects
        self._exchange = Exchange()
        self._pool = httpcore.ConnectionPool(
            ssl_context=_ssl_context(settings),
            max_connections=None,  # the callers' pool is the bound
            max_keepalive_connections=settings.concurrency,
            keepalive_expiry=_IDLE_SECONDS,
            network_backend=CheckedBackend(
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
            except NoSuchName as error:
                if target.exact:
                    raise Unavailable("storage", f"{target}: {error}") from error
                # The operator vouches for names on the list, not for whatever a producer puts before a wildcard.
                raise Broken(f"{target}: {error}") from error
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                raise Unavailable("storage", f"{target} cannot be reached: {_reason(error)}") from error
            except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.RemoteProtocolError) as error:
                if isinstance(error, httpcore.TimeoutException):
                    raise Unavailable("storage", f"{target} does not answer in time: {_reason(error)}") from error
                if self._exchange.received_bytes:
                    raise Broken(f"{target} broke off: {_reason(error)}") from error
                if self._exchange.connected:
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
            if status in _BUSY or status >= 500:
                raise Unavailable("storage", f"{target} answers {status}")
            if status == _TRY_AGAIN:
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
