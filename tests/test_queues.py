"""Queues between stages, with real threads at both ends."""

from __future__ import annotations

import threading

import pytest

from tests.waits import Waits
from worker.clock import StopFlag
from worker.errors import Stopping
from worker.queues import StageQueue

PATIENCE_S = 30


def test_a_queue_keeps_order_and_loses_nothing_between_threads() -> None:
    """A thousand pieces through a queue of three arrive once each and in order."""
    queue: StageQueue[int] = StageQueue(capacity=3)
    stop = StopFlag()
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
    queue: StageQueue[int] = StageQueue(capacity=2)
    stop = StopFlag()
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


def test_a_full_queue_blocks_until_a_piece_is_taken() -> None:
    """The stage before waits; it goes on when the stage behind takes a piece."""
    queue: StageQueue[str] = StageQueue(capacity=1)
    stop, handed = StopFlag(), threading.Event()
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


def test_a_stop_ends_the_wait_at_a_full_queue() -> None:
    """A stage that cannot hand over ends with Stopping; what it held is redelivered."""
    queue: StageQueue[str] = StageQueue(capacity=1)
    stop = StopFlag()
    queue.put("first", stop)
    stop.set()
    with pytest.raises(Stopping):
        queue.put("second", stop)
    assert queue.get_all(0) == ["first"]


def test_a_stop_is_heard_at_a_full_queue() -> None:
    """Nothing else need happen: the wait looks at it by itself."""
    clock, stop = Waits(), StopFlag()
    queue: StageQueue[str] = StageQueue(1, clock)
    queue.put("first", stop)
    clock.then = stop.set
    with pytest.raises(Stopping):
        queue.put("second", stop)
    assert clock.waited_s == [0.1]


def test_only_an_empty_queue_is_waited_for() -> None:
    """As long as it is asked to, by each way of taking; what is there is taken at once."""
    clock, stop = Waits(), StopFlag()
    queue: StageQueue[str] = StageQueue(clock=clock)
    queue.put("first", stop)
    assert queue.get(7) == "first"
    queue.put("second", stop)
    assert queue.get_all(7) == ["second"]
    assert clock.waited_s == []
    clock.then = lambda: queue.put("late", stop)
    assert queue.get(5) == "late"
    assert queue.get_all(6) == ["late"]
    assert clock.waited_s == [5, 6]


def test_a_listener_hears_of_each_piece_once_it_is_there() -> None:
    """For a taker that waits for something else as well."""
    queue: StageQueue[str] = StageQueue()
    heard: list[int] = []
    queue.listen(lambda: heard.append(len(queue)))
    queue.put("first", StopFlag())
    queue.put("second", StopFlag())
    assert heard == [1, 2]


def test_nothing_there_is_none() -> None:
    """An empty queue answers None, or an empty list, once the time is up."""
    queue: StageQueue[str] = StageQueue()
    assert queue.get(0) is None
    assert queue.get_all(0) == []
