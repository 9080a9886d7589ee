"""Server processes and their pid files, on real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from worker.local import processes


@pytest.fixture
def sleeper(tmp_path):
    """A started process and its pid file."""
    pid_file = tmp_path / "pid.json"
    process = processes.start(["sleep", "600"], os.environ, tmp_path / "logs" / "sleep.log", pid_file, "print")
    yield process, pid_file
    process.signal(signal.SIGKILL)
    assert process.wait(30)


def test_a_started_process_is_found_by_its_pid_file(sleeper):
    """The pid is the program's own, in a session of its own, and the file leads back to it."""
    process, pid_file = sleeper
    assert processes.running(pid_file) == process
    assert os.getsid(process.pid) == process.pid
    assert Path(f"/proc/{process.pid}/exe").readlink().name in ("sleep", "coreutils")


def test_an_ended_process_is_not_running(sleeper):
    """Once it has ended it counts as gone, also while nobody has collected its exit status."""
    process, pid_file = sleeper
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(30)
    assert processes.running(pid_file) is None


@pytest.mark.parametrize("change", [{"start_time": 1}, {"boot_id": "another"}])
def test_another_process_with_the_same_pid_is_not_mistaken(sleeper, change):
    """Start time and boot must agree, or the process is somebody else's and no signal reaches it."""
    process, pid_file = sleeper
    pid_file.write_text(json.dumps(json.loads(pid_file.read_text()) | change))
    assert processes.running(pid_file) is None
    stranger = processes.Process(**json.loads(pid_file.read_text()))
    stranger.signal(signal.SIGKILL)
    assert process.is_alive()


@pytest.mark.parametrize("content", ["", "{}", "[]", "7", '{"pid": 1}', '{"pid": 1, "unknown": 2}'])
def test_a_broken_pid_file_means_nothing_runs(tmp_path, content):
    """A pid file cut short by a crash is read as: nothing runs."""
    (tmp_path / "pid.json").write_text(content)
    assert processes.running(tmp_path / "pid.json") is None


def test_serving_is_noted_for_the_same_process(sleeper):
    """After mark_served the pid file says so and nothing else has changed."""
    process, pid_file = sleeper
    processes.mark_served(pid_file)
    noted = processes.running(pid_file)
    assert noted is not None
    assert noted.served
    assert (noted.pid, noted.start_time) == (process.pid, process.start_time)


def test_a_large_log_is_put_aside_at_a_start(tmp_path, monkeypatch):
    """A log past the limit is kept once under another name, so that logs stay bounded."""
    monkeypatch.setattr(processes, "MAX_LOG_BYTES", 10)
    log = tmp_path / "server.log"
    log.write_text("a long story of an earlier run")
    process = processes.start(["echo", "new"], os.environ, log, tmp_path / "pid.json", "")
    assert process.wait(30)
    assert log.read_text() == "new\n"
    assert (tmp_path / "server.log.1").read_text().startswith("a long story")


def test_a_server_without_a_pid_file_is_ended(sleeper, tmp_path):
    """Its starter was killed before it wrote the file: told by folder and log; another program in the folder is left
    alone.
    """
    process, pid_file = sleeper
    pid_file.unlink()
    with subprocess.Popen(["sleep", "600"], cwd=tmp_path) as bystander:
        processes.end_strays(tmp_path, tmp_path / "logs" / "sleep.log")
        assert process.wait(30)
        assert bystander.poll() is None
        bystander.kill()
