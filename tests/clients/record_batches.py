"""Record batches written by hand, as no client library would: for tests of what reads them and of what brokers take.

Record batch v2 as in the protocol guide (https://kafka.apache.org/documentation/#recordbatch).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

from crc32c import crc32c
from kafka import codec

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
RawHeaders = Sequence[tuple[bytes | None, bytes | None]]


@dataclass(frozen=True)
class Raw:
    """One record as it stands on the wire. `delta`: its offset's distance from the batch's first, its number by
    default.
    """

    value: bytes | None
    key: bytes | None = None
    headers: RawHeaders = ()
    delta: int | None = None
    behind: bytes = b""


def varint(number: int) -> bytes:
    zigzag = (number << 1) ^ (number >> 63)
    out = bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes([*out, zigzag])


def sized(value: bytes | None) -> bytes:
    return varint(-1) if value is None else varint(len(value)) + value


def record_bytes(record: Raw, number: int) -> bytes:
    body = b"\0" + varint(0) + varint(number if record.delta is None else record.delta)
    body += sized(record.key) + sized(record.value) + varint(len(record.headers))
    body += b"".join(sized(name) + sized(content) for name, content in record.headers) + record.behind
    return varint(len(body)) + body


def batch_bytes(
    records: Sequence[Raw | bytes],
    *,
    packed: str = "none",
    timestamp_ms: int | None = None,
    behind: bytes = b"",
    first: int = 0,
    crc: int | None = None,
    attributes: int = 0,
    producer_id: int = -1,
) -> bytes:
    """`records`, or their bytes, as a batch; `behind` stands after the packed records; `crc` instead of the right
    one.
    """
    body = b"".join(
        entry if isinstance(entry, bytes) else record_bytes(entry, number) for number, entry in enumerate(records)
    )
    if packed != "none":
        body = getattr(codec, f"{packed}_encode")(body)
    now = int(time.time() * 1000) if timestamp_ms is None else timestamp_ms
    count = len(records)
    after_crc = struct.pack(
        ">hiqqqhii", CODECS[packed] | attributes, count - 1, now, now, producer_id, 0 if producer_id >= 0 else -1,
        0 if producer_id >= 0 else -1, count,
    ) + body + behind  # fmt: skip
    checksum = crc32c(after_crc) if crc is None else crc
    return struct.pack(">qiibI", first, len(after_crc) + 9, -1, 2, checksum) + after_crc
