"""Downloads the real images of D3 by URL: many at a time, bounded, retried, checked, in their original bytes.

    with Downloader(DownloadLimits()) as downloader:
        downloader.submit(url, keep)   # keep(bytes of a whole image, or the reason why not)

A link that is dead or gives anything but a whole image is a reason in words, not an exception: a third of D3's links
are gone. The loop runs in a thread of its own, so that one slow link holds up nobody. A name is looked up once and its
address checked where it is connected to, as the worker does it (worker/addresses.py); proxies of the
environment are not used.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpcore
import httpx

from train.data.images import BadImage, decode_image
from worker.addresses import Resolve, forbidden, system_addresses

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_PASSING = (
    "timeout",
    "broke off",
    "connection",
    "server error",
    "name server does not answer",
    "unknown host",
    "unforeseen",
)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = [
    (b"User-Agent", b"assay-train (research; D3 real images)"),
    (b"Accept", b"image/*,*/*;q=0.5"),
    (b"Accept-Encoding", b"identity"),
]


@dataclass(frozen=True)
class DownloadLimits:
    """`concurrency` downloads at a time; each has `attempts` tries of `timeout_s` and at most `max_bytes`.

    After `max_unanswered` failures in a row that may pass the network is taken to be down.
    """

    concurrency: int = 64
    timeout_s: float = 20.0
    attempts: int = 3
    backoff_s: float = 0.5
    max_bytes: int = 25_000_000
    min_side_px: int = 32  # a smaller image is a placeholder: `tiny`
    max_redirects: int = 5
    max_unanswered: int = 50
    allow_private: bool = False  # addresses that are not on the public internet


def may_pass(reason: str) -> bool:
    """Whether a reason why a download failed may be the network's or the server's state of that hour, and not the end
    of the link.
    """
    return reason.startswith(_PASSING)


class _Refused(Exception):
    """Not worth another try; the message is the reason that is recorded."""


class _TryAgain(Exception):
    """Worth another try; the message is the reason if it was the last one."""


class Downloader:
    """Downloads in the background from `with` on; leaving it ends what is still under way.

    `resolve` looks names up.
    """

    def __init__(self, limits: DownloadLimits, *, resolve: Resolve = system_addresses) -> None:
        self._limits, self._resolve = limits, resolve
        self._loop = asyncio.new_event_loop()
        self._threads = ThreadPoolExecutor(
            limits.concurrency, "downloads"
        )  # name servers that do not answer hold up no other
        self._thread = threading.Thread(target=self._loop.run_forever, name="downloads", daemon=True)
        self._gate = asyncio.Semaphore(limits.concurrency)
        self._pool: httpcore.AsyncConnectionPool

    def __enter__(self) -> Self:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=self._limits.concurrency,
            keepalive_expiry=5.0,
            network_backend=_CheckedBackend(self._limits, self._resolve),
        )
        self._loop.set_default_executor(self._threads)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._loop.close()

    def submit(self, url: str, keep: Callable[[bytes | str], object]) -> Future[None]:
        """Begin a download; `keep` gets the bytes of a whole image or the reason why not, in the downloading thread,
        before the future is done.

        Reasons: `dead link 404`, `timeout`, `not an image: …`, `tiny: 1x1`, `address is not public`, …
        """
        return asyncio.run_coroutine_threadsafe(self._one(url, keep), self._loop)

    async def _one(self, url: str, keep: Callable[[bytes | str], object]) -> None:
        async with self._gate:
            try:
                result = await _download(self._pool, url, self._limits)
            except Exception as error:  # noqa: BLE001 - what nobody thought of costs its link, not the build
                result = f"unforeseen {type(error).__name__}: {error}"
        keep(result)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._pool.aclose()


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Looks up, checks, connects: once, to an address that was checked, so that a second answer of the name server
    counts for nothing.
    """

    def __init__(self, limits: DownloadLimits, resolve: Resolve) -> None:
        self._limits, self._resolve = limits, resolve
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - httpcore's signature; the limits count
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            found = await asyncio.to_thread(self._resolve, host, port)
        except (OSError, UnicodeError) as error:
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
                raise _TryAgain("name server does not answer") from error
            raise _Refused("unknown host") from error
        addresses = [
            address
            for address in dict.fromkeys(found)
            if forbidden(address, allow_private=self._limits.allow_private) is None
        ]
        if not addresses:
            raise _Refused("address is not public")
        failure: Exception | None = None
        for address in addresses:
            try:
                # An address that swallows packets leaves time for the next one.
                return await self._backend.connect_tcp(
                    address, port, self._limits.timeout_s / len(addresses), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        assert failure is not None
        raise failure


async def _download(pool: httpcore.AsyncConnectionPool, url: str, limits: DownloadLimits) -> bytes | str:
    reason = "never tried"
    for attempt in range(limits.attempts):
        if attempt:
            await asyncio.sleep(random.uniform(0, limits.backoff_s * 2**attempt))
        try:
            async with asyncio.timeout(limits.timeout_s):
                data = await _get(pool, _web(httpx.URL(url)), limits)
            image = await asyncio.to_thread(decode_image, data)
            if min(image.size) < limits.min_side_px:
                return f"tiny: {image.width}x{image.height}"
        except _Refused as error:
            return str(error)
        except BadImage as error:
            return f"not an image: {error}"
        except _TryAgain as error:
            reason = str(error)
        except (TimeoutError, httpcore.TimeoutException):
            reason = "timeout"
        except httpcore.RemoteProtocolError:
            reason = "broke off"
        except httpcore.NetworkError as error:
            reason = f"connection: {type(error).__name__}"
        except (httpx.InvalidURL, httpcore.UnsupportedProtocol, httpcore.LocalProtocolError, ValueError):
            return "invalid URL"
        else:
            return data
    return reason


async def _get(pool: httpcore.AsyncConnectionPool, url: httpx.URL, limits: DownloadLimits) -> bytes:
    for _ in range(limits.max_redirects + 1):
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        async with pool.stream("GET", target, headers=_HEADERS) as response:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status not in _REDIRECTS:
                return await _body(response, headers, limits)
        if not (location := headers.get("location", "").strip()):
            raise _Refused("dead link: redirect without a location")
        try:
            url = _web(url.join(location))
        except (httpx.InvalidURL, ValueError) as error:
            raise _Refused("dead link: redirect to an invalid URL") from error
    raise _Refused("too many redirects")


def _web(url: httpx.URL) -> httpx.URL:
    """`url`, if a request can be sent there. Raises httpx.InvalidURL."""
    if (
        url.scheme not in ("http", "https")
        or not url.host
        or "%" in url.host
        or (url.port is not None and not 0 < url.port < 2**16)
    ):
        raise httpx.InvalidURL("no http or https URL with a host and a possible port")
    return url


async def _body(response: httpcore.Response, headers: dict[str, str], limits: DownloadLimits) -> bytes:
    if response.status in _RETRIED:
        raise _TryAgain(f"server error {response.status}")
    if response.status != httpx.codes.OK:
        raise _Refused(f"dead link {response.status}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise _Refused("compressed though that was not asked for")
    declared = headers.get("content-length", "")
    data = bytearray()
    async for chunk in response.aiter_stream():
        data += chunk
        if len(data) > limits.max_bytes or (declared.isdigit() and int(declared) > limits.max_bytes):
            raise _Refused(f"larger than {limits.max_bytes} bytes")
    return bytes(data)
