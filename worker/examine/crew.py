"""The children as processes: started, kept at their number, given one job at a time, watched, ended, started anew.

What is in a job is the pool's affair. Nothing here runs unless something happens: a child answers, ends, or has been at
work for so long that somebody should look.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from worker.errors import SettingsError
from worker.examine.block import Block
from worker.examine.launch import Zygote
from worker.examine.watch import Watch
from worker.examine.wire import DONE, NO_DEVICE, READY
from worker.retry import backoff_s

log = structlog.get_logger(__name__)
LaneName = Literal["quick", "slow", "device"]
# What is slow gets out of the way of what is quick, and of a model server on the same cores.
_NICE: Mapping[LaneName, int] = {"quick": 0, "slow": 3, "device": 0}
_LOOK_S, _LOOKS = 0.05, 40
_STEPS_PER_JOB = 3
_RETIRE_S = 10.0
_RETIRE_JOBS = 5_000  # what a decoder leaks for each image ends with its process: another is forked in milliseconds
_START_BASE_MS, _START_MAX_MS = 200, 10_000
_ANSWER_BYTES = 64
_TROUBLE_S = 3.0  # a child that died is usually replaced in a moment


@dataclass(frozen=True, slots=True)
class Death:
    """Why a child ended. `cause` is a label of the metrics, `text` for a person."""

    cause: Literal["signal", "timeout", "slow", "memory", "defect", "exit", "start", "idle"]
    text: str


@dataclass(slots=True, eq=False)
class Child:
    """One process. `work`: what the pool gave it, None while it is idle."""

    number: int
    lane: LaneName
    channel: socket.socket
    block: Block
    pid: int = 0
    ready: bool = False
    work: Any = None
    used_bytes: int = 0
    limit_ms: float | None = None
    watch: Watch | None = None
    look_at: float = 0.0
    idle_since: float = 0.0
    jobs: int = 0  # it has been given so far
    end: Death | None = None  # it has been told to end, for this


@dataclass(frozen=True, slots=True)
class Answer:
    """A child has done its job; `work` is what it was given."""

    child: Child
    work: Any
    findings: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """A child is gone. `death` is None where that is nobody's fault: the zygote broke, or it was told to go."""

    child: Child
    death: Death | None


class Crew:
    """All children. `config` is what zygote and children are told; `regions`: descriptors of the memory for pixels."""

    def __init__(self, config: Mapping[str, Any], regions: Sequence[int], *, timeout_ms: float) -> None:
        self._config = config
        self._region_files = regions
        self._timeout_ms = timeout_ms
        self._children: dict[int, Child] = {}
        self._next_number = 0
        self._failures = 0
        self._not_before = 0.0
        self._well_at = float("-inf")
        self._selector = selectors.DefaultSelector()
        self._wake_file = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake_file, selectors.EVENT_READ)
        self._zygote: Zygote | None = None
        self._warm = False
        self.decoder = ""  # what decodes, once known: `cpu`, or `pillow` where DALI is missing
        self.broken = ""  # why no child can be started at the moment
        self.device_missing = False
        self._start_zygote()

    def idle(self, lane: LaneName) -> Child | None:
        """A child of the lane that waits for work."""
        return next((c for c in self._of(lane) if c.ready and c.work is None), None)

    def is_ready(self, lane: LaneName) -> bool:
        """Has the lane a child that works or could?"""
        return any(child.ready for child in self._of(lane))

    def keep(self, lane: LaneName, count: int) -> None:
        """Start children of the lane up to `count`, as far as they can be started now."""
        if not self._warm or time.monotonic() < self._not_before:
            return
        for child in self._of(lane):
            if child.jobs >= _RETIRE_JOBS and child.ready and child.work is None and lane != "device":
                self._retire(child, "it has done its share")
        for _ in range(count - len(self._of(lane))):
            self._fork(lane)

    def give(self, child: Child, work: Any, job: bytes, used_bytes: int, limit_ms: float | None) -> None:
        """A job whose images are in the block. `limit_ms`: of each step; None: what the child allows itself."""
        child.work, child.used_bytes, child.limit_ms = work, used_bytes, limit_ms
        child.watch = Watch(child.pid)
        child.jobs += 1
        child.look_at = time.monotonic() + _LOOK_S
        with contextlib.suppress(OSError):  # it has just died; that is told in a moment
            child.channel.send(job)

    def end(self, child: Child, death: Death) -> None:
        """End a child; it is told as Ended with this death."""
        if child.end is None:
            child.end = death
            if self._zygote is not None:
                self._zygote.kill(child.number)

    def wait(self, timeout_s: float) -> tuple[list[Answer | Ended], bool]:
        """What happened, and whether `wake` was called; returns at the first event or when time is up.

        Raises SettingsError where the settings ask for a GPU that is not there.
        """
        events: list[Answer | Ended] = []
        woken = False
        for key, _ in self._selector.select(max(0.0, min(timeout_s, self._next_look() - time.monotonic()))):
            if isinstance(key.data, Child):
                if key.data.number in self._children:
                    self._listen(key.data, events)
            elif key.data is not None:
                self._hear(key.data, events)
            else:
                os.eventfd_read(self._wake_file)
                woken = True
        self._look_around()
        return events, woken

    def wake(self) -> None:
        """End a `wait`. Any thread may call it."""
        os.eventfd_write(self._wake_file, 1)

    def close(self) -> None:
        """End all of them."""
        if self._zygote is not None:
            self._zygote.close()
        for child in self._children.values():
            self._forget(child)
        self._children.clear()
        self._selector.close()
        os.close(self._wake_file)

    @property
    def trouble(self) -> str:
        """Why there has been no quick child for a while; empty where there is one. Any thread may ask."""
        if self.is_ready("quick"):
            self._well_at = time.monotonic()
        if time.monotonic() - self._well_at < _TROUBLE_S:
            return ""
        return self.broken or "decoders are being started"

    @property
    def pids(self) -> list[int]:
        """Of all processes here, the zygote's first."""
        zygote = [self._zygote.pid] if self._zygote is not None else []
        return [*zygote, *(child.pid for child in self._children.values() if child.pid)]

    def _of(self, lane: LaneName) -> list[Child]:
        return [child for child in list(self._children.values()) if child.lane == lane and child.end is None]

    def _start_zygote(self) -> None:
        self._zygote, self._warm = Zygote(self._config, self._region_files), False
        self._selector.register(self._zygote.channel, selectors.EVENT_READ, self._zygote)

    def _fork(self, lane: LaneName) -> None:
        assert self._zygote is not None
        number, self._next_number = self._next_number, self._next_number + 1
        device = "gpu" if lane == "device" else "cpu"
        channel, block = self._zygote.fork(number, nice=_NICE[lane], device=device)
        child = Child(number, lane, channel, block)
        self._children[number] = child
        self._selector.register(channel, selectors.EVENT_READ, child)

    def _listen(self, child: Child, events: list[Answer | Ended]) -> None:
        """Something came from a child, if only the end of its channel: how it died, the zygote knows."""
        try:
            message = child.channel.recv(_ANSWER_BYTES)
        except OSError:
            message = b""
        if message == READY:
            child.ready, child.idle_since = True, time.monotonic()
            self._failures, self.broken = 0, ""
        elif message == NO_DEVICE:
            self._without_device(child)
        elif message and child.end is not None:
            pass  # too late: it is being ended, and keeps its work until then
        elif message.startswith(DONE) and message[len(DONE) :].isdigit() and child.work is not None:
            work, child.work, child.idle_since = child.work, None, time.monotonic()
            events.append(Answer(child, work, child.block.findings(int(message[len(DONE) :]))))
            child.block.unload(child.used_bytes)
        elif message:
            self.end(child, Death("defect", f"it said {message[:20]!r}"))
        else:
            self._selector.unregister(child.channel)

    def _without_device(self, child: Child) -> None:
        self.device_missing = True
        self.end(child, Death("idle", "there is no GPU"))
        if self._config["device"] == "gpu":
            raise SettingsError(
                ["ASSAY_DECODE__DEVICE=gpu: DALI finds no CUDA device; expected a GPU with its driver, or auto or cpu"]
            )

    def _hear(self, zygote: Zygote, events: list[Answer | Ended]) -> None:
        message = zygote.hear()
        if message is None:
            self._zygote_broke(events)
        elif "warm" in message:
            self._warm, self.decoder = True, message["warm"]["decoder"]
        elif "broken" in message:
            self.broken = message["broken"]
        elif "forked" in message:
            self._children[message["forked"]].pid = message["pid"]
        else:
            child = self._children.pop(message["ended"])
            self._forget(child)
            events.append(Ended(child, child.end or self._death(child, message["code"])))

    def _death(self, child: Child, code: int) -> Death:
        """Of a child that was not told to end."""
        text = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if child.ready and (child.work is not None or time.monotonic() - child.idle_since > _START_MAX_MS / 1000):
            return Death("signal" if code < 0 else "exit", text)
        self._failed(f"a decoding process ended by {text} before it could work")
        return Death("start", text)

    def _zygote_broke(self, events: list[Answer | Ended]) -> None:
        assert self._zygote is not None
        self._selector.unregister(self._zygote.channel)
        code = self._zygote.close()
        self._failed(self.broken or f"the process that starts decoders ended with {code}")
        for child in self._children.values():
            self._forget(child)
            events.append(Ended(child, child.end))
            with contextlib.suppress(ChildProcessError):  # ours to bury where we are process 1 of a container
                os.waitpid(child.pid, os.WNOHANG)
        self._children.clear()
        self._zygote, self._warm = None, False

    def _failed(self, why: str) -> None:
        self._failures += 1
        self._not_before = time.monotonic() + backoff_s(self._failures, _START_BASE_MS, _START_MAX_MS)
        self.broken = why
        log.warning("decoder_not_started", error=why, attempt=self._failures, action="starting another")

    def _forget(self, child: Child) -> None:
        if child.channel.fileno() in self._selector.get_map():
            self._selector.unregister(child.channel)
        child.channel.close()
        child.block.close()

    def _next_look(self) -> float:
        """When something is to be done though nothing happens (monotonic seconds)."""
        moments = [child.look_at for child in self._children.values() if child.work is not None and child.end is None]
        moments += [child.idle_since + _RETIRE_S for child in self._of("slow") if child.ready and child.work is None]
        if self._zygote is None or (self._failures and not self.is_ready("quick")):
            moments.append(self._not_before)
        return min(moments, default=float("inf"))

    def _look_around(self) -> None:
        now = time.monotonic()
        if self._zygote is None and now >= self._not_before:
            self._start_zygote()
        for child in list(self._children.values()):
            if child.end is not None:
                continue
            if child.work is not None and now >= child.look_at and child.pid:
                self._look(child, now)
            elif child.lane == "slow" and child.ready and child.work is None and now >= child.idle_since + _RETIRE_S:
                self._retire(child, "nothing to do")

    def _retire(self, child: Child, why: str) -> None:
        """An idle child ends by itself."""
        child.end = Death("idle", why)
        child.channel.shutdown(socket.SHUT_WR)

    def _look(self, child: Child, now: float) -> None:
        assert child.watch is not None
        step, allowed_ms = child.block.step()
        step_ms = child.watch.look(step)
        limit_ms = min(allowed_ms, self._timeout_ms) if child.limit_ms is None else child.limit_ms
        # A child that goes on to step after step is bounded by its job: nothing it says makes it safe.
        if step_ms > limit_ms or child.watch.job_ms > _STEPS_PER_JOB * self._timeout_ms:
            cause: Literal["slow", "timeout"] = "slow" if child.limit_ms is None else "timeout"
            self.end(child, Death(cause, f"more than {limit_ms:.0f} ms"))
        child.look_at = now + (_LOOK_S if limit_ms < _LOOK_S * 1000 * _LOOKS else limit_ms / 1000 / _LOOKS)
