"""`run --processes N`: N workers on one host. Each is a process of its own; they share the group's partitions.

The parent only watches: a signal goes to all, and a worker that breaks ends them all (drained), so that whoever started
us sees it and starts us again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import FrameType

import structlog

from worker.settings import Settings, variable

log = structlog.get_logger(__name__)


def run(settings: Settings, count: int) -> int:
    """Start `count` workers and wait for them. Returns 0, or the first exit code that is not."""
    children = [_start(settings, number) for number in range(count)]
    stopping = False

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while any(child.poll() is None for child in children):
        if not stopping and any(child.poll() is not None for child in children):
            log.error("worker_ended", codes=[child.poll() for child in children], action="draining the others")
            stop(signal.SIGTERM, None)
        time.sleep(0.2)
    return next((abs(child.returncode) for child in children if child.returncode), 0)


def _start(settings: Settings, number: int) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if settings.http.port:
        environment[variable("http", "port")] = str(settings.http.port + number)
    if settings.kafka.group_instance_id:
        environment[variable("kafka", "group_instance_id")] = f"{settings.kafka.group_instance_id}-{number}"
    arguments = _without_processes(sys.argv[1:])
    # A session of its own: Ctrl-C reaches the workers once, through us.
    return subprocess.Popen([sys.executable, "-m", "worker", *arguments], env=environment, start_new_session=True)


def _without_processes(arguments: list[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--processes":
            skip = True
        elif not argument.startswith("--processes="):
            kept.append(argument)
    return kept
