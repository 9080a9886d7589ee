"""The group's consumer of the incoming topic and of the retry topic, through kafka-python.

kafka-python's consumer is not thread-safe: only the poll thread may touch `Consumer`. A record of the retry topic that
is not due yet is left there, its partition paused until then: nothing waits in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping

import structlog
from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.coordinator.base import MemberState
from kafka.errors import CommitFailedError, KafkaError, RebalanceInProgressError
from kafka.structs import OffsetAndMetadata

from worker.clients.kafka import as_unavailable, consumer_options, missing_topic
from worker.clients.kafka_assignor import PerTopicAssignor
from worker.clients.kafka_fetcher import RecordConsumer
from worker.clients.kafka_probe import diagnose
from worker.clock import SYSTEM_CLOCK, Clock
from worker.contract import Partition, Record
from worker.errors import Unavailable
from worker.parking import unparked
from worker.settings import KafkaSettings

log = structlog.get_logger(__name__)
_LOOK_FOR_TOPIC_S = 30.0
_LONGEST_HOLD_S = 3600.0  # a time that lies further ahead is looked at again, lest a wrong one holds its partition


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Passes rebalances on. Runs on the client's I/O thread: the callbacks must not block."""

    def __init__(
        self, on_assigned: Callable[[list[Partition]], None], on_revoked: Callable[[list[Partition]], None]
    ) -> None:
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._on_assigned(sorted(Partition(*tp) for tp in assigned))

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._on_revoked(sorted(Partition(*tp) for tp in revoked))


class Consumer:
    """Every method belongs to the poll thread. `on_assigned` and `on_revoked` are called inside `poll` and `close`.

    Raises Unavailable where no broker answers. Without a retry topic it reads the incoming one alone, and looks for it
    now and then.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        on_assigned: Callable[[list[Partition]], None],
        on_revoked: Callable[[list[Partition]], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._paused = False
        self._held: dict[TopicPartition, float] = {}  # partitions of the retry topic and when they go on, seconds
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._look_for_topic_at = clock.monotonic() + _LOOK_FOR_TOPIC_S
        with as_unavailable(settings):
            self._consumer = RecordConsumer(
                **consumer_options(settings),
                group_id=settings.group_id,
                group_instance_id=settings.group_instance_id,
                auto_offset_reset=settings.auto_offset_reset,
                session_timeout_ms=settings.session_timeout_ms,
                heartbeat_interval_ms=settings.heartbeat_interval_ms,
                max_poll_interval_ms=settings.max_poll_interval_ms,
                # Named alone: a group cannot mix cooperative and eager assignors.
                partition_assignment_strategy=(PerTopicAssignor,),
                metadata_max_age_ms=30_000,
            )
            self.can_park = bool(self._consumer.partitions_for_topic(settings.retry_topic))
            self._subscribe()

    def _subscribe(self) -> None:
        topics = [self._settings.incoming_topic, *([self._settings.retry_topic] if self.can_park else [])]
        self._consumer.subscribe(topics, listener=_Listener(self._assigned, self._revoked))

    def _assigned(self, partitions: list[Partition]) -> None:
        if self._paused and partitions:  # new partitions start un-paused, whatever the back-pressure says
            self._consumer.pause(*[TopicPartition(*partition) for partition in partitions])
        self._on_assigned(partitions)

    def _revoked(self, partitions: list[Partition]) -> None:
        for partition in partitions:
            self._held.pop(TopicPartition(*partition), None)
        self._on_revoked(partitions)

    def poll(self, timeout_ms: int, max_records: int, max_bytes: int | None = None) -> list[Record]:
        """Up to `max_records` records, in order within each partition; also drives heartbeats and rebalances.

        No more once `max_bytes` are reached: a batch of a few kB may hold records of many MB.
        """
        with as_unavailable(self._settings):
            self._look_for_retry_topic()  # before: what is polled must not be lost to a fault behind it
            self._resume_what_is_due()
            records = self._consumer.poll_records(timeout_ms, max_records, max_bytes)
            self._collect_join()
            return self._without_what_is_early(records)

    def _look_for_retry_topic(self) -> None:
        if self._clock.monotonic() < self._look_for_topic_at:
            return
        self._look_for_topic_at = self._clock.monotonic() + _LOOK_FOR_TOPIC_S
        could_park = self.can_park
        self.can_park = bool(self._consumer.partitions_for_topic(self._settings.retry_topic))
        if self.can_park and not could_park:
            self._subscribe()

    def _without_what_is_early(self, records: list[Record]) -> list[Record]:
        """Parked records as they were received; from the first that is not due on, their partition waits."""
        due: list[Record] = []
        now_s = self._clock.time()
        for record in records:
            if record.topic != self._settings.retry_topic:
                due.append(record)
                continue
            tp = TopicPartition(*record.place)
            parked = unparked(record)
            wait_s = parked.parked.retry_at_ms / 1000 - now_s if parked.parked else 0.0
            if tp in self._held:
                continue
            if wait_s <= 0:
                due.append(parked)
                continue
            self._held[tp] = self._clock.monotonic() + min(wait_s, _LONGEST_HOLD_S)
            self._consumer.seek(tp, record.offset)
            self._consumer.pause(tp)
        return due

    def _resume_what_is_due(self) -> None:
        now = self._clock.monotonic()
        for tp in [tp for tp, until in self._held.items() if until <= now]:
            del self._held[tp]
            if not self._paused and tp in self._consumer.assignment():
                self._consumer.resume(tp)

    def _collect_join(self) -> None:
        """Have a join that outlived its poll collected by the next one.

        kafka-python 3.0.12 forgets it where the leader re-joins because the topic's partitions changed (also when it
        first hears of them): making the assignment removes the reason to re-join, later polls see none, and the member
        stays without partitions and heartbeats for ever.
        """
        coordinator = self._consumer._coordinator  # noqa: SLF001  # there is no public way to ask or to request
        if coordinator.rejoining and not coordinator.need_rejoin():
            coordinator.request_rejoin()

    @property
    def is_joined(self) -> bool:
        """Is this member part of a stable group, as far as it knows?"""
        return bool(self._consumer.group_metadata().state == MemberState.STABLE)

    def obstacle(self) -> str:
        """Why this member has no partitions or lost its group; nothing where none is to be seen (more workers than
        partitions).

        kafka-python tells of neither a topic that ACLs hide nor a password that is refused on reconnecting. May take
        seconds.
        """
        if objection := diagnose(self._settings):
            return objection
        with as_unavailable(self._settings):
            there = self._consumer.partitions_for_topic(self._settings.incoming_topic)
        return "" if there else missing_topic(self._settings.incoming_topic)

    def set_paused(self, paused: bool) -> None:
        """Stop or go on fetching; polling goes on either way, so the group keeps us."""
        self._paused = paused
        changed = [tp for tp in self._consumer.assignment() if tp not in self._held]
        if changed:
            (self._consumer.pause if paused else self._consumer.resume)(*changed)

    def waiting(self) -> dict[Partition, int]:
        """Records of each assigned partition that have not been polled yet, as far as the last fetch told.

        None of those that are held: what is not due waits for its time, not for us.
        """
        waiting = {}
        for tp in self._consumer.assignment():
            if tp in self._held:
                waiting[Partition(*tp)] = 0
                continue
            end = self._consumer.highwater(tp)
            if end is not None:
                with contextlib.suppress(KafkaError):  # no position yet: the next look will have it
                    position = self._consumer.position(tp, timeout_ms=0)
                    waiting[Partition(*tp)] = max(0, end - (end if position is None else position))
        return waiting

    def positions(self) -> dict[Partition, int]:
        """The next offset to be polled of each assigned partition, where it is known."""
        found = {}
        for tp in self._consumer.assignment():
            with contextlib.suppress(KafkaError):
                position = self._consumer.position(tp, timeout_ms=0)
                if position is not None:
                    found[Partition(*tp)] = position
        return found

    def commit(self, offsets: Mapping[Partition, int], timeout_ms: int) -> bool:
        """Commit one past the last finished offset of each partition. False where the group has moved on without us."""
        wanted = {
            TopicPartition(*partition): OffsetAndMetadata(offset, "", -1) for partition, offset in offsets.items()
        }
        try:
            with as_unavailable(self._settings):
                self._consumer.commit(wanted, timeout_ms=timeout_ms)
        except Unavailable as error:
            if isinstance(error.__cause__, (CommitFailedError, RebalanceInProgressError)):
                log.info(
                    "commit_refused",
                    reason="the group rebalanced; the new owner redoes the records",
                    offsets={f"{topic}/{number}": offset for (topic, number), offset in offsets.items()},
                )
                return False
            raise
        return True

    def close(self) -> None:
        """Leave the group at once, so that others take over without waiting for the session to end."""
        self._consumer.close(autocommit=False, timeout_ms=2_000)
