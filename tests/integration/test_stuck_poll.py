"""A poll that never returns, inside of the client library and on a real Kafka: the worker notices it by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.harness import Outside, Worker, samples, unlike, wait_until
from worker.monitor import STUCK_S

pytestmark = pytest.mark.integration
STUCK = Path(__file__).parent / "stuck"
STALL_S = 24  # the process ends after three quarters of it
Start = Callable[..., Worker]


def _stuck(worker: Worker, at: Path) -> None:
    """The poll stands; `/readyz` says that the loop does."""
    at.touch()
    wait_until(
        lambda: (answer := worker.get("/readyz")) is not None and "loop" in answer.text, "not ready", STUCK_S + 5
    )
    answer = worker.get("/readyz")
    assert answer is not None and not answer.is_success


def _send(outside: Outside, name: str, number: int) -> None:
    picture = next(data for name, data in samples().items() if name.endswith(".jpg"))
    outside.send(name, unlike(picture, number))
    outside.flush()


def test_a_poll_that_returns_late_goes_on_and_one_that_never_does_ends_the_process(
    outside: Outside, start_worker: Start, tmp_path: Path
) -> None:
    """Not ready within 15 s either way; the next process judges what waited."""
    at = tmp_path / "stuck"
    plan = {"PYTHONPATH": str(STUCK), "TEST_STUCK": str(at), "ASSAY_RUN__STALL_TIMEOUT_S": str(STALL_S)}
    worker = start_worker(**plan)
    _stuck(worker, at)
    _send(outside, "late", 1)
    at.unlink()
    outside.wait_verdicts(["late"])
    wait_until(worker.is_ready, "ready again, the same process")
    _stuck(worker, at)
    _send(outside, "next", 2)
    assert worker.wait(STALL_S + 10) == 1
    assert worker.events("worker_stuck")
    at.unlink()
    next_one = start_worker()
    outside.wait_verdicts(["late", "next"])
    assert next_one.terminate() == 0


def test_a_stuck_poll_does_not_outlast_the_drain(outside: Outside, start_worker: Start, tmp_path: Path) -> None:
    """SIGTERM: ended within the deadline and the margin that the chart gives it (worker.drainMarginSeconds)."""
    at = tmp_path / "stuck"
    worker = start_worker(PYTHONPATH=str(STUCK), TEST_STUCK=str(at), ASSAY_RUN__DRAIN_TIMEOUT_S="2")
    _stuck(worker, at)
    assert worker.terminate(2 + 15) == 1
