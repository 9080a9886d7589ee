"""The worker's clock, stops and locks, on the hub: what the core waits with in a simulation (worker/clock.py)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType, SimpleNamespace

from tests.simulation.hub import Hub, Signal, Task
from tests.simulation.servers import CANARY
from worker import admission, detectors, inflight, model, offsets, queues, retry, storages
from worker.clients import kafka_consumer
from worker.clock import Clock
from worker.policy import Policy, load_policy
from worker.stages import consult, infer, policy_watch, poll, publish

EPOCH_S = 1_795_262_400.0
LOCKING: tuple[ModuleType, ...] = (admission, consult, detectors, inflight, model, offsets, queues, retry, storages)
LOGGING: tuple[ModuleType, ...] = (consult, detectors, kafka_consumer, model, retry, infer, poll, publish)


@lru_cache
def policy(also_decides: tuple[tuple[str, str], ...]) -> Policy:
    """The built-in one, compiled once for each."""
    return load_policy(None, also_decides=dict(also_decides))


class VirtualClock(Clock):
    """Time is the hub's."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def monotonic(self) -> float:
        """Seconds since the history began."""
        return self._hub.now

    def time(self) -> float:
        """Seconds since the epoch."""
        return EPOCH_S + self._hub.now

    def wait_for(self, changed: threading.Condition, predicate: Callable[[], bool], timeout_s: float) -> bool:
        """As of a condition: released while waiting, held again afterwards."""
        assert isinstance(changed, Lock)
        return changed.wait_for(predicate, timeout_s)


class VirtualStop:
    """A stop signal on the hub."""

    def __init__(self, hub: Hub) -> None:
        self._came = Signal(hub)
        self._is_set = False

    def set(self) -> None:
        """From now on."""
        self._is_set = True
        self._came.fire()

    def is_set(self) -> bool:
        """Whether it was."""
        return self._is_set

    def wait(self, timeout: float) -> bool:
        """Wait for it, `timeout` seconds at most."""
        if not self._is_set:
            self._came.wait(timeout)
        return self._is_set


class Lock:
    """A lock and a condition in one: taking it is where another thread may come first."""

    __slots__ = ("_held", "_hub", "_waiting")

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._held = False
        self._waiting: list[tuple[Task, Callable[[], bool]]] = []

    def __enter__(self) -> None:
        if self._hub.preempts:
            self._hub.preempted()
        if self._held:
            self._hub.wait(lambda: not self._held, None)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False

    def wait_for(self, predicate: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until somebody notifies and `predicate` holds, `timeout_s` at most. Returns whether it holds."""
        hub = self._hub
        if predicate():
            hub.went_on()
            return True
        self._held = False
        task = hub.current
        assert task is not None
        entry = (task, predicate)
        self._waiting.append(entry)
        hub.wait_for_notice(timeout_s)
        if entry in self._waiting:
            self._waiting.remove(entry)
        self.__enter__()
        return bool(predicate())

    def notify_all(self) -> None:
        """From now on the hub asks the predicates of those who wait."""
        for task, predicate in self._waiting:
            self._hub.notify(task, predicate)
        self._waiting.clear()


class _NoLog:
    """Takes every event and keeps none."""

    def debug(self, event: str, **fields: object) -> None:
        """Nothing."""

    info = warning = exception = debug


@contextmanager
def on_hub(hub: Hub) -> Iterator[None]:
    """The locks that the core makes meanwhile are the hub's, it logs nothing, tries the model with one picture,
    and judges by one policy, which is compiled once.
    """
    there = SimpleNamespace(Lock=lambda: Lock(hub), Condition=lambda: Lock(hub))
    silence = _NoLog()
    patches = [(module, "threading", there) for module in LOCKING]
    patches += [(module, "log", silence) for module in LOGGING]
    patches += [
        (infer, "canary", lambda: CANARY),
        (policy_watch, "load_policy", lambda _path, _name, also: policy((*also.items(),))),
    ]
    before = [getattr(module, name) for module, name, _ in patches]
    for module, name, stand_in in patches:
        setattr(module, name, stand_in)
    try:
        yield
    finally:
        for (module, name, _), real in zip(patches, before, strict=True):
            setattr(module, name, real)
