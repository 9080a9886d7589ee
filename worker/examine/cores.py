"""How many cores this process may use: what the scheduler allows it, and what the limits of its control groups allow.

A container limited to 2 CPUs on a host of 64 sees all 64; 64 decoders there would only wait for each other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(proc: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """At least 1. A limit of 2.5 CPUs counts as 3 cores: the fraction is worth a process that waits now and then."""
    limits = [math.ceil(limit) for limit in _limits(proc, groups)]
    return max(1, min([len(os.sched_getaffinity(0)), *limits]))


def _limits(proc: Path, groups: Path) -> Iterator[float]:
    """CPUs that this process's control group and those above it allow, where they limit any."""
    try:
        lines = proc.read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:  # hierarchy:controllers:path, cgroups(7); version 2 has 0 and no controllers
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = groups if not controllers else groups / "cpu"
        below = Path(path.lstrip("/"))
        for folder in (below, *below.parents):
            limit = _version_2(top / folder) if not controllers else _version_1(top / folder)
            if limit is not None:
                yield limit


def _version_2(folder: Path) -> float | None:
    words = _read(folder / "cpu.max").split()
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdigit() else None


def _version_1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
