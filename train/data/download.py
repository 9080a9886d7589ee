"""Downloads the real images of D3 by URL: many at a time, bounded, retried, checked, in their original bytes.

A link that is dead or gives anything but a whole image is a reason in words, not an exception: a third of D3's links are gone.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from train.data.images import BadImage, decode_image

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
AGENT = "assay-train (research; D3 real images)"


@dataclass(frozen=True)
class DownloadLimits:
    """`concurrency` downloads at a time; each has `attempts` tries of `timeout_s` and at most `max_bytes`."""

    concurrency: int = 64
    timeout_s: float = 20.0
    attempts: int = 3
    backoff_s: float = 0.5
    max_bytes: int = 25_000_000
    max_redirects: int = 5
    allow_private: bool = False  # addresses that are not on the public internet


class _Refused(Exception):
    """Not worth another try; the message is the reason that is recorded."""


async def download_all(urls: Sequence[str], limits: DownloadLimits) -> list[bytes | str]:
    """For each URL its bytes (a whole image), or the reason why not: `dead link 404`, `timeout`, `not an image: …`, …"""

    async def check_address(request: httpx.Request) -> None:
        if not limits.allow_private and not await _is_public(request.url.host):
            raise _Refused("address is not public")

    gate = asyncio.Semaphore(limits.concurrency)
    async with httpx.AsyncClient(
        follow_redirects=True,
        max_redirects=limits.max_redirects,
        timeout=limits.timeout_s,
        headers={"user-agent": AGENT, "accept": "image/*,*/*;q=0.5"},
        event_hooks={"request": [check_address]},
        limits=httpx.Limits(max_connections=limits.concurrency),
    ) as client:

        async def one(url: str) -> bytes | str:
            async with gate:
                return await _download(client, url, limits)

        return list(await asyncio.gather(*(one(url) for url in urls)))


async def _is_public(host: str) -> bool:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError as error:
        raise _Refused("unknown host") from error
    return all(ipaddress.ip_address(str(address[4][0]).split("%", maxsplit=1)[0]).is_global for address in found)


async def _download(client: httpx.AsyncClient, url: str, limits: DownloadLimits) -> bytes | str:
    reason = "never tried"
    for attempt in range(limits.attempts):
        if attempt:
            await asyncio.sleep(random.uniform(0, limits.backoff_s * 2**attempt))
        try:
            async with asyncio.timeout(limits.timeout_s):
                data = await _get(client, url, limits)
            await asyncio.to_thread(decode_image, data)
        except _Refused as error:
            return str(error)
        except BadImage as error:
            return f"not an image: {error}"
        except httpx.HTTPStatusError as error:
            reason = f"server error {error.response.status_code}"
        except (TimeoutError, httpx.TimeoutException):
            reason = "timeout"
        except httpx.RemoteProtocolError:
            reason = "broke off"
        except httpx.TooManyRedirects:
            return "too many redirects"
        except (httpx.TransportError, httpx.DecodingError) as error:
            reason = f"connection: {type(error).__name__}"
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError):
            return "invalid URL"
        else:
            return data
    return reason


async def _get(client: httpx.AsyncClient, url: str, limits: DownloadLimits) -> bytes:
    async with client.stream("GET", url) as response:
        if response.status_code in _RETRIED:
            raise httpx.HTTPStatusError("try again", request=response.request, response=response)
        if response.status_code != httpx.codes.OK:
            raise _Refused(f"dead link {response.status_code}")
        if int(response.headers.get("content-length", "0") or 0) > limits.max_bytes:
            raise _Refused(f"larger than {limits.max_bytes} bytes")
        data = bytearray()
        async for chunk in response.aiter_bytes():
            data += chunk
            if len(data) > limits.max_bytes:
                raise _Refused(f"larger than {limits.max_bytes} bytes")
        return bytes(data)
