"""The encoded bytes of judged images again, over one kept connection, so that no page waits for a new one."""

from __future__ import annotations

import threading

from kafka import TopicPartition

from worker.clients.fetch import Fetcher
from worker.clients.kafka import as_unavailable, consumer_options
from worker.clients.kafka_fetcher import RecordConsumer
from worker.clock import SYSTEM_CLOCK
from worker.console.images import NoImage
from worker.contract import REFERENCE_CONTENT_TYPE, ImageReference, Origin, Record
from worker.errors import AssayError, Unavailable
from worker.settings import Settings

_TIMEOUT_S = 5.0


class Originals:
    """Thread-safe. Raises NoImage, and Unavailable where Kafka does not answer."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError for rules on references that can never match."""
        self._settings = settings
        self._fetcher = Fetcher(settings.references, settings.limits)
        self._lock = threading.Lock()
        self._consumer: RecordConsumer | None = None

    def read(self, origin: Origin | None) -> bytes:
        """The bytes that a verdict came from; whether they are the same is for the caller to see."""
        if origin is None:
            raise NoImage("its verdict is of an earlier version and does not say where it came from")
        with self._lock:
            try:
                record = self._record(origin)
            except Unavailable:
                self._close()
                raise
        if record is None or record.value is None:
            raise NoImage("its record is not in Kafka any more (retention of the topic)")
        if record.content_type != REFERENCE_CONTENT_TYPE:
            return record.value
        try:
            return self._fetcher.fetch(ImageReference.parse(record.value))
        except AssayError as error:
            raise NoImage(f"its storage does not give it again: {error}") from None

    def _record(self, origin: Origin) -> Record | None:
        kafka, place = self._settings.kafka, TopicPartition(origin.topic, origin.partition)
        with as_unavailable(kafka):
            if self._consumer is None:
                self._consumer = RecordConsumer(**consumer_options(kafka))
            consumer = self._consumer
            if origin.partition not in (consumer.partitions_for_topic(origin.topic) or ()):
                return None
            consumer.assign([place])
            first, end = consumer.beginning_offsets([place])[place], consumer.end_offsets([place])[place]
            if not first <= origin.offset < end:
                return None
            consumer.seek(place, origin.offset)
            deadline = SYSTEM_CLOCK.monotonic() + _TIMEOUT_S
            while SYSTEM_CLOCK.monotonic() < deadline:
                for record in consumer.poll_records(500, 1, kafka.fetch_max_bytes):
                    found: Record = record
                    return found if found.offset == origin.offset else None
        raise Unavailable("kafka", f"{origin.topic}/{origin.partition}/{origin.offset} did not come")

    def _close(self) -> None:
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            with as_unavailable(self._settings.kafka):
                consumer.close(autocommit=False)

    def close(self) -> None:
        with self._lock:
            self._close()
        self._fetcher.close()
