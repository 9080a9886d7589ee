"""The offset tracker against a simple oracle: no commit past an unfinished record, none for an epoch that is over."""

from __future__ import annotations

import threading

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.offsets import OffsetTracker

PARTITIONS = st.integers(0, 2)


class TrackerMachine(RuleBasedStateMachine):
    """Random assignments, deliveries, results and commits; the oracle keeps every delivery in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = OffsetTracker()
        self.epochs: dict[int, int | None] = {}  # of each assigned partition; None before its first delivery
        self.delivered: dict[int, list[int]] = {}  # in the current epoch, in order
        self.finished: dict[int, set[int]] = {}
        self.committed: dict[int, int] = {}
        self.under_way: list[tuple[int, int, int]] = []  # (partition, epoch, offset), stale ones too
        self.ended: set[int] = set()

    def begin(self, partition: int) -> None:
        if (epoch := self.epochs.get(partition)) is not None:
            self.ended.add(epoch)
        self.epochs[partition] = None
        self.delivered[partition], self.finished[partition] = [], set()
        self.committed.pop(partition, None)

    @rule(partition=PARTITIONS)
    def assign(self, partition: int) -> None:
        self.tracker.assign([partition])
        self.begin(partition)

    @rule(partition=PARTITIONS)
    def revoke(self, partition: int) -> None:
        unfinished = len(self.delivered.get(partition, [])) - len(self.finished.get(partition, ()))
        assert self.tracker.revoke([partition]) == unfinished
        if partition in self.epochs:
            self.begin(partition)
            del self.epochs[partition], self.delivered[partition], self.finished[partition]

    @rule(partition=PARTITIONS, step=st.integers(1, 3))
    def deliver_next(self, partition: int, step: int) -> None:
        """Offsets grow, with gaps."""
        last = self.delivered[partition][-1] if self.delivered.get(partition) else -1
        self.deliver(partition, last + step)

    @precondition(lambda self: any(self.delivered.values()))
    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        """The log is read again from somewhere before."""
        partition = data.draw(st.sampled_from([p for p, offsets in self.delivered.items() if offsets]))
        self.deliver(partition, data.draw(st.integers(0, self.delivered[partition][-1])))

    def deliver(self, partition: int, offset: int) -> None:
        epoch = self.tracker.deliver(partition, offset)
        if partition not in self.epochs:
            assert epoch is None
            return
        offsets = self.delivered[partition]
        if offsets and offset <= offsets[-1]:
            if offset in offsets and offset >= self.prefix_end(partition):
                assert epoch is None, "it is on its way already"
                return
            self.begin(partition)
        assert epoch is not None
        assert epoch not in self.ended, "a rewind begins a new epoch"
        known = self.epochs[partition]
        assert known is None or known == epoch
        self.epochs[partition] = epoch
        self.delivered[partition].append(offset)
        self.under_way.append((partition, epoch, offset))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        partition, epoch, offset = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        current = epoch not in self.ended
        assert self.tracker.is_current(partition, epoch) == current
        assert self.tracker.finish(partition, epoch, offset) == current
        if current:
            self.finished[partition].add(offset)

    @rule()
    def commit(self) -> None:
        offsets = self.tracker.committable()
        self.tracker.committed(offsets)
        self.committed.update(offsets)
        assert self.tracker.committable() == {}, "a commit is not asked for twice"

    def prefix_end(self, partition: int) -> int:
        """The first delivered offset that is not finished; beyond the last where all are."""
        unfinished = [offset for offset in self.delivered[partition] if offset not in self.finished[partition]]
        return unfinished[0] if unfinished else self.delivered[partition][-1] + 1

    @invariant()
    def commits_exactly_the_finished_prefix(self) -> None:
        expected = {}
        for partition, offsets in self.delivered.items():
            prefix = [offset for offset in offsets if offset < self.prefix_end(partition)] if offsets else []
            if prefix and self.committed.get(partition) != prefix[-1] + 1:
                expected[partition] = prefix[-1] + 1
        assert self.tracker.committable() == expected

    @invariant()
    def counts_what_is_unfinished(self) -> None:
        per_partition = {p: len(offsets) - len(self.finished[p]) for p, offsets in self.delivered.items()}
        assert self.tracker.unfinished() == sum(per_partition.values())
        assert all(self.tracker.unfinished([p]) == count for p, count in per_partition.items())

    def teardown(self) -> None:
        """Once all is finished, all is committable."""
        for partition, epoch, offset in self.under_way:
            self.tracker.finish(partition, epoch, offset)
        self.tracker.committed(self.tracker.committable())
        assert self.tracker.unfinished() == 0


TrackerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestTracker = TrackerMachine.TestCase


def tracker(*partitions: int) -> OffsetTracker:
    subject = OffsetTracker()
    subject.assign(partitions)
    return subject


def test_out_of_order_results_wait_for_the_first() -> None:
    """What finishes early is committed only when everything before it has finished."""
    subject = tracker(0)
    epoch = subject.deliver(0, 10)
    assert epoch is not None
    assert [subject.deliver(0, offset) for offset in (11, 15)] == [epoch, epoch]
    subject.finish(0, epoch, 15)
    subject.finish(0, epoch, 11)
    assert subject.committable() == {}
    subject.finish(0, epoch, 10)
    assert subject.committable() == {0: 16}


def test_a_revoked_partition_is_fenced_off() -> None:
    """A late result of an epoch that is over counts for nothing, also when the partition came back in between."""
    subject = tracker(0, 1)
    old = subject.deliver(0, 5)
    assert old is not None
    assert subject.revoke([0]) == 1
    assert not subject.is_current(0, old)
    subject.assign([0])
    new = subject.deliver(0, 5)
    assert new is not None and new != old
    assert not subject.finish(0, old, 5)
    assert subject.committable() == {}
    assert subject.finish(0, new, 5)
    assert subject.committable() == {0: 6}


def test_a_revoke_counts_what_it_fences_off() -> None:
    """Not what has finished before its turn."""
    subject = tracker(0)
    epoch = subject.deliver(0, 5)
    assert epoch is not None
    subject.deliver(0, 6)
    subject.finish(0, epoch, 6)
    assert subject.revoke([0]) == 1


def test_partitions_of_others_are_not_delivered() -> None:
    """A record of a partition that is not assigned has no epoch; it is not worked on."""
    assert tracker(0).deliver(1, 0) is None


def test_a_refused_commit_is_offered_again() -> None:
    """Until the broker has acknowledged it, an offset stays committable."""
    subject = tracker(0)
    epoch = subject.deliver(0, 0)
    assert epoch is not None
    subject.finish(0, epoch, 0)
    assert subject.committable() == subject.committable() == {0: 1}
    subject.committed({0: 1, 7: 3})
    assert subject.committable() == {}


def test_what_holds_no_record_is_passed_over_once_all_before_it_is_finished() -> None:
    """Behind the last record (markers of transactions); never past one that is under way, nor in a new epoch."""
    tracker = OffsetTracker()
    tracker.assign([0])
    tracker.pass_over({0: 3})
    assert tracker.committable() == {}, "nothing has been delivered"
    epoch = tracker.deliver(0, 3)
    assert epoch is not None
    tracker.pass_over({0: 5, 1: 9})
    assert tracker.committable() == {}
    tracker.finish(0, epoch, 3)
    assert tracker.committable() == {0: 4}
    tracker.pass_over({0: 6})
    assert tracker.committable() == {0: 6}
    tracker.pass_over({0: 2})
    assert tracker.committable() == {0: 6}
    tracker.assign([0])
    tracker.pass_over({0: 9})
    assert tracker.committable() == {}


def test_results_of_several_threads_all_count() -> None:
    """Finishing from many threads at once loses nothing."""
    subject = tracker(0)
    epochs = {subject.deliver(0, offset) for offset in range(2000)}
    (epoch,) = epochs
    assert epoch is not None
    threads = [
        threading.Thread(target=lambda n=n: [subject.finish(0, epoch, offset) for offset in range(n, 2000, 4)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert subject.committable() == {0: 2000}
