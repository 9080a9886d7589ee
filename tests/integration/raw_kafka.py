"""Produces record batches as the bytes of the protocol, for what a client library refuses to send: null header values,
a null value without a key, header names that are no UTF-8, damaged batches.

Produce v7, as in the protocol guide (https://kafka.apache.org/protocol).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from tests.clients.record_batches import Raw, batch_bytes


def produce_batch(servers: str, topic: str, batch: bytes, partition: int = 0) -> int:
    """One batch to a single-node broker. Returns the broker's error code."""
    name = topic.encode()
    body = struct.pack(">hhii", -1, -1, 10_000, 1) + struct.pack(">h", len(name)) + name
    body += struct.pack(">ii", 1, partition) + struct.pack(">i", len(batch)) + batch
    request = struct.pack(">hhih", 0, 7, 1, -1) + body
    host, _, port = servers.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        answer = connection.makefile("rb").read(4 + 4 + 4 + 2 + len(name) + 4 + 4 + 2)
    code: int = struct.unpack(">h", answer[-2:])[0]
    return code


def produce_raw(
    servers: str,
    topic: str,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str | bytes, bytes | None]],
) -> None:
    """One record to partition 0. Raises AssertionError with the broker's error code."""
    raw_headers = [(name.encode() if isinstance(name, str) else name, content) for name, content in headers]
    error = produce_batch(servers, topic, batch_bytes([Raw(value, key, raw_headers)]))
    assert error == 0, f"the broker refused the record: error code {error}"
