"""Kafka as commands use it: which topics there are, making and deleting some, reading one without a group, publishing
until it is acknowledged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import TopicAlreadyExistsError

from worker.clients.kafka import as_unavailable, connection_options, consumer_options, missing_topic
from worker.clients.kafka_fetcher import RecordConsumer
from worker.clients.kafka_producer import Outgoing, Producer
from worker.clock import SYSTEM_CLOCK
from worker.contract import Record
from worker.errors import Unavailable
from worker.settings import KafkaSettings

_TRIES = 5


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """What the broker says of a topic."""

    name: str
    partitions: int


def topics(settings: KafkaSettings) -> list[TopicInfo]:
    """The topics of the cluster. Raises Unavailable where no broker answers."""
    with as_unavailable(settings):
        admin = KafkaAdminClient(**connection_options(settings))
        try:
            return [TopicInfo(found["name"], len(found["partitions"])) for found in admin.describe_topics()]
        finally:
            admin.close()


def create_topics(
    settings: KafkaSettings, names: Iterable[str], partitions: int, configs: Mapping[str, str] | None = None
) -> None:
    """Create the topics that are missing, with one replica: for development and benchmarks."""
    with as_unavailable(settings):
        admin = KafkaAdminClient(**connection_options(settings))
        try:
            for name in names:
                with contextlib.suppress(TopicAlreadyExistsError):
                    admin.create_topics([NewTopic(name, partitions, 1, topic_configs=dict(configs or {}))])
        finally:
            admin.close()


def delete_topics(settings: KafkaSettings, names: Sequence[str]) -> None:
    """Delete topics that a benchmark made."""
    with as_unavailable(settings):
        admin = KafkaAdminClient(**connection_options(settings))
        try:
            admin.delete_topics(list(names))
        finally:
            admin.close()


def publish(producer: Producer, records: Sequence[Outgoing]) -> None:
    """Send `records`, again where some are not acknowledged. Raises Unavailable where they never are."""
    left = list(records)
    for _ in range(_TRIES):
        if not left:
            return
        left = [left[index] for index in producer.produce(left)]
    if left:
        raise Unavailable("kafka", f"{len(left)} of {len(records)} records were not acknowledged")


class Reader:
    """Reads a topic without a group, each partition from a place in time: for `send --wait` and `replay`.

    Raises Unavailable where no broker answers or the topic is not there.
    """

    def __init__(
        self, settings: KafkaSettings, topic: str, since_ms: int | None = None, *, from_end: bool = False
    ) -> None:
        self._settings = settings
        with as_unavailable(settings):
            self._consumer = RecordConsumer(**consumer_options(settings))
            numbers = self._consumer.partitions_for_topic(topic)
            if not numbers:
                raise Unavailable("kafka", missing_topic(topic))
            self._partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
            self._consumer.assign(self._partitions)
            self.end = {tp.partition: offset for tp, offset in self._consumer.end_offsets(self._partitions).items()}
            self._seek(since_ms, from_end=from_end)

    def _seek(self, since_ms: int | None, *, from_end: bool) -> None:
        if from_end:
            for tp in self._partitions:
                self._consumer.seek(tp, self.end[tp.partition])
        elif since_ms is None:
            self._consumer.seek_to_beginning(*self._partitions)
        else:
            places = self._consumer.offsets_for_times(dict.fromkeys(self._partitions, since_ms))
            for tp in self._partitions:
                place = places.get(tp)
                self._consumer.seek(tp, self.end[tp.partition] if place is None else place.offset)

    def poll(self, timeout_ms: int = 500, max_records: int = 64) -> list[Record]:
        with as_unavailable(self._settings):
            return self._consumer.poll_records(timeout_ms, max_records, self._settings.fetch_max_bytes)

    def until_end(self) -> Iterator[Record]:
        """All records up to where the topic ended when the reader was made."""
        while any(self._consumer.position(tp) < self.end[tp.partition] for tp in self._partitions):
            for record in self.poll():
                if record.offset < self.end[record.partition]:
                    yield record

    def until_now(self) -> Iterator[Record]:
        """All records up to where the topic ends now; may be asked again and again."""
        with as_unavailable(self._settings):
            self.end = {tp.partition: offset for tp, offset in self._consumer.end_offsets(self._partitions).items()}
        yield from self.until_end()

    def close(self) -> None:
        self._consumer.close(autocommit=False)


def read_one(settings: KafkaSettings, topic: str, partition: int, offset: int, timeout_s: float = 5.0) -> Record | None:
    """The record at this place, or None where it is not there any more. Raises Unavailable."""
    place = TopicPartition(topic, partition)
    with as_unavailable(settings), contextlib.closing(RecordConsumer(**consumer_options(settings))) as consumer:
        if partition not in (consumer.partitions_for_topic(topic) or ()):
            return None
        consumer.assign([place])
        first, end = consumer.beginning_offsets([place])[place], consumer.end_offsets([place])[place]
        if not first <= offset < end:
            return None
        consumer.seek(place, offset)
        deadline = SYSTEM_CLOCK.monotonic() + timeout_s
        while SYSTEM_CLOCK.monotonic() < deadline:
            for record in consumer.poll_records(500, 1, settings.fetch_max_bytes):
                found: Record = record
                return found if found.offset == offset else None
    raise Unavailable("kafka", f"{topic}/{partition}/{offset} did not come within {timeout_s:g} s")
