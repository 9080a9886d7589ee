"""Produces one record as the bytes of the protocol, for what a client library refuses to send: null header values, a null
value without a key, header names that are no UTF-8.

Record batch v2 and Produce v7, as in the protocol guide (https://kafka.apache.org/protocol).
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence

from crc32c import crc32c


def _varint(number: int) -> bytes:
    zigzag = (number << 1) ^ (number >> 63)
    out = bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes([*out, zigzag])


def _sized(value: bytes | None) -> bytes:
    return _varint(-1) if value is None else _varint(len(value)) + value


def _batch(key: bytes | None, value: bytes | None, headers: Sequence[tuple[bytes, bytes | None]]) -> bytes:
    body = b"\0" + _varint(0) + _varint(0) + _sized(key) + _sized(value) + _varint(len(headers))
    body += b"".join(_sized(name) + _sized(content) for name, content in headers)
    record = _varint(len(body)) + body
    now = int(time.time() * 1000)
    after_crc = struct.pack(">hiqqqhii", 0, 0, now, now, -1, -1, -1, 1) + record
    return struct.pack(">qiibI", 0, len(after_crc) + 9, -1, 2, crc32c(after_crc)) + after_crc


def produce_raw(
    servers: str,
    topic: str,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str | bytes, bytes | None]],
) -> None:
    """One record to partition 0 of `topic` of a single-node broker. Raises AssertionError with the broker's error code."""
    raw_headers = [(name.encode() if isinstance(name, str) else name, content) for name, content in headers]
    batch = _batch(key, value, raw_headers)
    name = topic.encode()
    body = struct.pack(">hhii", -1, -1, 10_000, 1) + struct.pack(">h", len(name)) + name
    body += struct.pack(">ii", 1, 0) + struct.pack(">i", len(batch)) + batch
    request = struct.pack(">hhih", 0, 7, 1, -1) + body
    host, _, port = servers.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        answer = connection.makefile("rb").read(4 + 4 + 4 + 2 + len(name) + 4 + 4 + 2)
    error = struct.unpack(">h", answer[-2:])[0]
    assert error == 0, f"the broker refused the record: error code {error}"
