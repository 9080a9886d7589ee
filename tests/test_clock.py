"""The stop that a signal handler may set, and waits on the machine's clock."""

from __future__ import annotations

import signal
import threading

from worker.clock import SYSTEM_CLOCK, StopFlag

PATIENCE_S = 30


def test_a_stop_ends_a_wait_in_another_thread() -> None:
    """Whoever waits hears of it without being woken."""
    stop, heard = StopFlag(), threading.Event()
    threading.Thread(target=lambda: stop.wait() and heard.set(), daemon=True).start()
    assert not heard.wait(0.05)
    stop.set()
    assert heard.wait(PATIENCE_S)


def test_a_wait_without_a_stop_ends_by_itself() -> None:
    """It says that the stop did not come."""
    assert not StopFlag().wait(0.01)
    assert not StopFlag().wait(0)


def test_a_handler_may_set_the_stop_while_the_main_thread_waits_for_it() -> None:
    """A signal that arrives inside `wait` sets the very flag: no lock stands in its way."""
    stop = StopFlag()
    before = signal.signal(signal.SIGALRM, lambda _number, _frame: stop.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert stop.wait(PATIENCE_S)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_clock_waits_for_another_thread_s_change() -> None:
    """A notified condition ends the wait; without a change it says so."""
    changed, there = threading.Condition(), []

    def change() -> None:
        with changed:
            there.append(1)
            changed.notify_all()

    with changed:
        assert not SYSTEM_CLOCK.wait_for(changed, lambda: bool(there), 0.01)
        threading.Thread(target=change, daemon=True).start()
        assert SYSTEM_CLOCK.wait_for(changed, lambda: bool(there), PATIENCE_S)
