"""Admission with hysteresis, and hand-overs between real threads."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.properties import given
from worker.errors import Stopping
from worker.flow import Flow, HandOver
from worker.settings import MIB, FlowSettings

PATIENCE_S = 30


class FlowMachine(RuleBasedStateMachine):
    """Records come, grow, shrink and go; the oracle is the list of those that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = Flow(FlowSettings(max_items=8, max_bytes=MIB, low_water=0.5))
        self.held: list[int] = []
        self.full = False

    def update(self) -> None:
        items, size = len(self.held), sum(self.held)
        if items >= 8 or size >= MIB:
            self.full = True
        elif items <= 4 and size <= MIB // 2:
            self.full = False

    @rule(size=st.integers(0, MIB // 3))
    def admit(self, size: int) -> None:
        self.flow.admit(size)
        self.held.append(size)
        self.update()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), size=st.integers(0, MIB // 3))
    def grow(self, data: st.DataObject, size: int) -> None:
        self.held[data.draw(st.integers(0, len(self.held) - 1))] += size
        self.flow.hold_fetched(size)
        self.update()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def shrink(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.held) - 1))
        size = data.draw(st.integers(0, self.held[index]))
        self.held[index] -= size
        self.flow.let_go_fetched(size)
        self.update()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.flow.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))
        self.update()

    @invariant()
    def counts_what_is_held(self) -> None:
        assert (self.flow.items, self.flow.bytes) == (len(self.held), sum(self.held))
        assert self.flow.room == max(0, 8 - len(self.held))

    @invariant()
    def is_full_between_the_marks_as_history_says(self) -> None:
        assert self.flow.is_full == self.full


FlowMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestFlow = FlowMachine.TestCase


@given(st.integers(1, 1000), st.floats(0.01, 1), st.lists(st.booleans(), max_size=300))
def test_whoever_respects_the_marks_stays_within_them(max_items: int, low_water: float, coins: list[bool]) -> None:
    """Admitting only while there is room keeps the count within the bound, and an empty flow is never full."""
    flow = Flow(FlowSettings(max_items=max_items, low_water=low_water))
    for come in coins:
        if come and not flow.is_full and flow.room:
            flow.admit(1)
        elif flow.items:
            flow.release(1)
        assert 0 <= flow.items <= max_items
    while flow.items:
        flow.release(1)
    assert not flow.is_full
    assert flow.bytes == 0


def test_full_stays_full_until_both_low_marks() -> None:
    """Hysteresis: consumption does not flicker around one mark."""
    flow = Flow(FlowSettings(max_items=4, max_bytes=MIB, low_water=0.5))
    for _ in range(4):
        flow.admit(MIB // 8)
    seen = []
    for _ in range(4):
        flow.release(MIB // 8)
        seen.append(flow.is_full)
    assert seen == [True, False, False, False]


def test_bytes_alone_fill_it() -> None:
    """Two large images count for more than their number."""
    flow = Flow(FlowSettings(max_items=100, max_bytes=MIB, low_water=0.5))
    flow.admit(10)
    flow.hold_fetched(MIB)
    assert flow.is_full
    flow.let_go_fetched(MIB)
    assert not flow.is_full


def test_a_fetch_waits_for_fetched_images_and_hears_the_stop() -> None:
    """A fetch begins once fetched images have made room; a stop ends its wait."""
    flow = Flow(FlowSettings(max_items=100, max_bytes=MIB))
    flow.admit(10)
    flow.hold_fetched(MIB)
    stop, passed = threading.Event(), threading.Event()

    def wait() -> None:
        flow.wait_to_fetch(stop)
        passed.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert not passed.wait(0.05)
    flow.let_go_fetched(MIB)
    assert passed.wait(PATIENCE_S)
    flow.hold_fetched(MIB)
    stop.set()
    with pytest.raises(Stopping):
        flow.wait_to_fetch(stop)


def test_a_fetch_does_not_wait_for_records_that_may_wait_for_it() -> None:
    """Inline images fill the flow: a fetch begins all the same, they may stand behind it in the line of their id."""
    flow = Flow(FlowSettings(max_items=100, max_bytes=MIB))
    flow.admit(MIB)
    assert flow.is_full
    flow.wait_to_fetch(threading.Event())


def test_a_hand_over_keeps_order_and_loses_nothing_between_threads() -> None:
    """A thousand pieces through a queue of three arrive once each and in order."""
    queue: HandOver[int] = HandOver(capacity=3)
    stop = threading.Event()
    producer = threading.Thread(target=lambda: [queue.put(piece, stop) for piece in range(1000)], daemon=True)
    producer.start()
    got, most = [], 0
    while len(got) < 1000:
        most = max(most, len(queue))
        piece = queue.get(PATIENCE_S)
        assert piece is not None
        got.append(piece)
    producer.join(PATIENCE_S)
    assert got == list(range(1000))
    assert most <= 3


def test_several_takers_share_the_pieces() -> None:
    """With several threads taking, each piece goes to exactly one."""
    queue: HandOver[int] = HandOver(capacity=2)
    stop = threading.Event()
    taken: list[list[int]] = [[], [], []]

    def take(mine: list[int]) -> None:
        while (piece := queue.get(PATIENCE_S)) is not None and piece >= 0:
            mine.append(piece)

    takers = [threading.Thread(target=take, args=(mine,), daemon=True) for mine in taken]
    for taker in takers:
        taker.start()
    for piece in [*range(300), -1, -1, -1]:
        queue.put(piece, stop)
    for taker in takers:
        taker.join(PATIENCE_S)
    assert sorted(piece for mine in taken for piece in mine) == list(range(300))
    assert all(mine == sorted(mine) for mine in taken)


def test_a_full_hand_over_blocks_until_there_is_room() -> None:
    """The stage before waits; it goes on when the stage behind takes a piece."""
    queue: HandOver[str] = HandOver(capacity=1)
    stop, handed = threading.Event(), threading.Event()
    queue.put("first", stop)

    def put() -> None:
        queue.put("second", stop)
        handed.set()

    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    assert not handed.wait(0.05)
    assert queue.get(0) == "first"
    assert handed.wait(PATIENCE_S)
    assert queue.get_all(0) == ["second"]


def test_a_stop_ends_the_wait_for_room() -> None:
    """A stage that cannot hand over ends with Stopping; what it held is redelivered."""
    queue: HandOver[str] = HandOver(capacity=1)
    stop = threading.Event()
    queue.put("first", stop)
    stop.set()
    with pytest.raises(Stopping):
        queue.put("second", stop)
    assert queue.get_all(0) == ["first"]


def test_nothing_there_is_none() -> None:
    """An empty hand-over answers None, or an empty list, once the time is up."""
    queue: HandOver[str] = HandOver()
    assert queue.get(0) is None
    assert queue.get_all(0) == []
