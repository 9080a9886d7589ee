"""What a stage is, what every stage has, and the one loop that drives any of them.

A stage takes what waits for it, works for one step and hands on. It owes the others: `step` waits no longer than it is
asked to while there is nothing to do; a bad item leaves its batch with a reason and the others go on; a server that is
away is waited for; every wait ends on stop by raising Stopping, and what was under way then is redelivered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from worker.clock import SYSTEM_CLOCK, Clock, StopSignal
from worker.errors import Stopping
from worker.telemetry.metrics import Metrics
from worker.telemetry.tracing import Tracing

IDLE_S = 0.2  # how long a step waits for work before the loop looks at the stop


@dataclass(frozen=True, slots=True)
class Tools:
    """What every stage has at hand."""

    metrics: Metrics
    tracing: Tracing
    stop: StopSignal
    clock: Clock = SYSTEM_CLOCK


class Stage(ABC):
    """One step of the way. Several threads may drive one stage where its `step` keeps no state between calls."""

    @abstractmethod
    def step(self, wait_s: float) -> None:
        """Take what waits (for `wait_s` seconds at most), work on it, hand it on.

        Raises Stopping once there is no more to do; any other exception is a defect and ends the worker.
        """

    def close(self) -> None:  # noqa: B027  # most stages hold nothing
        """Let go of what the stage holds. Called once by each thread that drove it."""


@dataclass(frozen=True, slots=True)
class Driven:
    """A stage and how many threads drive it."""

    name: str
    stage: Stage
    threads: int = 1


def drive(stage: Stage, stop: StopSignal, wait_s: float = IDLE_S) -> None:
    """Step `stage` until `stop` is set or it has no more to do: the body of each of its threads."""
    try:
        while not stop.is_set():
            stage.step(wait_s)
    except Stopping:
        return
    finally:
        stage.close()
