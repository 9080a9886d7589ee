"""Which addresses of the network may be asked: names are looked up here, what is not on the public internet is told.

Whoever connects to an address that a stranger named (a reference, a link of a data set) checks it first with this.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

Resolve = Callable[[str, int], list[str]]
"""(host, port) -> addresses as text, best first. Raises socket.gaierror."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
# Global by Python's tables or by their age, not by the registries of special-purpose addresses (RFC 6890).
_SPECIAL_V4 = [ipaddress.IPv4Network(net) for net in ("192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "240.0.0.0/4")]
_SPECIAL_V6 = [ipaddress.IPv6Network(net) for net in ("2001::/23", "2001:db8::/32", "3fff::/20")]


def system_addresses(host: str, port: int) -> list[str]:
    """The addresses of `host` by the system's resolver, whose own time-outs bound the call."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def forbidden(address: str, *, allow_private: bool = False) -> str | None:
    """Why `address` may not be connected to, or None. Embedded IPv4 addresses (mapped, 6to4, NAT64) count as
    themselves.
    """
    try:
        parsed: _Address = ipaddress.ip_address(address)
    except ValueError:
        return "no address"
    if isinstance(parsed, ipaddress.IPv6Address):
        embedded = parsed.ipv4_mapped or parsed.sixtofour
        if embedded is None and parsed in _NAT64:
            embedded = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        parsed = parsed if embedded is None else embedded
    if parsed.is_unspecified or parsed.is_multicast:
        return "unspecified" if parsed.is_unspecified else "multicast"
    if allow_private:
        return None
    if parsed.is_loopback or parsed.is_link_local:
        return "loopback" if parsed.is_loopback else "link-local"
    if isinstance(parsed, ipaddress.IPv4Address):
        public = parsed.is_global and not any(parsed in net for net in _SPECIAL_V4)
    else:
        public = parsed in _GLOBAL_UNICAST and parsed.is_global and not any(parsed in net for net in _SPECIAL_V6)
    return None if public else "private or reserved"
