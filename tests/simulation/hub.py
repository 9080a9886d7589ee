"""The scheduler of the simulation: every thread of the worker is a greenlet in one OS thread, time is a number.

A task runs until it waits (for a condition, for time, or to let the others go); then the hub, whose choices come from
the seed alone, takes another. Time stands while somebody can run and jumps to the next deadline when nobody can. So a
history is a pure function of its seed, and hours of back-off pass in milliseconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from heapq import heappop, heappush
from typing import Any

from greenlet import getcurrent, greenlet

TICK_S = 1e-5  # what one step takes, so that a loop without a wait does not stand still in time
MOST_UNSWITCHED = 10_000  # waits in a row that had nothing to wait for
CHECK_EVERY = 4  # steps between two looks at whether it is over
NEVER = 1_000_000_000
FOREVER = float("inf")
RANK_ANEW = 0.05  # how often the ranks are drawn anew


class Killed(BaseException):
    """The process of this task was killed: nothing it does from now on has an effect."""


class Stuck(Exception):
    """The history takes too many steps: a loop that does not wait."""


class Process:
    """What a kill ends: the tasks of one worker. `raises`: an error in one of them ends the whole run."""

    def __init__(self, name: str, *, raises: bool = False) -> None:
        self.name = name
        self.raises = raises
        self.is_dead = False


class Task:
    """One thread. It waits for `predicate`, and until `deadline` at most; `rank` is its priority where ranks count."""

    __slots__ = ("deadline", "error", "glet", "is_alive", "name", "predicate", "process", "rank", "waits")

    def __init__(self, name: str, process: Process, rank: float) -> None:
        self.name = name
        self.process = process
        self.rank = rank
        self.predicate: Callable[[], Any] | None = None
        self.deadline = 0.0
        self.waits = 0  # how many waits it has begun: a timer of an earlier one counts no more
        self.is_alive = True
        self.error: BaseException | None = None
        self.glet: Any = None


class Signal:
    """What tasks wait for without a predicate: cheap, because nobody is asked until it is fired."""

    __slots__ = ("_hub", "_waiting")

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._waiting: list[Task] = []

    def wait(self, timeout_s: float) -> None:
        """Wait until it is fired, `timeout_s` at most."""
        task = self._hub.current
        assert task is not None
        self._waiting.append(task)
        self._hub.wait_for_notice(timeout_s)
        if task in self._waiting:
            self._waiting.remove(task)

    def fire(self) -> None:
        """Those who wait may go on."""
        for task in self._waiting:
            self._hub.notify(task, None)
        self._waiting.clear()


class Hub:
    """Runs tasks one at a time. `steps` counts them: what is planned for a step happens before it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 0.0
        self.steps = 0
        self.current: Task | None = None
        self.alarm: Callable[[], None] = lambda: None
        self.alarm_step = NEVER  # the alarm is called before this step
        self._random = rng.random
        self._unswitched = 0
        self._tasks: list[Task] = []
        self._active: list[Task] = []  # those that can run, or whose predicate is to be asked
        self._timers: list[tuple[float, float, int, Task]] = []  # of the others; equal deadlines in any order
        self._main = getcurrent()
        self._by_rank = rng.random() < 0.4  # ranks starve the low ones until they are drawn anew; else all are equal
        self.preempts: float = rng.choice((0.0, 0.02, 0.2))  # how often a lock is a place where another task goes first

    def spawn(self, name: str, body: Callable[[], None], process: Process) -> Task:
        """Begin a task. What its body raises is kept in `error`."""
        task = Task(name, process, self._random())

        def run() -> None:
            try:
                with suppress(Killed):  # the end that was meant for it
                    body()
            except Exception as error:  # noqa: BLE001 - whoever looks after the task decides
                task.error = error

        task.glet = greenlet(run, self._main)
        self._tasks.append(task)
        self._active.append(task)
        return task

    def kill(self, process: Process) -> None:
        """End all tasks of `process` where they stand. Called between two steps, from the alarm."""
        process.is_dead = True
        for task in [one for one in self._tasks if one.process is process]:
            self._remove(task)
            self.current = task
            if task.glet:  # one that never ran has nothing to unwind
                task.glet.throw(Killed)
            self.current = None

    def close(self) -> None:
        """Unwind what still stands."""
        for process in dict.fromkeys(one.process for one in self._tasks):
            self.kill(process)

    def preempted(self) -> None:
        """Perhaps let the others go first: called where a thread could be interrupted."""
        if self.current is not None and self._random() < self.preempts:
            self._switch(None, self.now)

    def sleep(self, seconds: float) -> None:
        """Let the others go first, and time pass."""
        self._switch(None, self.now + seconds)

    def wait(self, predicate: Callable[[], Any], timeout_s: float | None) -> bool:
        """Wait until `predicate` holds, `timeout_s` at most. Returns whether it holds."""
        if not predicate():
            self._switch(predicate, FOREVER if timeout_s is None else self.now + timeout_s)
            return bool(predicate())
        self.went_on()
        return True

    def wait_for_notice(self, timeout_s: float) -> None:
        """Wait, `timeout_s` at most, until somebody calls `notify` for this task and the predicate given there
        holds.
        """
        self._switch(None, self.now + timeout_s)

    def notify(self, task: Task, predicate: Callable[[], Any] | None) -> None:
        """Ask `predicate` from now on whether `task` may go on; without one it may."""
        task.predicate = predicate
        task.waits += 1
        self._active.append(task)

    def went_on(self) -> None:
        """A wait had nothing to wait for. Raises Stuck where that goes on for ever."""
        self._unswitched += 1
        if self._unswitched > MOST_UNSWITCHED:
            raise Stuck(f"{self.current.name if self.current else 'nobody'} goes on without ever waiting")

    def _switch(self, predicate: Callable[[], Any] | None, deadline: float) -> None:
        task = self.current
        if task is None:  # the history itself, which sets things up
            return
        if task.process.is_dead:
            raise Killed
        task.predicate, task.deadline = predicate, deadline
        task.waits += 1
        if predicate is None and deadline > self.now:
            heappush(self._timers, (deadline, self._random(), task.waits, task))
        else:
            self._active.append(task)
        self._main.switch()

    def run(self, is_over: Callable[[], bool], max_steps: int) -> None:
        """Step until `is_over`, or until nothing can ever happen again. Raises Stuck."""
        while self.steps % CHECK_EVERY or not is_over():
            if self.steps >= self.alarm_step:
                self.alarm()
            task = self._next()
            if task is None:
                return
            self.steps += 1
            if self.steps > max_steps:
                raise Stuck(f"{max_steps} steps are over; {task.name} runs")
            self.now += TICK_S
            self._unswitched = 0
            self.current = task
            task.glet.switch()
            self.current = None
            if task.glet.dead:
                self._remove(task)
                if task.error is not None and task.process.raises:
                    raise task.error

    def _next(self) -> Task | None:
        """Who goes on; time jumps where nobody can."""
        now, active, timers = self.now, self._active, self._timers
        while timers and timers[0][0] <= now:
            _, _, waits, task = heappop(timers)
            if task.waits == waits:
                active.append(task)
        count = len(active)
        first = int(self._random() * count)
        chosen: Task | None = None
        soonest: Task | None = None
        for index in range(first - count, first):  # a negative index wraps around
            task = active[index]
            if chosen is not None and task.rank <= chosen.rank:
                continue
            predicate = task.predicate
            if predicate is None or task.deadline <= now or predicate():
                chosen = task
                if not self._by_rank:
                    break
            elif soonest is None or task.deadline < soonest.deadline:
                soonest = task
        if chosen is None:
            return self._jump(soonest)
        active.remove(chosen)
        if self._by_rank and self._random() < RANK_ANEW:
            for task in self._tasks:
                task.rank = self._random()
        return chosen

    def _jump(self, soonest: Task | None) -> Task | None:
        """Nobody can run: time passes until a deadline."""
        timers = self._timers
        until = FOREVER if soonest is None else soonest.deadline
        while timers and timers[0][0] <= until:
            deadline, _, waits, task = heappop(timers)
            if task.waits == waits:
                self.now = deadline
                return task
        if soonest is None or until == FOREVER:
            return None
        self.now = until
        self._active.remove(soonest)
        return soonest

    def _remove(self, task: Task) -> None:
        if task.is_alive:
            task.is_alive = False
            task.waits += 1
            self._tasks.remove(task)
            if task in self._active:
                self._active.remove(task)
