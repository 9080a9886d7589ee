"""The monitor: what makes a worker ready, and that it goes on looking whatever a look does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.integration.harness import wait_until
from worker import monitor as module
from worker.clock import Clock, StopFlag
from worker.errors import Stopping, Unavailable
from worker.monitor import Monitor
from worker.retry import CircuitBreaker
from worker.settings import RetrySettings, Settings
from worker.telemetry.metrics import Metrics


def fine() -> str:
    return "answers"


class Asked:
    """The dependencies as the monitor asks them; a test puts another function in a place."""

    def __init__(self) -> None:
        self.kafka: Callable[[], str] = fine
        self.redis: Callable[[], str] = fine
        self.triton: Callable[[], str] = fine
        self.looks = 0
        self.trouble = ""

    def decoding(self) -> str:
        return self.trouble

    def check(self) -> str:
        return self.kafka()

    def close(self) -> None:
        self.looks = 0

    def ping(self) -> None:
        self.looks += 1
        self.redis()

    def refresh(self) -> str:
        return self.triton()


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def breaker() -> CircuitBreaker:
    return CircuitBreaker("kafka", RetrySettings(base_ms=1, max_ms=1))


@pytest.fixture
def poll() -> SimpleNamespace:
    """A poll loop that moves for ever, with one partition."""
    return SimpleNamespace(
        assigned=[("images.incoming", 0)], has_incoming=True, heartbeat_at=float("inf"), joined_at=float("inf")
    )


@pytest.fixture
def monitor(asked: Asked, breaker: CircuitBreaker, poll: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Monitor]:
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    monkeypatch.setattr(module, "Probe", lambda _settings: asked)
    watch = SimpleNamespace(refresh=asked.refresh, idle_s=lambda: 0.0)
    subject = Monitor(
        Settings(),
        store=asked,  # type: ignore[arg-type]
        triton=SimpleNamespace(is_ready=lambda: True, address="here"),  # type: ignore[arg-type]
        watch=watch,  # type: ignore[arg-type]
        breakers=[breaker],
        metrics=Metrics(),
        poll=poll,
        decoding_trouble=asked.decoding,
    )
    subject.start()
    yield subject
    subject.stop()


def is_ready(monitor: Monitor) -> bool:
    return monitor.readyz()[0]


def test_ready_once_everything_answers(monitor: Monitor) -> None:
    """Each check says what it found."""
    wait_until(lambda: is_ready(monitor), "ready")
    assert monitor.readyz()[1]["triton"] == "model version answers"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kafka", "redis", "triton"])
@pytest.mark.parametrize("error", [Unavailable("x", "away"), RuntimeError("broken"), KeyError("scores")], ids=repr)
def test_whatever_a_look_does_it_is_told_and_looked_again(
    name: str, error: Exception, monitor: Monitor, asked: Asked
) -> None:
    """An unexpected error too: /readyz turns, names it, and turns back once the look succeeds."""
    wait_until(lambda: is_ready(monitor), "ready")

    def fails() -> str:
        raise error

    setattr(asked, name, fails)
    wait_until(lambda: str(error) in monitor.readyz()[1][name], "the error in what is told")
    assert not is_ready(monitor)
    setattr(asked, name, fine)
    wait_until(lambda: is_ready(monitor), "ready again")


def test_a_broken_metric_does_not_end_the_thread(
    monitor: Monitor, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else goes wrong in a round: the next one is looked at."""
    broken: list[int] = []

    def fails(*_: object) -> None:
        broken.append(asked.looks)
        raise RuntimeError("broken")

    monkeypatch.setattr(monitor, "_tell_of_kafka", fails)
    wait_until(lambda: len(broken) > 3, "rounds that break")
    assert broken[-1] > broken[0], "a round that breaks is the last to look"


def test_an_unexpected_error_is_logged_once(monitor: Monitor, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once a second for as long as it lasts."""
    logged: list[str] = []
    monkeypatch.setattr(module, "log", SimpleNamespace(exception=lambda event, **_: logged.append(event)))

    def fails() -> str:
        raise RuntimeError("broken")

    asked.redis = fails
    before = asked.looks
    wait_until(lambda: asked.looks > before + 5, "more looks")
    assert logged == ["health_look_broken"]


def test_a_worker_without_decoders_is_not_ready(monitor: Monitor, asked: Asked) -> None:
    """Everything answers, and no image could be read: it says why."""
    wait_until(lambda: is_ready(monitor), "ready")
    asked.trouble = "decoders are being started"
    assert monitor.readyz()[0] is False
    assert monitor.readyz()[1]["decoding"] == "decoders are being started"


def test_what_cannot_be_produced_is_not_ready(monitor: Monitor, breaker: CircuitBreaker) -> None:
    """The brokers answer, and refuse all records: the breaker knows."""
    wait_until(lambda: is_ready(monitor), "ready")
    stop = StopFlag()
    failures = 0

    def refused() -> None:
        nonlocal failures
        failures += 1
        if failures > 3:
            stop.set()
        raise Unavailable("kafka", "not enough replicas")

    with pytest.raises(Stopping):
        breaker.call(refused, stop)
    well, checks = monitor.readyz()
    assert not well
    assert checks["breakers_open"] == ["kafka"]


class Hands(Clock):
    """A clock that a test turns."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_call_that_hangs_is_not_ready(asked: Asked, monitor: Monitor) -> None:
    """It fails not and ends not: nothing that waits for it is finished."""
    hands = Hands()
    breaker = CircuitBreaker("redis", RetrySettings(), clock=hands)
    monitor._breakers = [breaker]
    wait_until(lambda: is_ready(monitor), "ready")
    seen: list[tuple[bool, dict[str, Any]]] = []

    def hangs() -> None:
        hands.now = module.STUCK_S + 1
        seen.append(monitor.readyz())

    breaker.call(hangs, StopFlag())
    assert [well for well, _ in seen] == [False]
    assert seen[0][1]["waiting"] == {"redis": "a call waits for 11 s"}
    assert breaker.longest_call_s() == 0
    assert is_ready(monitor)


def test_a_poll_that_is_stuck_is_not_ready(monitor: Monitor, poll: SimpleNamespace) -> None:
    """Nothing is taken, nothing is committed."""
    wait_until(lambda: is_ready(monitor), "ready")
    poll.heartbeat_at = module.time.monotonic() - module.STUCK_S - 1
    assert not is_ready(monitor)
    assert "loop" in monitor.readyz()[1]


def test_without_partitions_it_is_not_ready(monitor: Monitor, poll: SimpleNamespace) -> None:
    """A worker too many."""
    wait_until(lambda: is_ready(monitor), "ready")
    poll.has_incoming = False
    assert not is_ready(monitor)
