"""Server processes that outlive the command that started them, known by a pid file that a recycled pid cannot fool.

Linux only: a process is the same one if its pid, its start time (field 22 of /proc/PID/stat) and the machine's boot
agree.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from worker.local.files import replace_text

MAX_LOG_BYTES = 20 * 1024 * 1024
_POLL_S = 0.05
_COLLECTED_S = 3.0

# Held so that a child that died under a living parent is reaped instead of staying a zombie.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class Process:
    """A started server. `start_time`: clock ticks since boot; `fingerprint`: what it was started with; `served`: it
    once did.
    """

    pid: int
    start_time: int
    boot_id: str
    fingerprint: str
    served: bool = False

    def is_alive(self) -> bool:
        """False once it ended, also as a zombie, and when the pid belongs to another process by now."""
        if (child := _children.get(self.pid)) is not None and child.poll() is not None:
            return False
        return self.boot_id == _boot_id() and _start_time(self.pid) == self.start_time

    def age_s(self) -> float:
        """Seconds since it was started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.start_time / os.sysconf("SC_CLK_TCK")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.is_alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def wait(self, timeout_s: float) -> bool:
        """True as soon as the process has ended, False when it still lives after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        # Its last threads hold ports and files for a moment; then whoever adopted it has to collect it, which not every
        # init does.
        deadline = time.monotonic() + _COLLECTED_S
        while Path(f"/proc/{self.pid}").exists() and time.monotonic() < deadline:
            self.is_alive()  # collects it, where it is our own
            time.sleep(_POLL_S)
        return True


def start(argv: Sequence[str], environment: Mapping[str, str], log: Path, pid_file: Path, fingerprint: str) -> Process:
    """Start a server in a session of its own (Ctrl-C does not reach it), its output appended to `log`; write
    `pid_file`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_name(log.name + ".1"))
    with log.open("ab") as output:
        child = subprocess.Popen(
            list(argv),
            cwd=pid_file.parent,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _children[child.pid] = child
    process = Process(child.pid, _start_time(child.pid) or 0, _boot_id(), fingerprint)
    _write(process, pid_file)
    return process


def mark_served(pid_file: Path) -> None:
    """Note that the running process has served: from now on it is no longer booting."""
    process = running(pid_file)
    if process is not None and not process.served:
        _write(replace(process, served=True), pid_file)


def _write(process: Process, pid_file: Path) -> None:
    replace_text(pid_file, json.dumps(asdict(process)))


def running(pid_file: Path) -> Process | None:
    """The living process of a pid file, or None."""
    try:
        process = Process(**json.loads(pid_file.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return process if process.is_alive() else None


def end_strays(directory: Path, log: Path) -> None:
    """Kill what runs in `directory` and writes to `log`: a server whose starter was killed before it could write the
    pid file.
    """
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdigit()
                and (entry / "cwd").readlink() == directory
                and (entry / "fd" / "1").readlink() == log
            ):
                os.kill(int(entry.name), signal.SIGKILL)
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue  # somebody else's, or gone


def _start_time(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name in parentheses may hold spaces; field 3, the state, comes first
    return None if fields[0] in "ZX" else int(fields[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
