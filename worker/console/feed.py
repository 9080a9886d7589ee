"""Verdicts into queues: one thread of each console, all of them one consumer group on the verdicts topic.

An offset is committed once its verdict waits in Redis (or need not). What finds its queue full waits in Kafka: reading
goes on for the other queues, offsets are committed up to there, and once the queue takes more again, reading goes back
to it. Where Redis was started anew or knows nothing, verdicts are read again (feed_places.py): adding is idempotent.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog
from kafka import ConsumerRebalanceListener, TopicPartition

from worker.clients.kafka import as_unavailable, consumer_options, missing_topic
from worker.clients.kafka_fetcher import RecordConsumer
from worker.clock import SYSTEM_CLOCK, Clock
from worker.console.board import Board
from worker.console.feed_places import Places
from worker.console.rounds import Rounds
from worker.contract import Record, Verdict
from worker.errors import Unavailable
from worker.moments import milliseconds
from worker.settings import Settings

log = structlog.get_logger(__name__)
_AGAIN_S = 1.0
_AT_ONCE = 100
_LOOK_AT_REDIS_S = 1.0
_FREE_PARTS = 20  # a queue is filled again once a twentieth of it is free: going back reads everything in between again


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        log.info("verdicts_assigned", partitions=sorted(tp.partition for tp in assigned))

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """What was polled is added and committed before the next poll. What was left stays known: a partition
        that comes back at once is read on from where it was, not from what was committed.
        """


class Feed(Rounds):
    """`added` counts; a queue that is full is the `problem`."""

    def __init__(self, settings: Settings, board: Board, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__("feed", problem="it has not read yet")
        self._settings = settings
        self._board = board
        self._clock = clock
        self._consumer: RecordConsumer | None = None
        self._places = Places(settings.kafka, board, clock)
        self._looked_at = 0.0
        self._looked_at_full_at = 0.0
        self._left: dict[TopicPartition, dict[str, int]] = {}  # by queue, the first offset that found it full
        self.added = 0
        self.unreadable = 0

    def round(self) -> str:
        """Add what is new, commit. Raises Unavailable."""
        consumer = self._connected()
        self._look_at_full(consumer)
        with as_unavailable(self._settings.kafka):
            records = consumer.poll_records(500, _AT_ONCE, self._settings.kafka.fetch_max_bytes)
        again = self._look_at_redis(consumer, records)
        offsets: dict[TopicPartition, int] = {}
        for record in records:
            place = TopicPartition(record.topic, record.partition)
            if place in again:
                continue
            if queue := self._take(record):
                self._left.setdefault(place, {}).setdefault(queue, record.offset)
            offsets[place] = min([record.offset + 1, *self._left.get(place, {}).values()])
        if offsets:
            self._places.commit(consumer, offsets)
        full = self._full()
        return f"full: {', '.join(sorted(full))}" if full else ""

    def _full(self) -> set[str]:
        """Queues that took no more when they were last looked at."""
        return {queue for left in self._left.values() for queue in left}

    def _look_at_full(self, consumer: RecordConsumer) -> None:
        """Go back to what was left for a queue that takes more again."""
        now = self._clock.monotonic()
        if not self._left or now - self._looked_at_full_at < _AGAIN_S:
            return
        self._looked_at_full_at = now
        for place in self._left.keys() - consumer.assignment():
            del self._left[place]  # another console's now, which reads it from what was committed
        enough = max(1, self._settings.console.max_queued // _FREE_PARTS)
        for queue in [queue for queue in self._full() if self._board.free_places(queue) >= enough]:
            for place, left in list(self._left.items()):
                offset = left.pop(queue, None)
                if not left:
                    del self._left[place]
                with as_unavailable(self._settings.kafka):
                    if offset is not None and consumer.position(place) > offset:
                        consumer.seek(place, offset)

    def _take(self, record: Record) -> str:
        """The name of the queue that is full for it, else nothing."""
        try:
            as_json = (record.value or b"").decode("utf-8")
            verdict = Verdict.model_validate_json(as_json)
        except ValueError:
            self.unreadable += 1
            log.warning("verdict_unreadable", partition=record.partition, offset=record.offset)
            return ""
        decided_ms = milliseconds(verdict.decided_at)
        place = self._board.queues.place(verdict, decided_ms)
        if place is None:
            return ""
        # Newer ones do not go before what was left.
        if place.queue in self._full() or not self._board.add(verdict, as_json, place, decided_ms):
            return place.queue
        self.added += 1
        return ""

    def _connected(self) -> RecordConsumer:
        if self._consumer is None:
            kafka, console = self._settings.kafka, self._settings.console
            with as_unavailable(kafka):
                consumer = RecordConsumer(
                    **consumer_options(kafka),
                    group_id=console.group_id,
                    auto_offset_reset=kafka.auto_offset_reset,
                    session_timeout_ms=kafka.session_timeout_ms,
                    heartbeat_interval_ms=kafka.heartbeat_interval_ms,
                    max_poll_interval_ms=kafka.max_poll_interval_ms,
                )
                if not consumer.partitions_for_topic(kafka.verdicts_topic):
                    consumer.close(autocommit=False)
                    raise Unavailable("kafka", missing_topic(kafka.verdicts_topic))
                consumer.subscribe([kafka.verdicts_topic], listener=_Listener())
            self._consumer = consumer
        return self._consumer

    def _look_at_redis(self, consumer: RecordConsumer, records: list[Record]) -> set[TopicPartition]:
        """The partitions that are read again from earlier on, as Redis may have forgotten what came from them."""
        now = self._clock.monotonic()
        if now - self._looked_at < _LOOK_AT_REDIS_S and self._places.know(records):
            return set()
        self._looked_at = now
        again = self._places.look(consumer, records)
        for place in again:
            self._left.pop(place, None)  # found again on the way
        return again

    def let_go(self) -> None:
        self._left.clear()
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            with as_unavailable(self._settings.kafka):
                consumer.close(autocommit=False)
