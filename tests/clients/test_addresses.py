"""Which addresses references may lead to: special ranges, embedded ones, and what the permission widens."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.addresses import forbidden

SPECIAL = (
    "0.0.0.0 10.0.0.1 100.64.0.1 127.1.2.3 169.254.169.254 172.16.0.1 192.0.0.9 192.0.2.1 192.88.99.1 "
    "192.168.1.1 198.18.0.1 203.0.113.1 224.0.0.1 240.0.0.1 255.255.255.255 "
    ":: ::1 ::127.0.0.1 ::ffff:10.0.0.1 64:ff9b::a00:1 64:ff9b:1::1 100::1 2001::1 2001:db8::1 "
    "2002:7f00:1:: 2002:a00:1::1 3fff::1 5f00::1 fc00::1 fd00::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1 "
)


@pytest.mark.parametrize("address", [*SPECIAL.split(), "no address"])
def test_special_addresses_are_forbidden(address: str) -> None:
    """Every special-purpose range is refused, embedded IPv4 addresses included."""
    assert forbidden(address) is not None


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "93.184.216.34",
        "2606:4700::1111",
        "::ffff:1.1.1.1",
        "64:ff9b::101:101",
        "2002:101:101::1",
        "2a00:1450::1",
    ],
)
def test_public_addresses_are_allowed(address: str) -> None:
    """What the internet routes may be connected to."""
    assert forbidden(address) is None


@given(st.ip_addresses())
def test_private_permission_only_widens(address: Any) -> None:
    """What is allowed without the permission is allowed with it; multicast and unspecified addresses never are."""
    strict, wide = forbidden(str(address)), forbidden(str(address), allow_private=True)
    assert strict is not None or wide is None
    if address.is_multicast or address.is_unspecified:
        assert wide is not None


@given(st.binary(min_size=4, max_size=4))
def test_embedding_changes_nothing(packed: bytes) -> None:
    """An IPv4 address wrapped in IPv6 is judged as itself."""
    plain = socket.inet_ntop(socket.AF_INET, packed)
    wrapped = [
        b"\0" * 10 + b"\xff\xff" + packed,
        bytes.fromhex("0064ff9b") + b"\0" * 8 + packed,
        b"\x20\x02" + packed + b"\0" * 10,
    ]
    for address in wrapped:
        assert forbidden(socket.inet_ntop(socket.AF_INET6, address)) == forbidden(plain)
