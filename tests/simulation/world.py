"""What the twins of the servers share: the plan, the clock, the dice, and the log of all that had an effect.

Every call of a twin lets the other tasks go first, before its effect and after it: between a check and the call it
guards, and between an effect and its acknowledgement, anything may happen.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.simulation.hub import Hub, Killed, Process
from tests.simulation.plan import Plan, Server

Event = tuple[Any, ...]
PATIENCE_S = 0.12  # how long a client waits for an answer that does not come


class World:
    """One history's surroundings."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(f"steps {plan.seed}")
        self.hub = Hub(self.rng)
        self.events: list[Event] = []  # (kind, seconds, task, details …)
        self.process = Process("world", raises=True)
        self.is_broken = False  # a thread of a worker ended with an error: no more is to be seen

    def note(self, kind: str, *details: Any) -> None:
        """Something happened that the auditor, or the reader of a failed history, should know."""
        task = self.hub.current
        self.events.append((kind, self.hub.now, task.name if task else "-", *details))

    @property
    def is_healed(self) -> bool:
        return self.hub.now >= self.plan.healed_s

    def spawn(self, name: str, body: Callable[[], None]) -> None:
        """A task of the surroundings, which no kill ends."""
        self.hub.spawn(name, body, self.process)


class Twin:
    """A server as one client sees it: answers after a while, sometimes not at all."""

    def __init__(self, world: World, server: Server, process: Process) -> None:
        self._world = world
        self._server = server
        self._process = process
        self._hub = world.hub
        self._random = world.rng.random

    def _enter(self) -> None:
        """A call goes out: it takes its time on the way."""
        if self._process.is_dead:
            raise Killed
        self._hub.sleep(self._random() * self._server.latency_s)

    def _leave(self) -> None:
        """The answer comes back."""
        if self._process.is_dead:
            raise Killed
        self._hub.sleep(self._random() * self._server.latency_s)

    def _trouble(self) -> str:
        """What is wrong with this call: the kind of the window that is open, `glitch` by chance, or nothing."""
        if self._world.is_healed:
            return ""
        now = self._hub.now
        for window in self._server.windows:
            if window.start <= now < window.end:
                if window.kind == "slow":
                    self._hub.sleep(self._random() * PATIENCE_S)
                    return ""
                return window.kind
        return "glitch" if self._random() < self._server.rate else ""

    def ill_since(self) -> float | None:
        """When the window began that is open."""
        now = self._hub.now
        return next((one.start for one in self._server.windows if one.start <= now < one.end), None)

    def _give_up(self) -> None:
        """No answer comes: the client waits for it in vain, or hears at once that nobody is there."""
        self._hub.sleep(self._random() * PATIENCE_S if self._random() < 0.5 else 0.0)
        if self._process.is_dead:
            raise Killed
