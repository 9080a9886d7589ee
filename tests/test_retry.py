"""Backoff and breaker, on a clock that only moves when somebody waits."""

from __future__ import annotations

import pytest
import structlog
from hypothesis import strategies as st
from structlog.testing import LogCapture

from tests.properties import given
from worker import retry
from worker.clock import Clock
from worker.errors import AssayError, Rejected, RejectReason, Stopping, Unavailable
from worker.retry import BreakerState, CircuitBreaker, Guarded, backoff_s
from worker.settings import RetrySettings


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LogCapture:
    """What the breaker says meanwhile."""
    capture = LogCapture()
    monkeypatch.setattr(retry, "log", structlog.wrap_logger(None, processors=[capture]))
    return capture


SETTINGS = RetrySettings(base_ms=100, max_ms=5_000, breaker_failures=3)


class Time(Clock):
    """A clock, and a stop signal whose `wait` moves it; set after `give_up_s` so that no test can hang."""

    def __init__(self, give_up_s: float = 1e6) -> None:
        self.now = 100.0
        self.waits: list[float] = []
        self._give_up = self.now + give_up_s
        self._set = False

    def monotonic(self) -> float:
        return self.now

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set or self.now >= self._give_up

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        self.now += timeout
        return self.is_set()


class Flaky:
    """An operation with a script: an error is raised, anything else returned; the last entry repeats."""

    def __init__(self, *script: object) -> None:
        self._script = list(script)
        self.calls = 0

    def __call__(self) -> object:
        self.calls += 1
        step = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if isinstance(step, BaseException):
            raise step
        return step


def away() -> Unavailable:
    return Unavailable("redis", "connection refused")


def dependency(
    time: Time, states: list[BreakerState] | None = None, retries: list[str] | None = None
) -> CircuitBreaker:
    """Backs off by the whole ceiling each time, so that waits are known."""
    return CircuitBreaker(
        "redis",
        SETTINGS,
        clock=time,
        uniform=lambda _low, high: high,
        on_change=lambda _name, state: states.append(state) if states is not None else None,
        on_retry=lambda name: retries.append(name) if retries is not None else None,
    )


@given(st.integers(1, 2000), st.integers(1, 10_000), st.integers(1, 100_000), st.floats(0, 1))
def test_backoff_is_full_jitter_below_a_doubling_ceiling(
    failures: int, base_ms: int, max_ms: int, share: float
) -> None:
    """The wait is drawn from [0, min(max, base * 2^(failures-1))], however many failures there were."""
    ceilings: list[float] = []

    def uniform(low: float, high: float) -> float:
        assert low == 0
        ceilings.append(high)
        return share * high

    wait_s = backoff_s(failures, base_ms, max_ms, uniform)
    assert ceilings == [min(max_ms, base_ms * 2 ** min(failures - 1, 32))]
    assert 0 <= wait_s <= max_ms / 1000


def test_a_success_is_returned_at_once() -> None:
    """A server that is well costs one call and no wait."""
    time, operation = Time(), Flaky("value")
    assert dependency(time).call(operation, time) == "value"
    assert operation.calls == 1
    assert time.waits == []


def test_unavailable_is_tried_until_it_is_over() -> None:
    """Failures are waited out with growing pauses; the breaker opens at the third, tries half-open, and closes."""
    time, operation = Time(), Flaky(away(), away(), away(), away(), "value")
    states: list[BreakerState] = []
    retries: list[str] = []
    subject = dependency(time, states, retries)
    assert subject.call(operation, time) == "value"
    assert operation.calls == 5
    assert retries == ["redis"] * 4
    assert states == [
        BreakerState.OPEN,
        BreakerState.HALF_OPEN,
        BreakerState.OPEN,
        BreakerState.HALF_OPEN,
        BreakerState.CLOSED,
    ]
    assert sum(time.waits) == pytest.approx(0.1 + 0.2 + 0.4 + 0.8)
    assert not subject.is_away
    assert subject.last_error == "connection refused"


def test_fewer_failures_than_the_breaker_takes_do_not_count_as_away() -> None:
    """Two failures in a row are retried without opening the breaker, and a success begins the count anew."""
    time = Time()
    states: list[BreakerState] = []
    subject = dependency(time, states)
    for _ in range(3):
        subject.call(Flaky(away(), away(), "value"), time)
    assert states == []


def test_stop_ends_the_wait() -> None:
    """A call to a server that stays away ends with Stopping once the worker stops."""
    time = Time(give_up_s=60)
    subject = dependency(time)
    with pytest.raises(Stopping):
        subject.call(Flaky(away()), time)
    assert subject.state is BreakerState.OPEN


def test_nothing_is_called_once_stopped() -> None:
    """After the stop no call goes out, even to a server that is well."""
    time, operation = Time(), Flaky("value")
    time.set()
    with pytest.raises(Stopping):
        dependency(time).call(operation, time)
    assert operation.calls == 0


def test_stop_is_heard_within_a_quarter_of_a_second() -> None:
    """Long backoffs are waited for in short steps, so that a stop is heard in time."""
    time = Time()
    dependency(time).call(Flaky(*[away()] * 8, "value"), time)
    assert max(time.waits) <= 0.25


def opened(time: Time) -> CircuitBreaker:
    subject = dependency(time)
    with pytest.raises(Stopping):
        subject.call(Flaky(away()), Until(time, time.now + 0.3))  # the waits after two failures
    assert subject.state is BreakerState.OPEN
    return subject


class Until:
    """A stop signal that is set once the clock has passed a point."""

    def __init__(self, time: Time, end: float) -> None:
        self._time = time
        self._end = end

    def is_set(self) -> bool:
        return self._time.now > self._end

    def wait(self, timeout: float | None = None) -> bool:
        self._time.wait(timeout)
        return self.is_set()


@pytest.mark.parametrize("answer", [Rejected(RejectReason.FETCH_FAILED, "404", stage="intake"), AssayError("refused")])
def test_an_answer_that_is_an_error_closes_the_breaker(answer: AssayError) -> None:
    """A storage that comes back and says 404 is there: were it still counted as away, consumption would stay paused for
    ever.
    """
    time = Time()
    subject = opened(time)
    with pytest.raises(type(answer)):
        subject.call(Flaky(answer), time)
    assert subject.state is BreakerState.CLOSED


def test_recovery_frees_those_who_wait_at_once() -> None:
    """The first success ends everybody's backoff; nobody sits out the time that was set aside for the trial."""
    time = Time()
    subject = opened(time)
    subject.call(Flaky("value"), time)
    recovered_at = time.now
    subject.call(Flaky("value"), time)
    assert time.now == recovered_at


def test_a_success_seen_elsewhere_closes_the_breaker() -> None:
    """A health check that finds the server well spares the rest of the backoff."""
    time = Time()
    subject = opened(time)
    subject.succeeded()
    assert not subject.is_away
    before = time.now
    assert subject.call(Flaky("value"), time) == "value"
    assert time.now == before


def test_half_open_lets_one_caller_through() -> None:
    """While one caller tries, another waits for its result instead of adding load to a server that is getting up."""
    time = Time()
    subject = opened(time)
    calls: list[str] = []

    def trial() -> str:
        assert subject.state is BreakerState.HALF_OPEN
        with pytest.raises(Stopping):
            subject.call(lambda: calls.append("second"), Until(time, time.now))
        calls.append("first")
        return "value"

    subject.call(trial, time)
    assert calls == ["first"]


def test_a_defect_passes_through() -> None:
    """What is no error of ours is a defect: it is raised, not retried."""
    time, operation = Time(), Flaky(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        dependency(time).call(operation, time)
    assert operation.calls == 1


def test_a_turn_comes_at_its_time_and_one_caller_takes_it() -> None:
    """To the moment; whoever asks meanwhile is told how long the one who tries may take."""
    time = Time()
    subject = dependency(time)
    assert subject.is_due and subject.take_turn() == 0
    for failures in (1, 2, 3):
        subject.failed(away())
        assert subject.take_turn() == pytest.approx(0.1 * 2 ** (failures - 1))
    assert subject.state is BreakerState.OPEN and subject.is_away and not subject.is_due
    time.now = 100.4
    assert subject.is_due and subject.take_turn() == 0
    assert subject.state is BreakerState.HALF_OPEN and subject.is_away
    assert subject.take_turn() == 5 and not subject.is_due
    subject.failed(away())
    assert subject.state is BreakerState.OPEN
    assert subject.take_turn() == pytest.approx(0.8)


def test_what_changes_is_told_with_the_name(log: LogCapture) -> None:
    """States to the metrics, and to the log that it is away and that it is back: once each."""
    time = Time()
    changes: list[tuple[str, BreakerState]] = []
    subject = CircuitBreaker("redis", SETTINGS, clock=time, on_change=lambda *change: changes.append(change))
    assert subject.last_error == ""
    subject.succeeded()
    for _ in range(4):
        subject.failed(away())
    subject.succeeded()
    subject.succeeded()
    assert changes == [("redis", BreakerState.OPEN), ("redis", BreakerState.CLOSED)]
    assert [(entry["event"], entry["dependency"]) for entry in log.entries] == [
        ("dependency_away", "redis"),
        ("dependency_recovered", "redis"),
    ]


def test_the_first_call_waits_for_nothing() -> None:
    """On a clock that has only just begun, too."""
    time = Time()
    time.now = 0.0
    assert dependency(time).call(Flaky("value"), time) == "value"
    assert time.waits == []


def test_the_longest_call_is_the_oldest_one_under_way() -> None:
    """Retries included; those that have ended, well or not, count no longer."""
    time = Time()
    subject = dependency(time)
    seen: list[float] = []

    def inner() -> None:
        time.now += 2
        seen.append(subject.longest_call_s())
        raise ZeroDivisionError

    def outer() -> str:
        time.now += 3
        seen.append(subject.longest_call_s())
        with pytest.raises(ZeroDivisionError):
            subject.call(inner, time)
        time.now += 1
        seen.append(subject.longest_call_s())
        return "value"

    assert subject.longest_call_s() == 0
    assert subject.call(outer, time) == "value"
    assert seen == [3, 5, 6]
    assert subject.longest_call_s() == 0


def test_a_guarded_client_is_asked_through_its_breaker() -> None:
    """The operation gets the client, is tried again, and ends on stop."""
    time = Time()
    subject = Guarded("client", dependency(time))
    script = Flaky(away(), "value")
    assert subject.call(lambda client: (client, script()), time) == ("client", "value")
    time.set()
    with pytest.raises(Stopping, match="stopped while waiting for redis"):
        subject.call(lambda client: client, time)
