"""Lines that repeat are told of once in a while, with their number."""

from __future__ import annotations

import logging

from worker.telemetry.repeats import Repeats


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def record(message: str, *args: object, name: str = "kafka.net") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, __file__, 1, message, args, None)


def test_the_first_passes_and_the_next_one_after_a_pause_counts() -> None:
    """Other values in the same template are the same line; another template or logger is not."""
    clock = Clock()
    repeats = Repeats(10.0, clock)
    assert repeats.filter(record("node %s is gone", 1))
    assert not repeats.filter(record("node %s is gone", 2))
    assert not repeats.filter(record("node %s is gone", 3))
    assert repeats.filter(record("node %s is back", 1))
    assert repeats.filter(record("node %s is gone", 1, name="redis"))
    clock.now += 11
    last = record("node %s is gone", 4)
    assert repeats.filter(last)
    assert last.getMessage() == "node 4 is gone (2 more like it in 11 s)"


def test_kinds_without_end_do_not_fill_the_memory() -> None:
    """A library that formats its messages itself makes a new kind of each."""
    repeats = Repeats(10.0, Clock())
    assert all(repeats.filter(record(f"message {number}")) for number in range(5_000))
    assert len(repeats._seen) <= 1_000
