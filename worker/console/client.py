"""Where a request comes from: the connection's address, or what a trusted proxy says of it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.requests import Request

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_IPV6_CUSTOMER_BITS = 64
_MOST_HOPS = 20


def parsed(text: str) -> Address | None:
    """An IPv4 address in IPv6's clothes is the IPv4 address; a port or a zone does not belong to it."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found


def is_among(address: Address | None, networks: Sequence[Network]) -> bool:
    return address is not None and any(address in network for network in networks)


def address(request: Request, proxies: Sequence[Network]) -> str:
    """X-Forwarded-For is read from its end, as far as those who wrote it are `proxies`: what a client sent itself
    stands before that. `?` where the connection has no address.
    """
    here = parsed(request.client.host if request.client else "")
    if here is None:
        return "?"
    hops = ",".join(request.headers.getlist("x-forwarded-for")).split(",")[-_MOST_HOPS:]
    while is_among(here, proxies) and hops:
        before = parsed(hops.pop())
        if before is None:
            break
        here = before
    return str(here)


def counted_as(text: str) -> str:
    """Whom log-ins from an address are counted for: an IPv6 customer has a whole /64."""
    found = parsed(text)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, _IPV6_CUSTOMER_BITS), strict=False))
    return text
