"""What a child gives up before it touches a byte from outside, for good: programs, connections, files, other processes.

Called once, first thing, before a second thread is there. Each measure needs no privileges; one that the kernel or the
container's runtime refuses is left out and reported, the others hold: the filter of system calls and Landlock overlap
where it matters. Memory is bounded by whoever forks, who knows what was there before; processor time by whoever waits.

`python -m worker.examine.confine` confines itself, tries what it must not be able to do, and prints what it could not.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Literal

import worker
from worker.examine import kernel, landlock, seccomp

# What interpreter, libraries and the GPU's driver read. No other process's folder in /proc: its environment is there.
_SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/sys", "/dev/urandom", "/dev/zero")
_PROC = ("self", "cpuinfo", "meminfo", "stat", "version", "filesystems", "devices", "modules", "sys", "driver")
_DEVICES = ("/dev/null",)
_GPU_DEVICES = "nvidia*"
_MAX_OPEN_FILES = {"cpu": 256, "gpu": 4096}
_LAST_TO_SURVIVE = "1000"
_REPORT_S = 30.0

Device = Literal["cpu", "gpu"]
Refusals = dict[str, str]


def confine(device: Device = "cpu", keep_files: Collection[int] = ()) -> Refusals:
    """Give all of it up. Measures that could not be taken, with the reason; empty where all are in force.

    `keep_files`: descriptors that stay open, beside those for input, output and errors, which lead nowhere from now on.
    On a GPU its devices stay writable, and with them, where Landlock is missing, the file system.
    """
    refusals: Refusals = {}
    measures: dict[str, Callable[[], object]] = {
        "files": lambda: _close_files(keep_files),
        "oom_score_adj": lambda: Path("/proc/self/oom_score_adj").write_text(_LAST_TO_SURVIVE, encoding="ascii"),
        "no_new_privs": kernel.no_new_privileges,
        "rlimits": lambda: _limit(device),
        "landlock": lambda: landlock.restrict(_readable(), _writable(device)),
        "seccomp": lambda: seccomp.restrict(may_open_for_writing=device == "gpu"),
    }
    for name, take in measures.items():
        try:
            take()
        except (OSError, ValueError) as error:
            refusals[name] = str(error)
    return refusals


def report() -> Refusals:
    """What a child could still do on this machine, or which measure it could not take; empty where it is confined."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "LD_"))}
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            env=kept,
            cwd=Path(worker.__file__).parents[1],
            capture_output=True,
            timeout=_REPORT_S,
            check=True,
        )
        found: Refusals = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return {"confinement": f"could not be tried: {error}"}
    return found


def _close_files(keep: Collection[int]) -> None:
    """What C libraries print is no line of our log, and what the worker had open is none of a child's business."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        if standard not in keep:
            os.dup2(nowhere, standard)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - a list, made before any is closed
        if int(name) > 2 and int(name) not in keep:
            with suppress(OSError):
                os.close(int(name))


def _limit(device: Device) -> None:
    """No core files, no growing files, few descriptors. RLIMIT_NPROC would count the user's threads on the whole node,
    and refuse those of a decoder for another's; that no process is started is the filter's affair.
    """
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES[device]),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))


def _readable() -> list[Path]:
    """Where modules and libraries may still be loaded from: the interpreter, this package, what is mapped now."""
    folders = {Path(place) for place in (*_SYSTEM, sys.prefix, sys.base_prefix, *worker.__path__)}
    folders |= {Path("/proc") / name for name in _PROC}
    # While it is open the kernel does not make this folder anew, and a rule for it lasts.
    os.open("/proc/self", os.O_PATH)
    folders |= {Path(place) for place in sys.path if "site-packages" in place or "dist-packages" in place}
    with suppress(OSError):
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        mapped = (Path(line.split(maxsplit=5)[5]) for line in lines if line.endswith(".so") or ".so." in line)
        folders |= {path.parent for path in mapped if path.is_absolute()}
    return sorted(folders)


def _writable(device: Device) -> list[Path]:
    devices = [Path(place) for place in _DEVICES]
    return devices + sorted(Path("/dev").glob(_GPU_DEVICES)) if device == "gpu" else devices


def _escapes(worker_pid: int) -> dict[str, Callable[[], object]]:
    """What a child must not be able to do; each raises OSError where it cannot."""
    return {
        "opens a file for writing": lambda: os.close(os.open("/tmp/assay-confined", os.O_WRONLY | os.O_CREAT)),  # noqa: S108
        "reads a file that is none of its own": lambda: os.listdir(Path.home()),  # noqa: PTH208
        "reads the environment of the worker": lambda: os.close(os.open(f"/proc/{worker_pid}/environ", os.O_RDONLY)),
        "connects": lambda: socket.socket(socket.AF_INET).connect(("127.0.0.1", 9)),
        "starts a program": lambda: os.posix_spawn("/bin/true", ["true"], {}),
        "forks": _fork,
        "signals the worker": lambda: os.kill(worker_pid, 0),
    }


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _main() -> None:
    output, worker_pid = os.dup(1), os.getppid()
    refusals = confine(keep_files=[output])
    for name, escape in _escapes(worker_pid).items():
        with suppress(OSError):
            escape()
            refusals[name] = "it still can"
    os.write(output, json.dumps(refusals).encode())


if __name__ == "__main__":
    _main()
