"""What long commands say while they work: a line now and then in a log, a bar on a terminal."""

import io

import pytest
from rich.console import Console

from train import progress
from train.progress import StepProgress, counting

LOSSES = {"global_real": 1.25, "total": 2.5}
SPEED = {"images_per_s": 85.0, "waiting_for_data": 0.03}


def test_training_without_a_terminal_says_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's log has step, epoch, loss terms, images/s, the share of waiting and the time left; not every step."""
    out, now = io.StringIO(), [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with StepProgress(Console(file=out, width=40), total=400, done=0, enabled=True) as bar:
        for _ in range(90):
            now[0] += 1
            bar.step(2, LOSSES, SPEED)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("step 1/400, epoch 2: global_real 1.250 total 2.500, 85 images/s, 3% waiting")
    assert lines[1].startswith("step 31/400") and "left" in lines[1]


@pytest.mark.parametrize("enabled", [True, False])
def test_only_the_main_process_speaks(enabled: bool) -> None:
    """The other processes of a group say nothing."""
    out = io.StringIO()
    with StepProgress(Console(file=out), total=10, done=0, enabled=enabled) as bar:
        bar.step(0, LOSSES, SPEED)
        bar.note("epoch 0: done")
    assert bool(out.getvalue()) is enabled


@pytest.mark.parametrize("terminal", [True, False])
def test_counting_draws_a_bar_on_a_terminal_only(terminal: bool) -> None:
    """On a terminal the bar names what is counted; in a file nothing of it is left."""
    out = io.StringIO()
    with counting(Console(file=out, force_terminal=terminal), "images", 4) as advance:
        advance(4)
    assert ("images" in out.getvalue()) is terminal
