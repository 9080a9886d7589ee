"""A worker whose loop stands still ends; one that moves, or is stopped from outside, does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from worker.clock import StopFlag
from worker.watchdog import Watchdog


class Pulse:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def looks(dog: Watchdog, pulse: Pulse, ticks: int, *, moving: bool) -> list[str]:
    found = []
    for _ in range(ticks):
        pulse.now += moving
        found.append(dog.look())
    return found


def test_a_loop_that_stands_still_is_told_within_the_limit() -> None:
    """Three quarters of the stall time-out, counted anew each time it moves."""
    pulse = Pulse()
    dog = Watchdog(pulse, StopFlag(), stall_s=60, drain_s=25)
    assert not any(looks(dog, pulse, 40, moving=False))
    assert not any(looks(dog, pulse, 1_000, moving=True))
    assert [bool(found) for found in looks(dog, pulse, 45, moving=False)] == [False] * 44 + [True]


@pytest.mark.parametrize(("moving", "ends_at"), [(False, 25), (True, 37)])
def test_a_drain_that_is_not_over_ends(moving: bool, ends_at: int) -> None:
    """At its deadline where the loop stands still; else once the rest has had its time too."""
    pulse, drain = Pulse(), StopFlag()
    dog = Watchdog(pulse, drain, stall_s=60, drain_s=25)
    drain.set()
    found = looks(dog, pulse, ends_at, moving=moving)
    assert [bool(one) for one in found] == [False] * (ends_at - 1) + [True]


def test_a_worker_that_ends_by_itself_is_left_alone() -> None:
    """Closing what hangs may take its time."""
    pulse, drain = Pulse(), StopFlag()
    dog = Watchdog(pulse, drain, stall_s=60, drain_s=1)
    drain.set()
    dog.stop()
    assert not any(looks(dog, pulse, 100, moving=False))


def test_the_process_ends_and_says_where_it_stood() -> None:
    """Exit code 1, although the main thread never returns."""
    program = (
        "from worker import watchdog\n"
        "from worker.clock import StopFlag\n"
        "dog = watchdog.Watchdog(lambda: 1.0, StopFlag(), stall_s=2, drain_s=25, tick=lambda _s: None)\n"
        "dog.start()\n"
        "while True: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "worker_stuck" in done.stdout + done.stderr
    assert 'File "<string>"' in done.stderr
