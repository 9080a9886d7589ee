"""Kafka in memory: partitions, a consumer group that rebalances at any time, and acknowledgements that get lost.

`Broker` is the server; `LibraryTwin` stands in for kafka-python's consumer below worker/clients/kafka_consumer.py,
which runs as it is; `ProducerTwin` is what a worker holds of the producer. As in kafka-python the callbacks of a
rebalance come from another thread than the one that polls, partitions are handed over only after the callback has
returned, a commit is checked for the generation and not for who owns the partition, and a member that was expelled goes
on fetching until it hears of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from kafka import TopicPartition
from kafka.coordinator.base import MemberState
from kafka.errors import CommitFailedError, KafkaError

from tests.simulation.hub import Process, Signal
from tests.simulation.plan import Sent
from tests.simulation.world import PATIENCE_S, Twin, World
from worker.clients.kafka_producer import Outgoing
from worker.contract import Record
from worker.errors import Unavailable

INCOMING, RETRY = "images.incoming", "images.retry"
RIVAL = "rival"
SESSION_S = 0.5
EPOCH_MS = 1_795_262_400_000


@dataclass(slots=True)
class Written:
    """A record that the broker has: who produced it. `place`: its offset in the retry topic, for one that is parked."""

    number: int
    by: str
    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    place: int | None = None


class Broker:
    """The topics, the committed offsets and the group."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.incoming = [TopicPartition(INCOMING, number) for number in range(world.plan.partitions)]
        self.retry = TopicPartition(RETRY, 0)
        self.partitions = [*self.incoming, self.retry]
        self.log: dict[TopicPartition, list[Record]] = {partition: [] for partition in self.partitions}
        self.committed: dict[TopicPartition, int] = {}
        self.owner: dict[TopicPartition, LibraryTwin | str | None] = dict.fromkeys(self.partitions)
        self.members: list[LibraryTwin] = []
        self.lent: dict[TopicPartition, float] = {}  # to the rival, until then
        self.shift = 0
        self.generation = 0
        self.changed = Signal(world.hub)  # who should own what
        self.written: list[Written] = []

    def append(self, sent: Sent) -> None:
        """A producer sends a record."""
        at_ms = EPOCH_MS + int(sent.at_s * 1000)
        headers = list(sent.headers)
        self._add(Record(INCOMING, sent.partition, sent.offset, at_ms, sent.key, sent.value, headers))

    def write(self, by: str, outgoing: Outgoing) -> Written:
        """A record of the outgoing topics is there now."""
        headers = [(name, value or b"") for name, value in outgoing.headers]
        written = Written(len(self.written), by, outgoing.topic, outgoing.key, outgoing.value, headers)
        if outgoing.topic == RETRY:
            written.place = self.end(self.retry)
            at_ms = EPOCH_MS + int(self._world.hub.now * 1000)
            self._add(Record(RETRY, 0, written.place, at_ms, outgoing.key, outgoing.value, headers))
        self.written.append(written)
        self._world.note("written", by, written)
        return written

    def _add(self, record: Record) -> None:
        self.log[TopicPartition(*record.place)].append(record)
        for member in self.members:
            member.wake()

    def position(self, partition: TopicPartition) -> int:
        """The committed offset."""
        return self.committed.get(partition, 0)

    def end(self, partition: TopicPartition) -> int:
        """One past the last record."""
        log = self.log[partition]
        return log[-1].offset + 1 if log else 0

    def wanted(self, partition: TopicPartition) -> LibraryTwin | str | None:
        """Who should own the partition."""
        if self._world.hub.now < self.lent.get(partition, 0.0) and not self._world.is_healed:
            return RIVAL
        if not self.members:
            return None
        return self.members[(partition.partition + self.shift) % len(self.members)]

    def release(self, partition: TopicPartition) -> None:
        """Nobody owns it now; the next one may at once."""
        self.changed.fire()
        self.owner[partition] = None

    def may_take(self, partition: TopicPartition) -> bool:
        """Is it nobody's by now?"""
        return self.owner[partition] is None

    def join(self, member: LibraryTwin) -> None:
        """A new member."""
        self.changed.fire()
        self.members.append(member)

    def leave(self, member: LibraryTwin) -> None:
        """The member has left, or its session is over."""
        self.changed.fire()
        if member in self.members:
            self.members.remove(member)
        for partition, owner in self.owner.items():
            if owner is member:
                self.release(partition)

    def expel(self, member: LibraryTwin) -> None:
        """The group believes that the member is dead; it does not know yet."""
        self._world.note("expelled", member.name, sorted(member.positions))
        self.leave(member)
        member.is_expelled = True

    @property
    def is_done(self) -> bool:
        """Is all that was sent and parked committed?"""
        return all(not self.log[p] or self.position(p) >= self.end(p) for p in self.partitions)


class LibraryTwin(Twin):
    """worker.clients.kafka_fetcher.RecordConsumer, as far as `Consumer` uses it."""

    def __init__(self, world: World, process: Process, broker: Broker) -> None:
        super().__init__(world, world.plan.kafka, process)
        self.name = process.name
        self._broker = broker
        self._listener: Any = None
        self._paused: set[TopicPartition] = set()
        self._coming: set[TopicPartition] = set()  # assigned, but the callback that says so has not returned
        self._closed = False
        self._polls = 0
        self._revoked_in_poll = -1
        self._arrived = Signal(world.hub)
        self._coordinator = SimpleNamespace(rejoining=False)
        self.is_expelled = False
        self.positions: dict[TopicPartition, int] = {}

    # -- the thread that talks to the group

    def subscribe(self, topics: Sequence[str], listener: Any) -> None:
        """Join the group."""
        assert list(topics) == [INCOMING, RETRY]
        self._listener = listener
        self._broker.join(self)
        self._hub.spawn(f"{self._process.name}.io", self._io, self._process)

    def _io(self) -> None:
        while not self._closed:
            self._broker.changed.wait(0.1)  # it changes with time, too
            if not self._closed and self._trouble() not in ("away", "silent"):
                self._rebalance()

    def _gone(self) -> list[TopicPartition]:
        if self.is_expelled:
            return sorted(self.positions)
        return [p for p in sorted(self.positions) if self._broker.wanted(p) is not self]

    def _come(self) -> list[TopicPartition]:
        """What to take; a member joins from within a poll."""
        if self._polls <= self._revoked_in_poll or self.is_expelled:
            return []
        broker = self._broker
        return [p for p in broker.partitions if broker.may_take(p) and broker.wanted(p) is self]

    def _rebalance(self) -> None:
        broker = self._broker
        gone = self._gone()
        if self.is_expelled or gone:
            self._hub.sleep(self._random() * 0.05 if self.is_expelled else 0.0)
            if self._closed:
                return
            self._revoke(gone)
            if self.is_expelled:  # it joins anew
                self.is_expelled = False
                broker.join(self)
            self._revoked_in_poll = self._polls
            return
        if come := self._come():
            broker.generation += 1
            for partition in come:
                broker.owner[partition] = self
            self._world.note("assigned", self.name, come)
            self.positions |= {partition: broker.position(partition) for partition in come}
            self._coming = set(come)
            self._listener.on_partitions_assigned(come)
            self._coming = set()
            self.wake()

    def _revoke(self, gone: list[TopicPartition]) -> None:
        for partition in gone:
            self.positions.pop(partition, None)
            self._paused.discard(partition)
        self._world.note("revoking", self.name, gone)
        self._listener.on_partitions_revoked(gone)
        self._world.note("revoked", self.name, gone)
        for partition in gone:
            if self._broker.owner[partition] is self:
                self._broker.release(partition)

    # -- the thread that polls

    def partitions_for_topic(self, _topic: str) -> set[int]:
        """Both topics are there."""
        return {0}

    def group_metadata(self) -> Any:
        """What `Consumer` asks it for."""
        return SimpleNamespace(state=MemberState.UNJOINED if self._closed or self.is_expelled else MemberState.STABLE)

    def assignment(self) -> set[TopicPartition]:
        """What the member believes to own."""
        return set(self.positions)

    def poll_records(self, timeout_ms: int, max_records: int, max_bytes: int | None) -> list[Record]:
        """Up to `max_records` records, in order within each partition."""
        del max_bytes  # small as they are here, the count comes first
        assert not self._closed
        self._polls += 1
        self._enter()
        trouble = self._trouble()
        if trouble == "glitch" and self._random() < 0.3:
            raise KafkaError("simulated: no broker answers the poll")
        if trouble:
            self._hub.sleep(timeout_ms / 1000)
            return []
        if not self._has_records():
            self._arrived.wait(timeout_ms / 1000)
        records: list[Record] = []
        for partition in sorted(self._fetchable(), key=lambda one: (one.partition + self._polls) % 3):
            there = [one for one in self._broker.log[partition] if one.offset >= self.positions[partition]]
            taken = there[: max_records - len(records)]
            if taken:
                self.positions[partition] = taken[-1].offset + 1
                records += taken
        if records:
            for topic in {one.topic: None for one in records}:
                traces = [dict(one.headers).get("traceparent") for one in records if one.topic == topic]
                self._world.note("delivered", self.name, topic, traces)
            self._hub.preempted()
        return records

    def _fetchable(self) -> list[TopicPartition]:
        return [one for one in self.positions if one not in self._paused and one not in self._coming]

    def _has_records(self) -> bool:
        log = self._broker.log
        return any(log[p] and log[p][-1].offset >= self.positions[p] for p in self._fetchable())

    def wake(self) -> None:
        """There may be something to poll."""
        self._arrived.fire()

    def rewind(self, partition: TopicPartition) -> None:
        """The position is lost: reading goes on where the group has committed."""
        if partition in self.positions:
            self.positions[partition] = min(self.positions[partition], self._broker.position(partition))
            self._world.note("rewound", self.name, partition, self.positions[partition])

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from there. As in the library, of a partition that is assigned."""
        if partition not in self.positions:
            raise KafkaError(f"simulated: {partition} is not assigned")
        self.positions[partition] = offset

    def pause(self, *partitions: TopicPartition) -> None:
        """Fetch nothing of them. As in the library, of partitions that are assigned."""
        if not self.positions.keys() >= set(partitions):
            raise KafkaError(f"simulated: not all of {partitions} are assigned")
        self._paused.update(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        """Fetch them again."""
        if not self.positions.keys() >= set(partitions):
            raise KafkaError(f"simulated: not all of {partitions} are assigned")
        self._paused.difference_update(partitions)

    def highwater(self, partition: TopicPartition) -> int | None:
        """The end of the log."""
        return self._broker.end(partition)

    def position(self, partition: TopicPartition, timeout_ms: int) -> int | None:
        """What is read next."""
        del timeout_ms
        return self.positions.get(partition)

    def commit(self, offsets: Mapping[TopicPartition, Any], timeout_ms: int) -> None:
        """Raises CommitFailedError where the group has moved on."""
        broker = self._broker
        generation, is_stale = broker.generation, self.is_expelled
        self._enter()
        trouble = self._trouble()
        if trouble in ("away", "silent") or (trouble and self._random() < 0.5):
            self._hub.sleep(min(timeout_ms / 1000, self._random() * PATIENCE_S))
            raise KafkaError("simulated: no answer to the commit")
        if is_stale or self.is_expelled or broker.generation != generation:
            raise CommitFailedError("simulated: the group has moved on")
        for partition, wanted in offsets.items():
            owner = broker.owner[partition]
            is_anothers = owner is not None and owner is not self
            before = broker.committed.get(partition)
            self._world.note("committed", self.name, partition, wanted.offset, before, is_anothers)
            broker.committed[partition] = wanted.offset
        self._leave()
        if trouble:
            raise KafkaError("simulated: the answer to the commit is lost")

    def close(self, *, autocommit: bool, timeout_ms: int) -> None:
        """Leave the group; what is assigned is revoked."""
        del autocommit, timeout_ms
        self._enter()
        self._closed = True
        if self.positions:
            self._revoke(sorted(self.positions))
        self._broker.leave(self)


class ProducerTwin(Twin):
    """worker.clients.kafka_producer.Producer: some records are written and not acknowledged, some are not written."""

    def __init__(self, world: World, process: Process, broker: Broker) -> None:
        super().__init__(world, world.plan.kafka, process)
        self._broker = broker

    def produce(self, records: Sequence[Outgoing]) -> list[int]:
        """The indices of the records that were not acknowledged; Unavailable where none was."""
        self._enter()
        trouble = self._trouble()
        if trouble in ("away", "silent"):
            self._give_up()
            raise Unavailable("kafka", "simulated: no broker answers")
        acknowledged: list[Written] = []
        failed: list[int] = []
        for index, record in enumerate(records):
            fate = self._random() if trouble else 1.0
            if fate >= 0.3:
                written = self._broker.write(self._process.name, record)
            if fate < 0.6:
                failed.append(index)
                self._world.note("unacknowledged", self._process.name, index, fate >= 0.3)
            else:
                acknowledged.append(written)
            self._hub.preempted()
        if records and len(failed) == len(records):
            self._give_up()
            raise Unavailable("kafka", "simulated: no acknowledgement")
        self._leave()
        self._world.note("acknowledged", self._process.name, [one.number for one in acknowledged])
        return failed

    def close(self) -> None:
        """Nothing is held."""
