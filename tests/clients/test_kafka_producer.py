"""What a topic refuses has an end, and what is acknowledged says what happened to it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import InvalidRecordError, KafkaTimeoutError, MessageSizeTooLargeError

from worker.clients import kafka_topics
from worker.clients.kafka_producer import Outgoing, Producer
from worker.clients.kafka_topics import Reader
from worker.contract import Record
from worker.errors import Unavailable
from worker.settings import KafkaSettings, load

ORIGIN = [("original_topic", b"in"), ("original_partition", b"3"), ("original_offset", b"42")]


def rejection(value: bytes | None, key: bytes | None = b"k", received: int = 1, topic: str = "t") -> Outgoing:
    headers = [(f"received{number}", b"x" * 100) for number in range(received)]
    return Outgoing(topic, key, value, [*headers, *ORIGIN], own_headers=len(ORIGIN))


def test_a_rejection_too_large_goes_without_value_then_without_headers() -> None:
    """Each time with what it lacks; in the end nothing can be left out."""
    refusal = MessageSizeTooLargeError()
    first = rejection(b"v" * 500, key=b"k" * 2000)
    second = first.after(refusal)
    assert second is not None
    assert (second.value, second.headers[-1]) == (b"", ("value_omitted", b"500"))
    assert second.headers[0][0] == "received0"
    third = second.after(refusal)
    assert third is not None and third.key is None
    assert third.headers == [*ORIGIN, ("value_omitted", b"500"), ("headers_omitted", b"1")]
    assert third.after(refusal) is None


def test_a_compacted_topic_gets_a_key() -> None:
    """A record without one is refused there: it goes under its origin."""
    keyed = rejection(b"v", key=None).after(InvalidRecordError())
    assert keyed is not None and keyed.key == b"in/3/42"
    assert rejection(b"v").after(InvalidRecordError()) is None


def test_what_cannot_be_parked_is_rejected() -> None:
    """Its topic refuses it for good: the rejection goes in its place, and may be made smaller itself."""
    parked = Outgoing("t.retry", b"k", b"v", [("big", b"x" * 2_000_000)], instead=rejection(b"v"))
    assert parked.after(MessageSizeTooLargeError()) == rejection(b"v")
    assert parked.after(KafkaTimeoutError()) is None


def test_what_is_no_refusal_changes_nothing() -> None:
    """Nor does any refusal of a record that repeats none."""
    assert rejection(b"v").after(KafkaTimeoutError()) is None
    assert Outgoing("t", b"k", b"v", []).after(MessageSizeTooLargeError()) is None


class Topic:
    """A topic of one partition with a configuration of its own."""

    def __init__(self, settings: KafkaSettings, name: str) -> None:
        self.settings = settings
        self.name = name

    def make(self, **config: str) -> None:
        kafka_topics.create_topics(
            self.settings, [self.name], 1, {name.replace("_", "."): value for name, value in config.items()}
        )

    def configure(self, config: Mapping[str, str]) -> None:
        admin = KafkaAdminClient(bootstrap_servers=self.settings.bootstrap_servers)
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, self.name, configs=dict(config))])
        admin.close()

    def records(self) -> list[Record]:
        reader = Reader(self.settings, self.name)
        try:
            return list(reader.until_end())
        finally:
            reader.close()


@pytest.fixture
def topic(worker_env: dict[str, str]) -> Iterator[Topic]:
    settings = load(environ={name: value for name, value in worker_env.items() if name.startswith("ASSAY_")}).kafka
    made = Topic(settings, f"{settings.incoming_topic}.refusing")
    yield made
    if made.name in {found.name for found in kafka_topics.topics(settings)}:
        kafka_topics.delete_topics(settings, [made.name])


@pytest.mark.integration
def test_one_refused_record_does_not_stop_the_producer(topic: Topic) -> None:
    """The broker answers MESSAGE_TOO_LARGE: that record goes without its value, all others as they are, also later."""
    topic.make(max_message_bytes="200000")
    noise = random.Random(1).randbytes(300_000)
    producer = Producer(topic.settings)
    try:
        sent = [rejection(value, topic=topic.name) for value in (b"a", noise, b"b", noise * 8)]
        left = list(sent)
        while left:
            left = [left[index] for index in producer.produce(left)]
        assert producer.produce([rejection(b"later", topic=topic.name)]) == []
    finally:
        producer.close()
    found = topic.records()
    assert sorted((record.value or b"", record.header("value_omitted")) for record in found) == [
        (b"", b"2400000"),
        (b"", b"300000"),
        (b"a", None),
        (b"b", None),
        (b"later", None),
    ]


@pytest.mark.integration
def test_what_compresses_goes_whole(topic: Topic) -> None:
    """Sixty megabytes of one colour are a few hundred kB to the broker."""
    topic.make()
    value = b"\xc8\x1e\x28" * 20_000_000
    producer = Producer(topic.settings)
    try:
        assert producer.produce([rejection(value, topic=topic.name)]) == []
    finally:
        producer.close()
    (found,) = topic.records()
    assert found.value == value and found.header("value_omitted") is None


@pytest.mark.integration
def test_what_is_too_large_for_any_request_is_not_sent_whole(topic: Topic) -> None:
    """Above the settings' limit when compressed: the broker would end the connection without an answer."""
    topic.make()
    settings = topic.settings.model_copy(update={"max_request_bytes": 1024 * 1024})
    producer = Producer(settings)
    try:
        assert producer.produce([rejection(random.Random(2).randbytes(2_000_000), topic=topic.name)]) == []
    finally:
        producer.close()
    assert topic.records()[0].header("value_omitted") == b"2000000"


@pytest.mark.integration
def test_a_compacted_topic_takes_rejections(topic: Topic) -> None:
    """Without a key they are refused for good otherwise."""
    topic.make(cleanup_policy="compact")
    producer = Producer(topic.settings)
    try:
        assert producer.produce([rejection(b"v", key=None, topic=topic.name)]) == []
    finally:
        producer.close()
    assert topic.records()[0].key == b"in/3/42"


@pytest.mark.integration
def test_a_header_name_of_any_bytes_goes_out_as_it_came(topic: Topic) -> None:
    """Byte for byte, as a rejection promises."""
    topic.make()
    name = b"gr\xf6\xdfe".decode("utf-8", "surrogateescape")
    producer = Producer(topic.settings)
    try:
        assert producer.produce([Outgoing(topic.name, None, b"v", [(name, b"1"), ("größe", b"2"), ("n", None)])]) == []
    finally:
        producer.close()
    assert topic.records()[0].headers == [(name, b"1"), ("größe", b"2"), ("n", b"")]


@pytest.mark.integration
def test_a_missing_topic_is_told_and_not_made(topic: Topic) -> None:
    """The broker of the local stack makes topics by itself when it is asked to."""
    producer = Producer(topic.settings)
    try:
        with pytest.raises(Unavailable, match=topic.name):
            producer.produce([Outgoing(topic.name, b"k", b"v", [])])
    finally:
        producer.close()
    assert topic.name not in {found.name for found in kafka_topics.topics(topic.settings)}


@pytest.mark.integration
def test_a_verdict_that_its_topic_refuses_waits_and_says_why(topic: Topic) -> None:
    """A fault of the configuration, not of the record: mended, the same producer goes on."""
    topic.make(max_message_bytes="100")
    producer = Producer(topic.settings)
    verdict = Outgoing(topic.name, b"k", random.Random(3).randbytes(500), [])
    try:
        with pytest.raises(Unavailable, match=r"refuses a record of \d+ bytes.*max\.message\.bytes"):
            producer.produce([verdict])
        topic.configure({"max.message.bytes": "100000"})
        assert producer.produce([verdict]) == []
    finally:
        producer.close()


@pytest.mark.integration
def test_what_waits_for_a_topic_that_is_gone_goes_elsewhere_and_stops_nobody(topic: Topic) -> None:
    """With others beside it; a topic that is made again is used again, once it is believed to be there."""
    topic.make()
    gone = f"{topic.name}-gone"
    parked = Outgoing(gone, b"k", b"v", [("retry_at", b"1")], instead=rejection(b"rejected", topic=topic.name))
    producer = Producer(topic.settings)
    try:
        assert producer.produce([parked, Outgoing(topic.name, b"k", b"beside", []), parked]) == []
        assert sorted(record.value or b"" for record in topic.records()) == [b"beside", b"rejected", b"rejected"]
        kafka_topics.create_topics(topic.settings, [gone], 1)
        producer._missing.clear()
        assert producer.produce([parked]) == []
        assert len(topic.records()) == 3, "it went to its own topic"
    finally:
        producer.close()
        kafka_topics.delete_topics(topic.settings, [gone])
