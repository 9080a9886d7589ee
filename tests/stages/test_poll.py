"""Polling: admission and back-pressure, commits of the finished prefix, and the drain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.twins import P0, Workbench, record, settings
from worker.clock import Clock, StopFlag
from worker.contract import Partition, Record
from worker.errors import Stopping, Unavailable
from worker.item import Item
from worker.stages.poll import Poll


class ConsumerTwin:
    """Hands out `records`; `commits` keeps what was committed; `away`: every call raises Unavailable."""

    is_joined = True
    position_of: dict[Partition, int] = {}  # nobody changes it
    can_park = True

    def __init__(self, *records: Record) -> None:
        self.records = list(records)
        self.asked: list[int] = []
        self.paused = False
        self.away = False
        self.refuses_commits = False
        self.commits: list[dict[Partition, int]] = []

    def poll(self, timeout_ms: int, max_records: int, max_bytes: int | None = None) -> list[Record]:
        self.asked.append(max_records)
        if self.away:
            raise Unavailable("kafka", "twin: switched off")
        if self.paused:
            return []
        found, self.records = self.records[:max_records], self.records[max_records:]
        return found

    def commit(self, offsets: Mapping[Partition, int], timeout_ms: int) -> bool:
        if self.away:
            raise Unavailable("kafka", "twin: switched off")
        if self.refuses_commits:
            return False
        self.commits.append(dict(offsets))
        return True

    def set_paused(self, paused: bool) -> None:
        self.paused = paused

    def waiting(self) -> dict[Partition, int]:
        return {P0: len(self.records)}

    def positions(self) -> dict[Partition, int]:
        return self.position_of

    def obstacle(self) -> str:
        return ""


def polling(bench: Workbench, consumer: Any) -> tuple[Poll, StopFlag]:
    """The stage with its consumer attached, and the drain that it listens to."""
    drain = StopFlag()
    breakers = (bench.redis, bench.triton_server, bench.kafka)
    poll = Poll(
        bench.settings,
        bench.tools,
        bench.under_way,
        drain=drain,
        breakers=breakers,
        arrivals=bench.queues.arrivals,
    )
    poll.attach(consumer)
    return poll, drain


def arrived(bench: Workbench) -> list[int]:
    return [item.record.offset for piece in bench.queues.arrivals.get_all(0) for item in piece]  # type: ignore[union-attr]


def test_records_are_admitted_and_handed_on_in_order() -> None:
    """Each is counted with key and headers, and its partition's epoch goes with it."""
    bench = Workbench()
    first = record(0, b"xyz", key=b"k", headers=[("n", b"vv")])
    consumer = ConsumerTwin(first, record(1))
    poll, _ = polling(bench, consumer)
    poll.step(0.0)
    assert arrived(bench) == [0, 1]
    assert (bench.admission.items, bench.admission.bytes) == (2, first.size_bytes + 1)
    assert bench.tracker.unfinished() == 2
    assert bench.metric("assay_records_consumed_total") == 2


def test_a_redelivery_of_what_is_under_way_is_ignored() -> None:
    """A record that is in work already is not admitted twice."""
    bench = Workbench()
    poll, _ = polling(bench, ConsumerTwin(record(0), record(0)))
    poll.step(0.0)
    assert arrived(bench) == [0]
    assert bench.admission.items == 1


def test_a_full_admission_pauses_and_a_free_one_resumes() -> None:
    """No more is asked for than may be admitted; polling goes on meanwhile."""
    bench = Workbench(settings(flow={"max_items": 2, "low_water": 0.5}))
    consumer = ConsumerTwin(*[record(offset) for offset in range(4)])
    poll, _ = polling(bench, consumer)
    poll.step(0.0)
    poll.step(0.0)
    assert (consumer.asked, consumer.paused, arrived(bench)) == ([2, 1], True, [0, 1])
    assert bench.metric("assay_pauses_total", cause="flow") == 1
    for _ in range(2):
        bench.admission.release(1)
    poll.step(0.0)
    assert (consumer.paused, arrived(bench)) == (False, [2, 3])


def test_a_server_that_is_away_pauses_until_it_is_back() -> None:
    """An open breaker is a pause, and its success the end of it."""
    bench = Workbench()
    consumer = ConsumerTwin(record(0))
    poll, _ = polling(bench, consumer)
    for _ in range(bench.settings.retry.breaker_failures):
        bench.redis.failed(Unavailable("redis", "away"))
    poll.step(0.0)
    assert (consumer.paused, arrived(bench)) == (True, [])
    bench.redis.succeeded()
    poll.step(0.0)
    assert (consumer.paused, arrived(bench)) == (False, [0])


def test_only_the_finished_prefix_is_committed() -> None:
    """A record that ended before the one in front of it waits for it."""
    bench = Workbench(settings(kafka={"commit_interval_ms": 50}))
    consumer = ConsumerTwin(record(0), record(1))
    poll, _ = polling(bench, consumer)
    poll.step(0.0)
    epoch = bench.queues.arrivals.get_all(0)[0][0].epoch  # type: ignore[union-attr]
    bench.tracker.finish(P0, epoch, 1)
    poll.commit_last()
    assert consumer.commits == []
    bench.tracker.finish(P0, epoch, 0)
    poll.commit_last()
    poll.commit_last()
    assert consumer.commits == [{P0: 2}]


def test_a_refused_commit_is_tried_again() -> None:
    """What the group refused is still to be committed."""
    bench = Workbench()
    consumer = ConsumerTwin(record(0))
    poll, _ = polling(bench, consumer)
    poll.step(0.0)
    bench.tracker.finish(P0, bench.queues.arrivals.get_all(0)[0][0].epoch, 0)  # type: ignore[union-attr]
    consumer.refuses_commits = True
    poll.commit_last()
    consumer.refuses_commits = False
    poll.commit_last()
    assert consumer.commits == [{P0: 1}]
    assert bench.metric("assay_commit_failures_total") == 1


def test_a_drain_takes_nothing_new_and_ends_when_all_has_ended() -> None:
    """It commits what finishes, then it has no more to do."""
    bench = Workbench()
    consumer = ConsumerTwin(record(0))
    poll, drain = polling(bench, consumer)
    poll.step(0.0)
    (item,) = bench.queues.arrivals.get_all(0)[0]
    assert isinstance(item, Item)
    consumer.records = [record(1)]
    drain.set()
    poll.step(0.0)
    assert (consumer.paused, arrived(bench)) == (True, [])
    bench.tracker.finish(P0, item.epoch, 0)
    with pytest.raises(Stopping, match="drained"):
        poll.step(0.0)


class Later(Clock):
    """The machine's clock, put forward."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


def test_a_drain_ends_at_its_deadline() -> None:
    """What cannot finish is redelivered: a server that stays away does not keep the worker for ever."""
    bench, clock = Workbench(), Later()
    bench.tools = replace(bench.tools, clock=clock)
    poll, drain = polling(bench, ConsumerTwin(record(0)))
    poll.step(0.0)
    drain.set()
    poll.step(0.0)
    clock.ahead_s = bench.settings.run.drain_timeout_s
    with pytest.raises(Stopping):
        poll.step(0.0)
    assert bench.tracker.unfinished() == 1


def test_an_outage_of_kafka_ends_no_poll() -> None:
    """It is told and polled through; a drain goes on through it, too."""
    bench = Workbench()
    consumer = ConsumerTwin(record(0))
    poll, drain = polling(bench, consumer)
    poll.step(0.0)
    consumer.away = True
    drain.set()
    poll.step(0.0)
    poll.commit_last()
    assert bench.metric("assay_commit_failures_total") == 0
    consumer.away = False
    poll.step(0.0)
    assert bench.tracker.unfinished() == 1
