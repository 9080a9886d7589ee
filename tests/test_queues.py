"""Queues between stages, with real threads at both ends."""

from __future__ import annotations

import threading

import pytest

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


def test_nothing_there_is_none() -> None:
    """An empty queue answers None, or an empty list, once the time is up."""
    queue: StageQueue[str] = StageQueue()
    assert queue.get(0) is None
    assert queue.get_all(0) == []
