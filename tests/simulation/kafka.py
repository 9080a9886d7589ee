"""Kafka in memory: partitions, a consumer group that rebalances at any time, and acknowledgements that get lost.

`Broker` is the server, `ConsumerTwin` and `ProducerTwin` what one worker holds of it (worker/clients/kafka.py). As in
kafka-python the callbacks of a rebalance come from another thread than the one that polls, partitions are handed over
only after the callback has returned, a commit is checked for the generation and not for who owns the partition, and
a member that was expelled goes on fetching until it hears of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.simulation.hub import Process, Signal
from tests.simulation.plan import Sent
from tests.simulation.world import PATIENCE_S, Twin, World
from worker.clients.kafka_producer import Outgoing
from worker.contract import Record
from worker.errors import Unavailable

TOPIC = "images.incoming"
RIVAL = "rival"
# From the callback's return to the first write of the new owner: it has to join, to fetch, to decode and to infer.
# Longer than one call that was under way when the partition was revoked (worker/stages/publish.py).
HAND_OVER_S = 0.6
SESSION_S = 0.5
EPOCH_MS = 1_795_262_400_000


@dataclass(slots=True)
class Written:
    """A record that the broker has: who produced it, and since which event."""

    number: int
    by: str
    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


class Broker:
    """The topics, the committed offsets and the group."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.partitions = range(world.plan.partitions)
        self.log: dict[int, list[Record]] = {partition: [] for partition in self.partitions}
        self.committed: dict[int, int] = {}
        self.owner: dict[int, ConsumerTwin | str | None] = dict.fromkeys(self.partitions)
        self.free_at = dict.fromkeys(self.partitions, 0.0)
        self.members: list[ConsumerTwin] = []
        self.lent: dict[int, float] = {}  # to the rival, until then
        self.shift = 0
        self.generation = 0
        self.changed = Signal(world.hub)  # who should own what
        self.written: list[Written] = []

    def append(self, sent: Sent) -> None:
        """A producer sends a record."""
        record = Record(
            TOPIC,
            sent.partition,
            sent.offset,
            EPOCH_MS + int(sent.at_s * 1000),
            sent.key,
            sent.value,
            list(sent.headers),
        )
        self.log[sent.partition].append(record)
        for member in self.members:
            member.wake()

    def write(self, by: str, outgoing: Outgoing) -> Written:
        """A record of the outgoing topics is there now."""
        written = Written(len(self.written), by, outgoing.topic, outgoing.key, outgoing.value, outgoing.headers)
        self.written.append(written)
        self._world.note("written", by, written)
        return written

    def position(self, partition: int) -> int:
        """The committed offset."""
        return self.committed.get(partition, 0)

    def end(self, partition: int) -> int:
        log = self.log[partition]
        return log[-1].offset + 1 if log else 0

    def wanted(self, partition: int) -> ConsumerTwin | str | None:
        """Who should own the partition."""
        if self._world.hub.now < self.lent.get(partition, 0.0) and not self._world.is_healed:
            return RIVAL
        if not self.members:
            return None
        return self.members[(partition + self.shift) % len(self.members)]

    def release(self, partition: int, hand_over_s: float = HAND_OVER_S) -> None:
        """Nobody owns it now; the next one may in a while."""
        self.changed.fire()
        self.owner[partition] = None
        self.free_at[partition] = self._world.hub.now + hand_over_s

    def may_take(self, partition: int) -> bool:
        return self.owner[partition] is None and self._world.hub.now >= self.free_at[partition]

    def join(self, member: ConsumerTwin) -> None:
        """A new member."""
        self.changed.fire()
        self.members.append(member)

    def leave(self, member: ConsumerTwin) -> None:
        """The member has left, or its session is over."""
        self.changed.fire()
        if member in self.members:
            self.members.remove(member)
        for partition, owner in self.owner.items():
            if owner is member:
                self.release(partition, 0.0)

    def expel(self, member: ConsumerTwin) -> None:
        """The group believes that the member is dead; it does not know yet."""
        self._world.note("expelled", member.name, sorted(member.positions))
        self.leave(member)
        member.is_expelled = True

    @property
    def is_done(self) -> bool:
        """Is all that was sent committed?"""
        return all(not self.log[p] or self.position(p) >= self.end(p) for p in self.partitions)


class ConsumerTwin(Twin):
    """worker.clients.kafka.Consumer."""

    def __init__(
        self,
        world: World,
        process: Process,
        broker: Broker,
        on_assigned: Callable[[list[int]], None],
        on_revoked: Callable[[list[int]], None],
    ) -> None:
        super().__init__(world, world.plan.kafka, process)
        self.name = process.name
        self._broker = broker
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._paused = False
        self._closed = False
        self._polls = 0
        self._revoked_in_poll = -1
        self._arrived = Signal(world.hub)
        self.is_expelled = False
        self.positions: dict[int, int] = {}
        broker.join(self)
        world.hub.spawn(f"{process.name}.io", self._io, process)

    # -- the thread that talks to the group

    def _io(self) -> None:
        while not self._closed:
            self._broker.changed.wait(0.1)  # it changes with time, too
            if not self._closed and self._trouble() not in ("away", "silent"):
                self._rebalance()

    def _gone(self) -> list[int]:
        if self.is_expelled:
            return sorted(self.positions)
        return [p for p in sorted(self.positions) if self._broker.wanted(p) is not self]

    def _come(self) -> list[int]:
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
            self._on_assigned(come)
            self.positions |= {partition: broker.position(partition) for partition in come}
            self.wake()

    def _revoke(self, gone: list[int]) -> None:
        for partition in gone:
            self.positions.pop(partition, None)
        self._world.note("revoking", self.name, gone)
        self._on_revoked(gone)
        self._world.note("revoked", self.name, gone)
        for partition in gone:
            if self._broker.owner[partition] is self:
                self._broker.release(partition)

    # -- the thread that polls

    @property
    def is_joined(self) -> bool:
        return not self._closed and not self.is_expelled

    @property
    def assignment(self) -> list[int]:
        return sorted(self.positions)

    def obstacle(self) -> str:
        """Nothing that a person could mend."""
        return ""

    def poll(self, timeout_ms: int, max_records: int, max_bytes: int | None = None) -> list[Record]:
        """Up to `max_records` records, in order within each partition."""
        del max_bytes  # small as they are here, the count comes first
        assert not self._closed
        self._polls += 1
        self._enter()
        trouble = self._trouble()
        if trouble == "glitch" and self._random() < 0.3:
            raise Unavailable("kafka", "simulated: no broker answers the poll")
        if trouble:
            self._hub.sleep(timeout_ms / 1000)
            return []
        if not self._has_records():
            self._arrived.wait(timeout_ms / 1000)
        records: list[Record] = []
        for partition in sorted(self.positions, key=lambda p: (p + self._polls) % 3) if not self._paused else []:
            there = [one for one in self._broker.log[partition] if one.offset >= self.positions[partition]]
            taken = there[: max_records - len(records)]
            if taken:
                self.positions[partition] = taken[-1].offset + 1
                records += taken
        if records:
            self._world.note("delivered", self.name, [(one.partition, one.offset) for one in records])
            self._hub.preempted()
        return records

    def _has_records(self) -> bool:
        if self._paused:
            return False
        log = self._broker.log
        return any(log[p] and log[p][-1].offset >= position for p, position in self.positions.items())

    def wake(self) -> None:
        """There may be something to poll."""
        self._arrived.fire()

    def rewind(self, partition: int) -> None:
        """The position is lost: reading goes on where the group has committed."""
        if partition in self.positions:
            self.positions[partition] = self._broker.position(partition)
            self._world.note("rewound", self.name, partition, self.positions[partition])

    def set_paused(self, paused: bool) -> None:
        """Stop or go on fetching; new partitions follow."""
        self._paused = paused

    def waiting(self) -> dict[int, int]:
        """Records of each partition that have not been polled."""
        return {p: sum(one.offset >= at for one in self._broker.log[p]) for p, at in self.positions.items()}

    def commit(self, offsets: Mapping[int, int], timeout_ms: int) -> bool:
        """Commit; False where the group has moved on without us."""
        broker = self._broker
        generation, is_stale = broker.generation, self.is_expelled
        self._enter()
        trouble = self._trouble()
        if trouble in ("away", "silent") or (trouble and self._random() < 0.5):
            self._hub.sleep(min(timeout_ms / 1000, self._random() * PATIENCE_S))
            raise Unavailable("kafka", "simulated: no answer to the commit")
        if is_stale or self.is_expelled or broker.generation != generation:
            return False
        for partition, offset in offsets.items():
            owner = broker.owner[partition]
            is_anothers = owner is not None and owner is not self
            self._world.note("committed", self.name, partition, offset, broker.committed.get(partition), is_anothers)
            broker.committed[partition] = offset
        self._leave()
        if trouble:
            raise Unavailable("kafka", "simulated: the answer to the commit is lost")
        return True

    def close(self) -> None:
        """Leave the group; what is assigned is revoked."""
        self._enter()
        self._closed = True
        if self.positions:
            self._revoke(sorted(self.positions))
        self._broker.leave(self)


class ProducerTwin(Twin):
    """worker.clients.kafka.Producer: some records are written without an acknowledgement, some are not written."""

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
