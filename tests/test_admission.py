"""Admission with hysteresis, between real threads."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.properties import given
from tests.waits import Waits
from worker.admission import Admission
from worker.errors import Stopping
from worker.settings import MIB, FlowSettings

PATIENCE_S = 30


class AdmissionMachine(RuleBasedStateMachine):
    """Records come, grow, shrink and go; the oracle is the list of those that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(FlowSettings(max_items=8, max_bytes=MIB, max_references=6, low_water=0.5))
        self.held: list[int] = []
        self.references = 0
        self.full = False

    def update(self) -> None:
        items, size = len(self.held), sum(self.held)
        if items >= 8 or size >= MIB or self.references >= 6:
            self.full = True
        elif items <= 4 and size <= MIB // 2 and self.references <= 3:
            self.full = False

    @rule(size=st.integers(0, MIB // 3))
    def admit(self, size: int) -> None:
        self.admission.admit(size)
        self.held.append(size)
        self.update()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), size=st.integers(0, MIB // 3))
    def grow(self, data: st.DataObject, size: int) -> None:
        self.held[data.draw(st.integers(0, len(self.held) - 1))] += size
        self.admission.hold_fetched(size)
        self.update()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def shrink(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.held) - 1))
        size = data.draw(st.integers(0, self.held[index]))
        self.held[index] -= size
        self.admission.release_fetched(size)
        self.update()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.admission.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))
        self.update()

    @rule()
    def admit_reference(self) -> None:
        self.admission.admit_reference()
        self.references += 1
        self.update()

    @precondition(lambda self: self.references)
    @rule()
    def release_reference(self) -> None:
        self.admission.release_reference()
        self.references -= 1
        self.update()

    @invariant()
    def counts_what_is_held(self) -> None:
        assert (self.admission.items, self.admission.bytes) == (len(self.held), sum(self.held))
        assert self.admission.references == self.references
        assert self.admission.free_items == max(0, 8 - len(self.held))

    @invariant()
    def is_full_between_the_marks_as_history_says(self) -> None:
        assert self.admission.is_full == self.full


AdmissionMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAdmission = AdmissionMachine.TestCase


@given(st.integers(1, 1000), st.floats(0.01, 1), st.lists(st.booleans(), max_size=300))
def test_whoever_respects_the_marks_stays_within_them(max_items: int, low_water: float, coins: list[bool]) -> None:
    """Admitting only while there is place keeps the count within the bound, and an empty one is never full."""
    admission = Admission(FlowSettings(max_items=max_items, low_water=low_water))
    for come in coins:
        if come and not admission.is_full and admission.free_items:
            admission.admit(1)
        elif admission.items:
            admission.release(1)
        assert 0 <= admission.items <= max_items
    while admission.items:
        admission.release(1)
    assert not admission.is_full
    assert admission.bytes == 0


def test_full_stays_full_until_both_low_marks() -> None:
    """Hysteresis: consumption does not flicker around one mark."""
    admission = Admission(FlowSettings(max_items=4, max_bytes=MIB, low_water=0.5))
    for _ in range(4):
        admission.admit(MIB // 8)
    seen = []
    for _ in range(4):
        admission.release(MIB // 8)
        seen.append(admission.is_full)
    assert seen == [True, False, False, False]


def test_a_low_mark_is_a_share_of_the_high_one_and_at_least_one() -> None:
    """Rounded down: of three, with four tenths, one; of two, with one tenth, one."""
    for max_items, low_water, expected in ((3, 0.4, [True, False, False]), (2, 0.1, [False, False])):
        items = Admission(FlowSettings(max_items=max_items, low_water=low_water))
        references = Admission(FlowSettings(max_references=max_items, low_water=low_water))
        for _ in range(max_items):
            items.admit(0)
            references.admit_reference()
        assert items.is_full and references.is_full
        seen = []
        for _ in range(max_items):
            items.release(0)
            references.release_reference()
            seen.append((items.is_full, references.is_full))
        assert seen == [(full, full) for full in expected]


def test_slow_images_keep_others_out_by_their_bytes_alone() -> None:
    """Up to a bound; one that ends counts no more among them, and no other."""
    admission = Admission(FlowSettings(max_items=2, max_bytes=MIB, low_water=0.5))
    for _ in range(2 * 8):
        admission.admit(1)
        assert admission.set_aside()
    assert (admission.items, admission.aside, admission.bytes) == (0, 16, 16)
    admission.admit(1)
    assert not admission.set_aside(), "too many are aside"
    assert admission.items == 1
    admission.release(1, aside=True)
    assert (admission.items, admission.aside, admission.bytes) == (1, 15, 16)
    assert admission.set_aside()
    admission.release(1, aside=True)
    admission.admit(MIB)
    assert admission.set_aside()
    assert admission.is_full, "its bytes count"


def test_bytes_alone_fill_it() -> None:
    """Two large images count for more than their number."""
    admission = Admission(FlowSettings(max_items=100, max_bytes=MIB, low_water=0.5))
    admission.admit(10)
    admission.hold_fetched(MIB)
    assert admission.is_full
    admission.release_fetched(MIB)
    assert not admission.is_full


def test_a_fetch_waits_for_fetched_images_and_hears_the_stop() -> None:
    """A fetch begins once fetched images have gone; a stop ends its wait."""
    admission = Admission(FlowSettings(max_items=100, max_bytes=MIB))
    admission.admit(10)
    admission.hold_fetched(MIB)
    stop, passed = threading.Event(), threading.Event()

    def wait() -> None:
        admission.wait_to_fetch(stop)
        passed.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert not passed.wait(0.05)
    admission.release_fetched(MIB)
    assert passed.wait(PATIENCE_S)
    admission.hold_fetched(MIB)
    stop.set()
    with pytest.raises(Stopping):
        admission.wait_to_fetch(stop)


def test_a_stop_is_heard_while_a_fetch_waits() -> None:
    """Nothing else need happen: the wait looks at it by itself, and only then."""
    clock, stop = Waits(), threading.Event()
    admission = Admission(FlowSettings(max_bytes=MIB), clock)
    admission.hold_fetched(MIB)
    clock.then = stop.set
    with pytest.raises(Stopping):
        admission.wait_to_fetch(stop)
    assert clock.waited_s == [0.1]


def test_a_single_fetched_byte_is_waited_for() -> None:
    """Full to the byte, one of them fetched: it will go by itself."""
    clock, stop = Waits(), threading.Event()
    admission = Admission(FlowSettings(max_bytes=MIB), clock)
    admission.admit(MIB - 2)
    admission.hold_fetched(1)
    admission.wait_to_fetch(stop)  # a byte is free
    admission.admit(1)
    clock.then = lambda: admission.release_fetched(1)
    admission.wait_to_fetch(stop)
    assert clock.waited_s == [0.1]


def test_fetched_bytes_add_up() -> None:
    """A fetch waits until the last of them has gone; then what is left can only be waiting for it."""
    clock, stop = Waits(), threading.Event()
    admission = Admission(FlowSettings(max_bytes=MIB), clock)
    admission.admit(MIB)
    for size in (2, 1):
        admission.hold_fetched(size)
    left = [1, 2]
    clock.then = lambda: admission.release_fetched(left.pop())
    admission.wait_to_fetch(stop)
    assert clock.waited_s == [0.1, 0.1] and left == []


def test_bytes_are_full_until_their_low_mark() -> None:
    """Half of the high one, to the byte."""
    admission = Admission(FlowSettings(max_bytes=MIB, low_water=0.5))
    admission.admit(MIB)
    admission.release_fetched(MIB // 2 - 1)
    assert admission.is_full
    admission.release_fetched(1)
    assert not admission.is_full


def test_a_fetch_does_not_wait_for_records_that_may_wait_for_it() -> None:
    """Inline images fill it: a fetch begins all the same, they may stand behind it in the line of their id."""
    admission = Admission(FlowSettings(max_items=100, max_bytes=MIB))
    admission.admit(MIB)
    assert admission.is_full
    admission.wait_to_fetch(threading.Event())
