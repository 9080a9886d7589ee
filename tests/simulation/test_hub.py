"""The scheduler itself: time jumps, kills leave nothing behind, a spin is noticed."""

from __future__ import annotations

import random

import pytest

from tests.simulation.clock import Lock, VirtualClock, VirtualStop
from tests.simulation.hub import Hub, Killed, Process, Stuck

HOUR_S = 3600.0


def hub(seed: int = 1) -> Hub:
    return Hub(random.Random(seed))


def test_time_jumps_to_the_next_deadline() -> None:
    """An hour of sleep is one step."""
    there = hub()
    woken: list[float] = []

    def sleep(seconds: float) -> None:
        there.sleep(seconds)
        woken.append(round(there.now))

    for hours in (3, 1, 2):
        there.spawn(f"sleeper {hours}", lambda hours=hours: sleep(hours * HOUR_S), Process("p"))
    there.run(lambda: False, 100)
    assert woken == [3600, 7200, 10_800]
    assert there.steps == 6


def test_a_wait_ends_by_its_predicate_or_by_time() -> None:
    """And says which."""
    there = hub()
    heard: list[tuple[str, bool]] = []
    box: list[int] = []
    process = Process("p")
    there.spawn("patient", lambda: heard.append(("patient", there.wait(lambda: bool(box), 10.0))), process)
    there.spawn("hasty", lambda: heard.append(("hasty", there.wait(lambda: bool(box), 0.1))), process)
    there.spawn("giver", lambda: (there.sleep(1.0), box.append(1)), process)
    there.run(lambda: False, 100)
    assert heard == [("hasty", False), ("patient", True)]
    assert there.now < 2


def test_a_killed_process_does_nothing_more() -> None:
    """Its tasks unwind where they stand; what they try to wait for on the way is refused, and others go on."""
    there = hub()
    done: list[str] = []
    victim, other = Process("victim"), Process("other")

    def work() -> None:
        try:
            there.sleep(5.0)
            done.append("worked")
        finally:
            with pytest.raises(Killed):
                there.sleep(1.0)

    there.spawn("work", work, victim)
    there.spawn("never ran", lambda: done.append("ran"), victim)
    there.spawn("other", lambda: (there.sleep(1.0), done.append("other")), other)
    there.alarm, there.alarm_step = lambda: there.kill(victim), 0
    there.run(lambda: False, 100)
    assert done == ["other"]


@pytest.mark.parametrize("waits", [True, False])
def test_a_task_that_never_rests_is_noticed(waits: bool) -> None:
    """Whether it lets others go first, or asks again and again for what it has."""
    there = hub()

    def spin() -> None:
        while True:
            if waits:
                there.sleep(0)
            else:
                there.wait(lambda: True, 1.0)

    there.spawn("spinner", spin, Process("p", raises=True))
    with pytest.raises(Stuck, match="spinner"):
        there.run(lambda: False, 1000)


def test_a_lock_is_held_by_one_and_released_while_waiting() -> None:
    """As a condition is: who waits for a notice lets others in, and holds it again afterwards."""
    there = hub(3)
    clock, lock, stop = VirtualClock(there), Lock(there), VirtualStop(there)
    pieces: list[int] = []
    taken: list[int] = []
    inside: list[str] = []

    def take() -> None:
        with lock:
            clock.wait_for(lock, lambda: len(pieces) > 0, 10.0)  # type: ignore[arg-type]
            assert not inside
            taken.append(pieces.pop())

    def give(piece: int) -> None:
        there.sleep(1.0)
        with lock:
            inside.append("giver")
            pieces.append(piece)
            lock.notify_all()
            inside.pop()

    process = Process("p")
    for piece in range(5):
        there.spawn("taker", take, process)
        there.spawn("giver", lambda piece=piece: give(piece), process)
    there.spawn("stopper", lambda: (there.sleep(2.0), stop.set()), process)
    heard: list[bool] = []
    there.spawn("listener", lambda: heard.append(stop.wait(60.0)), process)
    there.run(lambda: False, 1000)
    assert sorted(taken) == [0, 1, 2, 3, 4]
    assert heard == [True] and there.now < 3
