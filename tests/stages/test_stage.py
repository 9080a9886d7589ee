"""The loop that drives every stage."""

from __future__ import annotations

import pytest

from worker.clock import StopFlag
from worker.errors import Stopping
from worker.stages.stage import Stage, drive


class Counting(Stage):
    """Ends as `end` says at its third step."""

    def __init__(self, end: BaseException | StopFlag) -> None:
        self.steps: list[float] = []
        self.closed = 0
        self._end = end

    def step(self, wait_s: float) -> None:
        self.steps.append(wait_s)
        if len(self.steps) < 3:
            return
        if isinstance(self._end, StopFlag):
            self._end.set()
        else:
            raise self._end

    def close(self) -> None:
        self.closed += 1


def test_a_stage_is_stepped_until_the_stop() -> None:
    """It is asked to wait no longer than the loop wants to wait for a stop, and closed at the end."""
    stop = StopFlag()
    stage = Counting(stop)
    drive(stage, stop, wait_s=0.5)
    assert (stage.steps, stage.closed) == ([0.5] * 3, 1)


def test_a_stage_may_end_by_itself() -> None:
    """Stopping means that there is no more to do: the loop ends quietly."""
    stage = Counting(Stopping("drained"))
    drive(stage, StopFlag())
    assert (len(stage.steps), stage.closed) == (3, 1)


def test_a_defect_leaves_the_loop() -> None:
    """Whatever else a step raises is passed on, and the stage is closed all the same."""
    stage = Counting(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        drive(stage, StopFlag())
    assert stage.closed == 1
