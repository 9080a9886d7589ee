"""As many decoders as the container may use cores, not as many as the host has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.examine.cores import usable_cores

HERE = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/\n", {}, HERE),
        ("0::/\n", {"cpu.max": "max 100000"}, HERE),
        ("0::/\n", {"cpu.max": "100000 100000"}, 1),
        ("0::/\n", {"cpu.max": "20000 100000"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 1),
        ("0::/\n", {"cpu.max": "nonsense"}, HERE),
        ("4:cpu,cpuacct:/x\n0::/\n", {"cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "100000"}, 1),
        ("4:memory:/x\n", {"cpu/x/cpu.cfs_quota_us": "1", "cpu/x/cpu.cfs_period_us": "1"}, HERE),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, HERE),
    ],
)
def test_limits_of_control_groups_count(tmp_path: Path, group: str, files: dict[str, str], expected: int) -> None:
    """Of both versions, of the group itself and of those above it; a part of a core counts as one."""
    (tmp_path / "cgroup").write_text(group)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    assert usable_cores(tmp_path / "cgroup", tmp_path / "groups") == min(expected, HERE)


def test_more_than_the_scheduler_allows_is_no_use(tmp_path: Path) -> None:
    """A limit above the cores of the machine, or no control groups at all."""
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "cpu.max").write_text("99900000 100000")
    assert usable_cores(tmp_path / "cgroup", tmp_path) == HERE
    assert usable_cores(tmp_path / "missing", tmp_path) == HERE
