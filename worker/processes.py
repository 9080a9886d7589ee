"""`run --processes N`: N workers on one host. Each is a process of its own; they share the group's partitions.

The parent only watches: a signal goes to all, and a worker that breaks ends them all (drained), so that whoever started
us sees it and starts us again. Where the parent is killed, the kernel tells its workers to end (Linux), and they drain.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import structlog

from worker.settings import Settings, variable

log = structlog.get_logger(__name__)
Start = Callable[[], subprocess.Popen[bytes]]
_POLL_S = 0.2
_PR_SET_PDEATHSIG = 1


def run_several(settings: Settings, config: Path | None, count: int) -> int:
    """Start `count` workers and wait for them. Returns 0, or the first exit code that is not."""
    return supervise(partial(_start, settings, config, number) for number in range(count))


def supervise(starts: Iterable[Start]) -> int:
    """Start processes and wait for them; SIGTERM and SIGINT end them all, also while some are not yet started.

    SIGHUP is handed on: each takes up its policy anew. Returns 0, or the first exit code that is not. One that cannot
    be started ends the others: raises OSError.
    """
    stopping = reloading = False

    def reload(*_: object) -> None:
        nonlocal reloading
        reloading = True

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True  # and no more: between a start and its entry in `children` a signal would miss that child

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, reload)
    children: list[subprocess.Popen[bytes]] = []
    try:
        for start in starts:
            if stopping:
                break
            # Held back until the child says that it can take it: by default it would die of it.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
            try:
                children.append(start())
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while not stopping and all(child.poll() is None for child in children):
            if reloading:
                reloading = False
                for child in children:
                    child.send_signal(signal.SIGHUP)
            time.sleep(_POLL_S)
        if not stopping:
            log.error("worker_ended", codes=[child.poll() for child in children], action="draining the others")
    finally:
        told = [child for child in children if child.poll() is None]
        for child in told:
            child.send_signal(signal.SIGTERM)
        for child in children:
            child.wait()
    # One that was told before it could listen died of it: it had nothing to drain.
    codes = (0 if child in told and child.returncode == -signal.SIGTERM else child.returncode for child in children)
    return next((abs(code) for code in codes if code), 0)


def _start(settings: Settings, config: Path | None, number: int) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if settings.http.port:
        environment[variable("http", "port")] = str(settings.http.port + number)
    if settings.kafka.group_instance_id:
        environment[variable("kafka", "group_instance_id")] = f"{settings.kafka.group_instance_id}-{number}"
    arguments = ["run", *(["--config", str(config)] if config else [])]
    return start_process([sys.executable, "-m", "worker", *arguments], environment)


def start_process(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A process that gets SIGTERM when this thread is gone, whatever ended it."""
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def follow_the_parent() -> None:
        if sys.platform == "linux":
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it was gone before the kernel knew
                os._exit(128 + signal.SIGTERM)

    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches the workers once, through us
        preexec_fn=follow_the_parent,  # noqa: PLW1509  # the parent has no other thread
    )
