"""Fetched bytes -> records, whatever the bytes are."""

from __future__ import annotations

import gzip
import hashlib
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.record.memory_records import MemoryRecordsBuilder

from tests.clients.record_batches import CODECS, Raw, batch_bytes, sized, varint
from worker.clients import kafka_unpack
from worker.clients.kafka_batches import Place, aborts, batch_records, read_batch, split
from worker.contract import Record

MAX_BYTES = 1024 * 1024
LATIN = "größe".encode("latin-1")


def read(data: bytes, position: int = 0, end: int = 1_000_000, max_bytes: int = MAX_BYTES) -> list[Record]:
    """The records of a fetch, read as the fetcher does."""
    found: list[Record] = []
    for piece in split(memoryview(data)):
        place = Place("t", 0, found[-1].offset + 1 if found else position, end)
        found += batch_records(read_batch(piece, place), place, max_bytes)
    return found


@pytest.mark.parametrize("packed", CODECS)
def test_reads_what_kafka_python_writes(packed: str) -> None:
    """Keys, null values, empty values, headers and timestamps, in every codec."""
    builder = MemoryRecordsBuilder(2, CODECS[packed], 1_000_000)
    for number in range(20):
        value = None if number == 3 else bytes([number]) * number * 500
        builder.append(
            1_700_000_000_000 + number, b"k%d" % number if number % 2 else None, value, [("h", b"v"), ("n", None)]
        )
    builder.close()
    records = read(bytes(builder.buffer()))
    assert [record.offset for record in records] == list(range(20))
    assert [record.timestamp_ms for record in records] == [1_700_000_000_000 + number for number in range(20)]
    assert records[3].value is None and records[4].value == b"\x04" * 2000
    assert records[1].key == b"k1" and records[2].key is None
    assert all(record.headers == [("h", b"v"), ("n", None)] and not record.unreadable for record in records)


@pytest.mark.parametrize("packed", CODECS)
@pytest.mark.parametrize("name", [LATIN, b"\xff\xfe", b"a\x80", b"\xed\xa0\x80", b"", b"\0"])
def test_a_header_name_of_any_bytes_is_kept(packed: str, name: bytes) -> None:
    """The record is read, its neighbours too, and the name gives its bytes back."""
    plain = Raw(b"value", headers=[(b"ce_id", b"1")])
    records = read(batch_bytes([plain, Raw(b"odd", headers=[(name, b"1"), (b"ce_id", b"2")]), plain], packed=packed))
    assert [record.unreadable for record in records] == ["", "", ""]
    assert records[1].headers[0][0].encode("utf-8", "surrogateescape") == name
    assert records[1].header("ce_id") == b"2"


def test_a_damaged_record_costs_itself() -> None:
    """A field longer than its record, a null name, a count that lies: the others are read, and what was there is
    kept.
    """
    broken = [
        Raw(b"value", key=b"k", headers=[(None, b"1")]),
        Raw(b"value", key=b"k", headers=[(b"a", b"1")], behind=b""),
        b"\x0c" + b"\0" + b"\0" + b"\x02" + b"\x7e" + b"ab",  # six bytes whose key has 63
    ]
    records = read(batch_bytes([Raw(b"good"), *broken, Raw(b"good")]))
    assert [record.offset for record in records] == [0, 1, 2, 3, 4]
    assert [bool(record.unreadable) for record in records] == [False, True, False, True, False]
    assert records[1].value == b"value" and records[1].key == b"k"
    assert records[4].value == b"good"


@pytest.mark.parametrize("packed", [name for name in CODECS if name != "none"])
def test_a_batch_that_cannot_be_unpacked_gives_each_offset_once(packed: str) -> None:
    """What can be unpacked before the damage is read; the rest is told of, offset by offset."""
    whole = bytearray(batch_bytes([Raw(bytes([n]) * 100) for n in range(5)], packed=packed))
    data = batch_bytes([b""] * 5, behind=bytes(whole[61:])[:-30], attributes=CODECS[packed])
    records = read(data + batch_bytes([Raw(b"next")], first=5))
    assert [record.offset for record in records] == [0, 1, 2, 3, 4, 5]
    assert records[4].unreadable and records[4].value == b"" and records[5].value == b"next"


def test_bytes_behind_a_gzip_stream_are_ignored() -> None:
    """As Java's reader, so that brokers take such batches."""
    records = read(batch_bytes([Raw(b"value")], packed="gzip", behind=b"\0\0junk"))
    assert records[0].value == b"value" and not records[0].unreadable


def test_two_members_of_gzip_are_one_stream() -> None:
    """The second half of the records stands in the second member."""
    whole = batch_bytes([Raw(b"a" * 50), Raw(b"b" * 50)])[61:]
    body = gzip.compress(whole[:70]) + gzip.compress(whole[70:])
    records = read(batch_bytes([b""] * 2, behind=body, attributes=CODECS["gzip"]))
    assert [record.value for record in records] == [b"a" * 50, b"b" * 50]


def test_a_wrong_checksum_may_heal_and_names_its_offsets() -> None:
    """Damaged on the way or on the disk: the batch says which, as far as its offsets are possible."""
    data = batch_bytes([Raw(b"a"), Raw(b"b")], first=10, crc=1)
    batch = read_batch(memoryview(data), Place("t", 0, 10, 12))
    assert batch.may_heal and (batch.first, batch.last) == (10, 11)
    assert read_batch(memoryview(data), Place("t", 0, 10, 11)).last == 10, "beyond the end of the partition"
    assert [record.offset for record in read(data, position=11, end=12)] == [11]


def test_offsets_that_repeat_or_run_away_are_counted() -> None:
    """Brokers do not compare the deltas of batches that are not packed."""
    for deltas in ([0, 0, 0], [2, 1, 0], [0, 70_000, 1], [-5, 1, 2]):
        records = read(batch_bytes([Raw(b"%d" % delta, delta=delta) for delta in deltas], first=100), position=100)
        assert [record.offset for record in records] == [100, 101, 102]


def test_a_fetch_in_the_middle_of_a_batch_begins_there() -> None:
    """Packed batches come whole."""
    assert [record.offset for record in read(batch_bytes([Raw(b"v")] * 5, packed="lz4"), position=3)] == [3, 4]


@pytest.mark.parametrize("timestamp_ms", [-1, -7])
def test_no_timestamp_is_minus_one(timestamp_ms: int) -> None:
    """-1 is none in the protocol; what else is below zero is none either."""
    assert read(batch_bytes([Raw(b"v"), Raw(b"v")], timestamp_ms=timestamp_ms))[1].timestamp_ms == -1


@pytest.mark.parametrize(("first_ms", "delta"), [(2**62, 2**62), (5, -(2**40)), (2**63 - 1, 1)])
def test_a_timestamp_that_is_beyond_the_protocol_s_is_none(first_ms: int, delta: int) -> None:
    """A record's distance from its batch's time may lead where no field of the protocol does."""
    record = b"\0" + varint(delta) + varint(0) + sized(None) + sized(b"v") + varint(0)
    only = read(batch_bytes([varint(len(record)) + record], timestamp_ms=first_ms))[0]
    assert (only.timestamp_ms, only.value, only.unreadable) == (-1, b"v", "")


@pytest.mark.parametrize("packed", ["gzip", "lz4", "zstd"])
def test_a_value_too_long_to_keep_is_passed_over(packed: str) -> None:
    """Its size and hash are known, its key and headers stay, its neighbours are read, and memory never holds it."""
    long = bytes(40_000_000)
    data = batch_bytes([Raw(b"a"), Raw(long, key=b"k", headers=[(b"ce_id", b"x")]), Raw(b"c")], packed=packed)
    tracemalloc.start()
    records = read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [record.value for record in records] == [b"a", b"", b"c"]
    assert records[1].omitted is not None and records[1].omitted.size_bytes == len(long)
    assert records[1].omitted.sha256 == hashlib.sha256(long).hexdigest()
    assert records[1].key == b"k" and records[1].header("ce_id") == b"x"
    assert peak < 4 * MAX_BYTES


def test_a_batch_is_not_unpacked_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands before the bound is read; the rest is told of."""
    monkeypatch.setattr(kafka_unpack, "MAX_UNPACKED_BYTES", 3_000_000)
    records = read(batch_bytes([Raw(b"a"), Raw(bytes(40_000_000)), Raw(b"c")], packed="zstd"))
    assert [bool(record.unreadable) for record in records] == [False, True, True]


def test_a_header_list_that_would_fill_the_memory_is_cut() -> None:
    """Two bytes each on the wire: the first are kept, the rest is passed over."""
    records = read(batch_bytes([Raw(b"v", headers=[(b"id", b"1"), *[(b"", None)] * 20_000]), Raw(b"w")], packed="gzip"))
    assert [(record.value, record.unreadable) for record in records] == [(b"v", ""), (b"w", "")]
    assert len(records[0].headers) == 10_000 and records[0].header("id") == b"1"


def test_a_key_that_would_fill_the_memory_is_not_read() -> None:
    """Nothing stands before it: the record says so, and the next one is read."""
    records = read(batch_bytes([Raw(b"v", key=bytes(2 * MAX_BYTES)), Raw(b"w")], packed="zstd"))
    assert f"a key of {2 * MAX_BYTES} bytes" in records[0].unreadable
    assert (records[0].key, records[0].value, records[1].value) == (None, None, b"w")


def test_markers_of_transactions_are_told_apart() -> None:
    """Version 0, type 0 for aborted and 1 for committed; a damaged marker aborts nothing."""
    place = Place("t", 0, 0, 10)
    for key, expected in ((b"\0\0\0\0", True), (b"\0\0\0\1", False), (b"\0", False), (None, False)):
        batch = read_batch(memoryview(batch_bytes([Raw(None, key=key)], attributes=0x30, producer_id=7)), place)
        assert batch.is_control and batch.is_transactional
        assert aborts(batch) is expected


@settings(max_examples=300)
@given(st.data())
def test_whatever_the_bytes_each_offset_comes_once(data: st.DataObject) -> None:
    """Flipped, cut and grown batches: no exception, offsets that only grow, and none before the place asked for."""
    packed = data.draw(st.sampled_from(sorted(CODECS)))
    whole = bytearray(
        batch_bytes([Raw(b"value%d" % n, key=b"k", headers=[(b"h", b"v")]) for n in range(3)], packed=packed)
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    if data.draw(st.booleans()):
        del whole[cut:]
    position = data.draw(st.integers(0, 4))
    offsets = [record.offset for record in read(bytes(whole), position=position, end=100)]
    assert offsets == sorted(set(offsets))
    assert all(offset >= position for offset in offsets)
