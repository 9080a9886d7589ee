"""Which offsets may be committed: the contiguous finished prefix of each partition, per assignment.

An *epoch* is one assignment of a partition to this worker. Revoking the partition ends it, so results that arrive late
are recognised as stale: never committed, never published. Pure bookkeeping behind one lock (rebalance callbacks come
from the consumer's I/O thread, while the poll thread waits in `poll`); no clock, no Kafka.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from worker.contract import Partition


@dataclass(slots=True)
class _State:
    epoch: int
    delivered: deque[int] = field(
        default_factory=deque
    )  # offsets handed out and not yet in the finished prefix, ascending
    finished: set[int] = field(default_factory=set)  # the finished ones among them
    next_offset: int | None = None  # what to commit: one past the finished prefix; None before anything has finished
    committed: int | None = None
    last_delivered: int = -1


class OffsetTracker:
    """Contiguous-offset tracker per (partition, epoch).

    Offsets need not be dense (compaction and transactions leave gaps): contiguous means in the order of delivery.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._partitions: dict[Partition, _State] = {}
        self._epochs = 0

    def assign(self, partitions: Iterable[Partition]) -> None:
        """Begin a new epoch for each of `partitions`."""
        with self._lock:
            for partition in partitions:
                self._begin(partition)

    def revoke(self, partitions: Iterable[Partition]) -> int:
        """End the epochs of `partitions`; returns how many deliveries are fenced off by it."""
        with self._lock:
            ended = [self._partitions.pop(partition, None) for partition in partitions]
            return sum(len(state.delivered) - len(state.finished) for state in ended if state)

    def deliver(self, partition: Partition, offset: int) -> int | None:
        """Note that `offset` is on its way. Returns its epoch, or None where it is on its way already or not ours.

        An offset behind what was delivered before means that the log was read again from an earlier place (a reset
        position, a topic made anew): the old epoch ends and a new one begins there.
        """
        with self._lock:
            state = self._partitions.get(partition)
            if state is None:
                return None
            if offset <= state.last_delivered:
                if offset in state.delivered:
                    return None
                state = self._begin(partition)
            state.delivered.append(offset)
            state.last_delivered = offset
            return state.epoch

    def is_current(self, partition: Partition, epoch: int) -> bool:
        """Does `epoch` still own `partition`?"""
        with self._lock:
            state = self._partitions.get(partition)
            return state is not None and state.epoch == epoch

    def finish(self, partition: Partition, epoch: int, offset: int) -> bool:
        """Note that the record's verdict or rejection is acknowledged. False where the epoch is over."""
        with self._lock:
            state = self._partitions.get(partition)
            if state is None or state.epoch != epoch:
                return False
            state.finished.add(offset)
            while state.delivered and state.delivered[0] in state.finished:
                first = state.delivered.popleft()
                state.finished.discard(first)
                state.next_offset = first + 1
            return True

    def pass_over(self, positions: Mapping[Partition, int]) -> None:
        """`positions`: the next offset that the consumer polls of each partition, all before it delivered.

        What lies between the last delivered record and that place is nothing to judge (markers of transactions, what
        aborted ones wrote, what compaction took); uncommitted it would be lag for ever.
        """
        with self._lock:
            for partition, position in positions.items():
                state = self._partitions.get(partition)
                if state is not None and not state.delivered and state.next_offset is not None:
                    state.next_offset = max(state.next_offset, position)

    def committable(self) -> dict[Partition, int]:
        """Per partition the offset to commit (one past the finished prefix), where it moved since the last commit."""
        with self._lock:
            return {
                partition: state.next_offset
                for partition, state in self._partitions.items()
                if state.next_offset is not None and state.next_offset != state.committed
            }

    def committed(self, offsets: dict[Partition, int]) -> None:
        """Note that the broker acknowledged the commit of `offsets`."""
        with self._lock:
            for partition, offset in offsets.items():
                if (state := self._partitions.get(partition)) is not None:
                    state.committed = offset

    def unfinished(self, partitions: Iterable[Partition] | None = None) -> int:
        """How many delivered records of current epochs are not finished, of all partitions or of these."""
        with self._lock:
            states = (
                self._partitions.values()
                if partitions is None
                else [self._partitions[p] for p in partitions if p in self._partitions]
            )
            return sum(len(state.delivered) - len(state.finished) for state in states)

    def _begin(self, partition: Partition) -> _State:
        self._epochs += 1
        state = _State(epoch=self._epochs)
        self._partitions[partition] = state
        return state
