"""Records that no client library would send: each gets its way out, and those before, beside and behind it their
verdicts.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import KafkaProducer

from tests.clients.record_batches import CODECS, Raw, batch_bytes
from tests.integration.harness import Outside, Worker, samples, unlike, wait_until
from tests.integration.raw_kafka import produce_batch
from worker.clients import kafka_topics
from worker.settings import KafkaSettings

pytestmark = pytest.mark.integration
IMAGE = next(data for name, data in samples().items() if name.endswith(".jpg"))
LATIN = "größe".encode("latin-1")


def image(number: int) -> bytes:
    return unlike(IMAGE, number)


def bitmap(width: int, height: int) -> bytes:
    """A picture of one colour that compresses to next to nothing."""
    size = width * height * 3
    header = b"BM" + struct.pack("<IHHI", 54 + size, 0, 0, 54)
    return (
        header
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, size, 0, 0, 0, 0)
        + b"\xc8\x1e\x28" * (size // 3)
    )


def test_header_names_of_any_bytes_cost_nothing(outside: Outside, start_worker: Callable[..., Worker]) -> None:
    """In each codec, alone and between others: every image is judged, and a rejection gives the name back as it
    came.
    """
    worker = start_worker()
    ids: list[str] = []

    def raw(name: bytes, value: bytes | None = None) -> Raw:
        ids.append(f"odd/{len(ids)}")
        return Raw(image(len(ids)) if value is None else value, headers=[(b"ce_id", ids[-1].encode()), (name, b"1")])

    for partition, packed in enumerate(CODECS):
        batch = batch_bytes([raw(b"plain"), raw(LATIN), raw(b"\xff\x00\xfe")], packed=packed)
        assert produce_batch(outside.servers, outside.incoming, batch, partition % 3) == 0
    rejected = raw(LATIN, b"no image at all")
    assert produce_batch(outside.servers, outside.incoming, batch_bytes([rejected])) == 0
    outside.wait_verdicts(ids[:-1])
    wait_until(lambda: LATIN in names_of_rejections(outside), "the rejection, with the name as it came")
    wait_until(outside.all_committed, "every offset committed")
    assert worker.terminate() == 0


def names_of_rejections(outside: Outside) -> list[bytes]:
    """Header names as bytes: kafka-python's own consumer, which the harness reads with, cannot read such a record."""
    settings = KafkaSettings(bootstrap_servers=[outside.servers])
    reader = kafka_topics.Reader(settings, outside.rejected_topic)
    try:
        return [name.encode("utf-8", "surrogateescape") for record in reader.until_end() for name, _ in record.headers]
    finally:
        reader.close()


def test_offsets_that_repeat_lose_nobody(outside: Outside, start_worker: Callable[..., Worker]) -> None:
    """Brokers do not compare the deltas of batches that are not packed: each record is judged, and the group moves
    on.
    """
    start_worker()
    for number, deltas in enumerate(([0, 0, 0], [2, 1, 0], [0, 70_000, 1])):
        records = [
            Raw(image(10 * number + place), delta=delta, headers=[(b"ce_id", b"delta/%d/%d" % (number, place))])
            for place, delta in enumerate(deltas)
        ]
        assert produce_batch(outside.servers, outside.incoming, batch_bytes(records), number) == 0
    outside.wait_verdicts([f"delta/{number}/{place}" for number in range(3) for place in range(3)])
    wait_until(outside.all_committed, "every offset committed")


def test_records_without_a_time_have_not_waited(outside: Outside, start_worker: Callable[..., Worker]) -> None:
    """None, and seconds for milliseconds: `queued` is null, the sum of the metric stays sensible."""
    worker = start_worker()
    for number, timestamp_ms in enumerate((-1, int(time.time()))):
        raw = Raw(image(number), headers=[(b"ce_id", b"time/%d" % number)])
        assert produce_batch(outside.servers, outside.incoming, batch_bytes([raw], timestamp_ms=timestamp_ms)) == 0
    verdicts = outside.wait_verdicts(["time/0", "time/1"])
    assert [verdict["timings_ms"]["queued"] for verdict in verdicts.values()] == [None, None]
    assert all(0 <= verdict["timings_ms"]["total"] < 600_000 for verdict in verdicts.values())
    assert worker.metric("assay_stage_seconds_sum", stage="queued") < 600


def test_what_is_large_only_when_unpacked_is_rejected(outside: Outside, start_worker: Callable[..., Worker]) -> None:
    """60 MB go whole, 200 MB without their value, noise above the topic's limit too; memory stays, the others are
    judged.
    """
    worker = start_worker()
    settings = KafkaSettings(bootstrap_servers=[outside.servers])
    kafka_topics.delete_topics(settings, [outside.rejected_topic])
    wait_until(lambda: outside.rejected_topic not in {t.name for t in kafka_topics.topics(settings)}, "deleted")
    kafka_topics.create_topics(settings, [outside.rejected_topic], 1, {"max.message.bytes": "1000000"})
    values = {
        "sixty": bitmap(5000, 4000),
        "twohundred": bytes(200_000_000),
        "noise": b"BM" + random.Random(1).randbytes(3_000_000),
    }
    for packed in ("gzip", "zstd"):
        producer = KafkaProducer(bootstrap_servers=outside.servers, compression_type=packed, max_request_size=2**30)
        for name, value in values.items():
            headers = [("ce_id", f"{name}/{packed}".encode())]
            producer.send(outside.incoming, value, headers=headers, partition=0).get(60)
        producer.close()
    good = {f"good/{number}": image(number) for number in range(12)}
    outside.send_all(good)
    outside.wait_verdicts(good)
    wait_until(lambda: len(outside.rejections()) == 6, "all six are rejected")
    found = outside.rejections()
    for packed in ("gzip", "zstd"):
        for name, value in values.items():
            record = found[f"{name}/{packed}"]
            headers = dict(record.headers)
            assert headers["reject_reason"] == (b"too_large" if name != "noise" else b"unsupported_format")
            assert headers["sha256"].decode() == hashlib.sha256(value).hexdigest()
            whole = name == "sixty"
            assert record.value == (value if whole else b"")
            assert headers.get("value_omitted") == (None if whole else str(len(value)).encode())
    wait_until(outside.all_committed, "every offset committed")
    assert worker.metric("process_resident_memory_bytes") < 2 * 2**30


def test_what_cannot_be_read_is_told_and_passed_by(outside: Outside, start_worker: Callable[..., Worker]) -> None:
    """A gzip with junk behind it is read as Java reads it, headers without end are cut, a key without end is
    refused.
    """
    start_worker()
    whole = batch_bytes([Raw(image(1), headers=[(b"ce_id", b"junk")])])[61:]
    junk = batch_bytes([b""], behind=gzip.compress(whole) + b"\0junk", attributes=CODECS["gzip"])
    endless = batch_bytes([Raw(image(2), headers=[(b"ce_id", b"endless"), *[(b"", b"")] * 20_000])], packed="lz4")
    key = batch_bytes([Raw(image(3), key=bytes(70_000_000), headers=[(b"ce_id", b"key")])], packed="zstd")
    for batch in (junk, endless, key, batch_bytes([Raw(image(4), headers=[(b"ce_id", b"behind")])])):
        assert produce_batch(outside.servers, outside.incoming, batch) == 0
    outside.wait_verdicts(["junk", "endless", "behind"])
    wait_until(lambda: outside.records(outside.rejected_topic), "the rejection")
    (record,) = outside.records(outside.rejected_topic)
    headers = dict(record.headers)
    assert (headers["reject_reason"], headers["reject_stage"]) == (b"unreadable_record", b"poll")
    assert (headers["original_partition"], headers["original_offset"]) == (b"0", b"2")
    assert not record.value
    wait_until(outside.all_committed, "every offset committed")


def test_aborted_records_are_not_read(outside: Outside, start_worker: Callable[..., Worker]) -> None:
    """Of two transactions the committed one is judged; markers take their offsets and hold nobody up."""
    worker = start_worker()
    producer = KafkaProducer(bootstrap_servers=outside.servers, transactional_id=f"t-{outside.incoming}")
    producer.init_transactions()
    for name, end in (("aborted", producer.abort_transaction), ("committed", producer.commit_transaction)):
        producer.begin_transaction()
        future = producer.send(outside.incoming, image(5), headers=[("ce_id", name.encode())], partition=0)
        future.get(30)
        end()
    producer.close()
    outside.send("behind", image(6))
    outside.flush()
    verdicts = outside.wait_verdicts(["committed", "behind"])
    topic = outside.incoming
    wait_until(lambda: not worker.metric("assay_consumer_lag", topic=topic, partition="0"), "nothing waits")
    assert set(verdicts) == {str(verdict["image_id"]) for verdict in outside.verdicts()}
    wait_until(outside.all_committed, "the markers too are committed")


def test_a_missing_topic_is_told_and_not_made(outside: Outside, tmp_path: Path) -> None:
    """The local broker makes topics that are asked for: the worker does not ask for one."""
    missing = f"{outside.incoming}.misspelt"
    worker = Worker({**outside.env, "ASSAY_KAFKA__INCOMING_TOPIC": missing}, tmp_path / "worker.log")
    try:
        wait_until(lambda: worker.events("nothing_to_consume"), "it says what is missing")
        assert missing in str(worker.events("nothing_to_consume")[0]["reason"])
    finally:
        assert worker.terminate() == 0
    settings = KafkaSettings(bootstrap_servers=[outside.servers])
    assert missing not in {topic.name for topic in kafka_topics.topics(settings)}
