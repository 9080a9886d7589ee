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


def test_a_message_with_its_numbers_in_it_is_the_same_line() -> None:
    """Some libraries format before they log: addresses and durations are no other kind."""
    repeats = Repeats(10.0, Clock())
    assert repeats.filter(record("Task <Task object at 0x7fd47f30b2d0> ran for 0.107s"))
    assert not repeats.filter(record("Task <Task object at 0x7fd47f30aaaa> ran for 0.211s"))


def test_kinds_without_end_do_not_fill_the_memory() -> None:
    """A library that formats its messages itself makes a new kind of each."""
    repeats = Repeats(10.0, Clock())
    words = (
        f"message {chr(97 + number % 26)}{chr(97 + number // 26 % 26)}{chr(97 + number // 676)}"
        for number in range(5_000)
    )
    assert all(repeats.filter(record(word)) for word in words)
    assert len(repeats._seen) <= 1_000
