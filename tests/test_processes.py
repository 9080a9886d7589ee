"""`run --processes`: whatever happens while workers are started, none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness import wait_until
from worker import processes
from worker.settings import load

SLEEPER = "import time; time.sleep(300)"


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of this process, put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Children:
    """Starts children that run `code`, and remembers them."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, code: str = SLEEPER, then: signal.Signals | None = None) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        self.started.append(child)
        if then is not None:
            os.kill(os.getpid(), then)  # while the child is started and nobody yet knows of it
        return child

    def codes(self) -> list[int | None]:
        return [child.poll() for child in self.started]


@pytest.fixture
def children() -> Iterator[Children]:
    found = Children()
    yield found
    for child in found.started:
        child.kill()
        child.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_while_it_starts_them(number: signal.Signals, children: Children) -> None:
    """The two that run are ended, the third is not started, and that is no failure."""
    starts = [children.start, lambda: children.start(then=number), children.start]
    assert processes.supervise(starts) == 0
    assert children.codes() == [-signal.SIGTERM] * 2


def test_one_that_breaks_ends_the_others(children: Children) -> None:
    """Whoever started us sees its exit code."""
    assert processes.supervise([children.start, lambda: children.start("raise SystemExit(3)")]) == 3
    assert children.codes() == [-signal.SIGTERM, 3]


# Tells that it is there, and ends with 5 once SIGHUP has come: which was held back until it could take it.
HEARS = """
import signal, sys, time
time.sleep(0.2)
signal.signal(signal.SIGHUP, lambda *_: sys.exit(5))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
time.sleep(300)
"""


def test_a_hangup_is_handed_on(children: Children) -> None:
    """Also to one that has only just been started, which does not die of it before it listens."""
    assert processes.supervise([lambda: children.start(HEARS, then=signal.SIGHUP)]) == 5


def test_one_that_cannot_be_started_ends_the_others(children: Children) -> None:
    """No process more to be had: those that were started do not outlive us."""

    def fails() -> subprocess.Popen[bytes]:
        raise BlockingIOError("no process more")

    with pytest.raises(BlockingIOError):
        processes.supervise([children.start, fails])
    assert children.codes() == [-signal.SIGTERM]


def test_each_worker_gets_what_is_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The settings file is handed on; ports count up, and so do the names of static members."""
    commands: list[list[str]] = []
    environments: list[dict[str, str]] = []

    def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        commands.append(command)
        environments.append(environment)
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(processes, "start_process", start)
    settings = load(environ={"ASSAY_HTTP__PORT": "9000", "ASSAY_KAFKA__GROUP_INSTANCE_ID": "pod"})
    assert processes.run_several(settings, tmp_path / "assay.toml", 2) == 0
    assert [command[1:] for command in commands] == [
        ["-m", "worker", "run", "--config", str(tmp_path / "assay.toml")]
    ] * 2
    assert [env["ASSAY_HTTP__PORT"] for env in environments] == ["9000", "9001"]
    assert [env["ASSAY_KAFKA__GROUP_INSTANCE_ID"] for env in environments] == ["pod-0", "pod-1"]


# Starts a process as `run --processes` does, says its pid and waits.
PARENT = f"""
import os, sys, time
from worker.processes import start_process
print(start_process([sys.executable, "-c", {SLEEPER!r}], os.environ).pid, flush=True)
time.sleep(300)
"""


def test_a_killed_parent_takes_its_workers_along() -> None:
    """SIGKILL leaves the parent no time to tell them: the kernel does."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: has_ended(child), "the worker ended with its parent")


def has_ended(pid: int) -> bool:
    """Gone, or a zombie that nobody has asked for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
