"""Bytes of a fetch -> records, whatever the bytes are: what cannot be read becomes a record that says so.

kafka-python's own parser raises on a header name that is no UTF-8, on a broken batch and on bytes behind a gzip
stream, and its consumer then stands still for ever. This one is total: each offset comes out once, as a record, or as
one that is `unreadable` with the reason and with what could be had. Values too long to keep are passed over.
Record batch v2 as in the protocol's guide (https://kafka.apache.org/documentation/#recordbatch); older formats are
read by kafka-python. Pure: no network, no clock.

Use:  for data in split(fetched): for record in batch_records(read_batch(data, place), place, max_record_bytes): ...
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from kafka.record.legacy_records import LegacyRecordBatch
from kafka.record.util import calc_crc32c

from worker.clients.kafka_unpack import Broken, Unpacked
from worker.contract import Headers, Omitted, Record

_MAGIC = 2
_HEADER = struct.Struct(">qiibIhiqqqhii")
_CRC_FROM = struct.calcsize(">qiibI")
_LENGTH_ENDS = struct.calcsize(">qi")
_MAGIC_AT = struct.calcsize(">qii")
_CODEC, _APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20  # bits of the attributes
_LEGACY_MIN_BYTES = _LENGTH_ENDS + struct.calcsize(">Ibbii")
_MARKER = struct.Struct(">hh")  # of a transaction's end: version, 0 for aborted
_MAX_HEADERS = 10_000  # two bytes each on the wire, a hundred and more here: the rest is passed over
_MAX_TOLD = 10_000


@dataclass(frozen=True, slots=True)
class Place:
    """Where fetched bytes come from: `position` is the offset asked for, `end` one past the last one there is."""

    topic: str
    partition: int
    position: int
    end: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of a fetch. `problem`: why it cannot be read; its offsets are then those of its header, if possible."""

    data: memoryview
    first: int
    last: int
    problem: str = ""
    may_heal: bool = False
    """Damage on the way looks like this (a wrong checksum); another fetch may bring it whole."""
    attributes: int = 0
    magic: int = 2
    leader_epoch: int = -1
    first_timestamp_ms: int = -1
    last_timestamp_ms: int = -1
    producer_id: int = -1
    count: int = 0

    @property
    def is_control(self) -> bool:
        return bool(self.attributes & _CONTROL)

    @property
    def is_transactional(self) -> bool:
        return bool(self.attributes & _TRANSACTIONAL)


def split(data: memoryview) -> Iterator[memoryview]:
    """The batches of a fetch. A last one that is cut off comes with a later fetch, unless nothing stands before it."""
    at = 0
    while len(data) - at >= _LENGTH_ENDS:
        (length,) = struct.unpack_from(">i", data, at + _LENGTH_ENDS - 4)
        until = at + _LENGTH_ENDS + length
        if length < 0 or until > len(data):
            break
        yield data[at:until]
        at = until
    if at == 0 and len(data):
        yield data


def read_batch(data: memoryview, place: Place) -> Batch:
    """What the batch says of itself."""
    magic = data[_MAGIC_AT] if len(data) > _MAGIC_AT else -1
    if magic in (0, 1) and len(data) >= _LEGACY_MIN_BYTES:
        (only,) = struct.unpack_from(">q", data)
        return Batch(data, only, only, magic=magic)
    if magic != _MAGIC or len(data) < _HEADER.size:
        return _broken(data, place, f"{len(data)} bytes of format {magic}")
    fields = _HEADER.unpack_from(data)
    first, length, leader_epoch, _, crc, attributes, last_delta, first_ms, last_ms, producer_id, _, _, count = fields
    if length != len(data) - _LENGTH_ENDS:
        return _broken(data, place, f"{len(data)} bytes where it says {length + _LENGTH_ENDS}")
    if calc_crc32c(data[_CRC_FROM:]) != crc:
        return _broken(data, place, "its checksum is wrong")
    if last_delta < 0 or count < 0:
        return replace(_broken(data, place, f"{count} records with offsets up to {last_delta}"), may_heal=False)
    return Batch(
        data,
        first,
        first + last_delta,
        attributes=attributes,
        leader_epoch=leader_epoch,
        first_timestamp_ms=first_ms,
        last_timestamp_ms=last_ms,
        producer_id=producer_id,
        count=count,
    )


def _broken(data: memoryview, place: Place, problem: str) -> Batch:
    """The offsets that its header names, where they are possible; else the one that was asked for."""
    last = place.position
    if len(data) >= _HEADER.size:
        fields = _HEADER.unpack_from(data)
        claimed = fields[0] + fields[6]
        if fields[0] <= place.position <= claimed < place.end:
            last = claimed
    return Batch(data, place.position, last, problem=problem, may_heal=True)


def aborts(batch: Batch) -> bool:
    """Is this control batch the marker of an aborted transaction?"""
    try:
        stream = Unpacked(0, batch.data[_HEADER.size :])
        stream.begin()
        stream.read(1)
        stream.varint()
        stream.varint()
        version_and_type = _MARKER.unpack(stream.read(stream.varint())[: _MARKER.size])
    except (Broken, struct.error):
        return False
    return bool(version_and_type[1] == 0)


def batch_records(batch: Batch, place: Place, max_record_bytes: int) -> Iterator[Record]:
    """The records of a batch from `place.position` on, each offset once; of longer ones the value is passed over."""
    if batch.problem:
        yield from _unreadable(batch.first, batch.last, place, batch.problem)
    elif batch.magic < 2:
        yield from _legacy_records(batch, place)
    else:
        yield from _records(batch, place, max_record_bytes)


def _records(batch: Batch, place: Place, max_record_bytes: int) -> Iterator[Record]:
    offset = batch.first - 1
    try:
        stream = Unpacked(batch.attributes & _CODEC, batch.data[_HEADER.size :])
        for index in range(batch.count):
            stream.begin()
            found = _Found(max_record_bytes)
            try:
                found.read(stream)
            except Broken as error:
                found.problem = str(error)
            stream.end()
            # Brokers compare the deltas of packed batches alone: in others they may repeat, go back or run away.
            claimed, lowest = batch.first + found.offset_delta, offset + 1
            offset = claimed if lowest <= claimed <= batch.last - (batch.count - 1 - index) else lowest
            if offset >= place.position:
                yield found.record(offset, batch, place)
    except Broken as error:
        yield from _unreadable(offset + 1, batch.last, place, str(error))


class _Found:
    """What has been read of a record so far: all of it, or as much as there is before it breaks."""

    def __init__(self, max_bytes: int) -> None:
        self._left_bytes = max_bytes
        self.offset_delta = -1
        self._timestamp_delta_ms = 0
        self._key: bytes | None = None
        self._value: bytes | None = None
        self._headers: Headers = []
        self._omitted: Omitted | None = None
        self.problem = ""

    def read(self, stream: Unpacked) -> None:
        """Raises Broken; what was found before stays."""
        stream.read(1)  # attributes: none are defined
        self._timestamp_delta_ms = stream.varint()
        self.offset_delta = stream.varint()
        self._key = self._nullable(stream, "key")
        size = stream.varint()
        if size > self._left_bytes:
            self._value, self._omitted = b"", Omitted(size, stream.skip(size))
        elif size >= 0:
            self._value = self._bytes(stream, size)
        count = stream.varint()
        if count < 0:
            raise Broken(f"{count} headers")
        for _ in range(min(count, _MAX_HEADERS)):
            name = self._nullable(stream, "header")
            if name is None:
                raise Broken("a header without a name")
            self._headers.append((header_name(name), self._nullable(stream, "header")))

    def _nullable(self, stream: Unpacked, what: str) -> bytes | None:
        size = stream.varint()
        if size > self._left_bytes:
            raise Broken(f"a {what} of {size} bytes")
        return None if size < 0 else self._bytes(stream, size)

    def _bytes(self, stream: Unpacked, size: int) -> bytes:
        self._left_bytes -= size
        return bytes(stream.read(size))

    def record(self, offset: int, batch: Batch, place: Place) -> Record:
        if batch.attributes & _APPEND_TIME:
            timestamp_ms = batch.last_timestamp_ms
        else:  # -1 is "none" in the protocol, and has no deltas
            timestamp_ms = batch.first_timestamp_ms + self._timestamp_delta_ms if batch.first_timestamp_ms >= 0 else -1
        if not -1 <= timestamp_ms < 1 << 63:  # a delta may lead anywhere, also where no header field does
            timestamp_ms = -1
        return Record(
            place.topic,
            place.partition,
            offset,
            timestamp_ms,
            self._key,
            self._value,
            self._headers,
            unreadable=self.problem and f"the record is damaged: {self.problem}",
            omitted=self._omitted,
        )


def _legacy_records(batch: Batch, place: Place) -> Iterator[Record]:
    """Formats 0 and 1, without headers, which brokers before 4.0 may still hold."""
    offset = batch.first - 1
    try:
        for found in LegacyRecordBatch(batch.data, batch.magic):
            if not found.validate_crc():
                raise Broken("its checksum is wrong")
            offset = found.offset
            if offset >= place.position:
                time_ms = -1 if found.timestamp is None else found.timestamp
                yield Record(place.topic, place.partition, offset, time_ms, found.key, found.value, [])
    # Its asserts, struct.error, what the codecs raise: nothing of it says more than that these bytes are no records.
    except Exception as error:  # noqa: BLE001
        yield from _unreadable(offset + 1, max(batch.last, offset + 1), place, f"{type(error).__name__}: {error}")


def _unreadable(first: int, last: int, place: Place, problem: str) -> Iterator[Record]:
    """One record for each offset that a damaged batch stands for; one for all where they are absurdly many."""
    first = max(first, place.position)
    many = last - first >= _MAX_TOLD
    why = f"its batch is damaged: {problem}" + (f" (offsets {first} to {last})" if many else "")
    for offset in (last,) if many else range(first, last + 1):
        yield Record(place.topic, place.partition, offset, -1, None, b"", [], unreadable=why)


def header_name(raw: bytes) -> str:
    """The name as text. Kafka takes any bytes: what is no UTF-8 stays in it as surrogates, so that nothing is lost."""
    return raw.decode("utf-8", "surrogateescape")
