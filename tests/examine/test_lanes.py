"""Lanes: how children and memory are shared out, and who is next in the slow lane."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.examine.findings import Cost
from worker.examine.lanes import VERY_SLOW_MS, Shares, SlowLane

MIB = 1 << 20
SLOW, VERY_SLOW = Cost(200.0, 10 * MIB), Cost(VERY_SLOW_MS + 1, 10 * MIB)


def test_there_are_always_two_slow_children() -> None:
    """One that very slow images may have, and one that they may not."""
    assert [Shares.of(processes, 1000 * MIB).slow for processes in (1, 2, 8)] == [2, 2, 8]


@given(st.integers(1, 256), st.integers(64, 65_536))
def test_quick_and_slow_together_stay_within_the_memory(processes: int, mib: int) -> None:
    """Whatever the settings: what the lanes may hold adds up to the setting, and the slow lane has half at least."""
    shares = Shares.of(processes, mib * MIB)
    assert shares.quick * shares.quick_bytes + shares.slow_bytes == mib * MIB
    assert shares.slow_bytes * 2 >= mib * MIB


def test_the_cheaper_goes_first_but_does_not_overtake_for_ever() -> None:
    """A dear image waits behind cheaper ones that come later, until it has waited for four times its cost."""
    lane: SlowLane[str] = SlowLane(1 + 1, 1000 * MIB)
    lane.add("dear", Cost(900.0, MIB), now_ms=0)
    lane.add("cheap", Cost(100.0, MIB), now_ms=1000)
    lane.add("late", Cost(100.0, MIB), now_ms=3300)
    assert [started[1] for started in (lane.start(), lane.start()) if started] == ["cheap", "dear"]


def test_very_slow_images_leave_one_child_to_the_others() -> None:
    """However many there are."""
    lane: SlowLane[str] = SlowLane(2, 1000 * MIB)
    for name in ("one", "two"):
        lane.add(name, VERY_SLOW, now_ms=0)
    first = lane.start()
    assert first is not None and first[1] == "one"
    assert lane.start() is None
    lane.add("slow", SLOW, now_ms=10_000)
    assert (lane.start() or ("", ""))[1] == "slow"
    lane.ended(first[0])
    assert (lane.start() or ("", ""))[1] == "two"


def test_memory_is_reserved_before_a_decode_begins() -> None:
    """What does not fit beside what is under way waits, also where there is a child for it."""
    lane: SlowLane[str] = SlowLane(3, 100 * MIB)
    for name in ("one", "two"):
        lane.add(name, Cost(200.0, 60 * MIB), now_ms=0)
    first = lane.start()
    assert first is not None
    assert lane.start() is None
    lane.ended(first[0])
    assert (lane.start() or ("", ""))[1] == "two"


def test_an_image_larger_than_all_memory_goes_alone() -> None:
    """It would otherwise wait for ever; what its process may take is bounded anyhow."""
    lane: SlowLane[str] = SlowLane(3, 100 * MIB)
    lane.add("huge", Cost(200.0, 500 * MIB), now_ms=0)
    lane.add("small", Cost(300.0, MIB), now_ms=0)
    assert (lane.start() or ("", ""))[1] == "huge"
    assert lane.start() is None


@given(st.lists(st.tuples(st.floats(1, 20_000), st.integers(1, 200)), max_size=30), st.randoms(use_true_random=False))
def test_everything_that_is_added_is_started_once(images: list[tuple[float, int]], rng) -> None:
    """In whatever order they end; bounds hold at each moment."""
    lane: SlowLane[int] = SlowLane(3, 100 * MIB)
    for number, (effort_ms, mib) in enumerate(images):
        lane.add(number, Cost(effort_ms, mib * MIB), now_ms=float(number))
    under_way: dict[int, int] = {}
    started: list[int] = []
    while len(started) < len(images):
        while found := lane.start():
            under_way[found[0]] = found[1]
            started.append(found[1])
            costs = [images[number] for number in under_way.values()]
            assert len(costs) <= 3 and sum(effort > VERY_SLOW_MS for effort, _ in costs) <= 2
            assert len(costs) == 1 or sum(mib for _, mib in costs) <= 100
        ended = rng.choice(sorted(under_way))
        lane.ended(ended)
        del under_way[ended]
    assert sorted(started) == list(range(len(images)))
    assert len(lane) == 0
