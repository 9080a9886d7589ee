"""The watch counts what a step takes, not what its process waits for a core."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.examine import watch as module
from worker.examine.watch import Watch, waited_for_core_ms


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """[seconds, milliseconds waited for a core]."""
    now = [100.0, 0.0]
    monkeypatch.setattr(module, "waited_for_core_ms", lambda _pid: now[1])
    return now


def test_a_step_is_counted_from_the_first_look_at_it(clock: list[float]) -> None:
    """And anew with each step; the job's time goes on."""
    watch = Watch(1, lambda: clock[0])
    assert watch.look(1) == 0
    clock[0] += 0.3
    assert watch.look(1) == pytest.approx(300)
    clock[0] += 0.2
    assert watch.look(2) == 0
    clock[0] += 0.1
    assert watch.look(2) == pytest.approx(100)
    assert watch.job_ms == pytest.approx(600)


def test_waiting_for_a_core_does_not_count(clock: list[float]) -> None:
    """Threads together may wait for longer than the clock says."""
    watch = Watch(1, lambda: clock[0])
    watch.look(1)
    clock[0], clock[1] = clock[0] + 0.5, 400.0
    assert watch.look(1) == pytest.approx(100)
    clock[0], clock[1] = clock[0] + 0.5, 2000.0
    assert watch.look(1) == pytest.approx(100)


def test_a_worker_that_was_stopped_does_not_blame_its_children(clock: list[float]) -> None:
    """A frozen container, a suspended host: the clock jumps, and one second of it counts."""
    watch = Watch(1, lambda: clock[0])
    watch.look(1)
    clock[0] += 3600
    assert watch.look(1) == pytest.approx(1000)


def test_the_kernel_tells_the_waiting_time_of_all_threads(tmp_path: Path) -> None:
    """Added up; a process that is gone, or a kernel that does not tell, counts as none."""
    for thread, line in (("7", "5 2000000 1"), ("8", "5 3000000 1")):
        (tmp_path / "7" / "task" / thread).mkdir(parents=True)
        (tmp_path / "7" / "task" / thread / "schedstat").write_text(line)
    assert waited_for_core_ms(7, tmp_path) == 5.0
    (tmp_path / "7" / "task" / "9").mkdir()
    assert waited_for_core_ms(7, tmp_path) == 0.0
    assert waited_for_core_ms(6, tmp_path) == 0.0
    assert waited_for_core_ms(os.getpid()) >= 0.0
