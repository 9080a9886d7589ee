"""A worker's life: what it opened is closed, whatever ends it; a signal takes no lock."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

from tests.twins import ExaminerTwin, StoreTwin, TritonTwin, settings
from worker import pipeline as subject
from worker.errors import Unavailable
from worker.pipeline import Pipeline


class Opened:
    """What has been opened and not closed yet; `refuses` and `breaks` name who fails at opening or closing."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.refuses = ""
        self.breaks = ""

    def open(self, name: str) -> None:
        if name == self.refuses:
            raise ZeroDivisionError(name)
        self.names.append(name)

    def close(self, name: str) -> None:
        self.names.remove(name)
        if name == self.breaks:
            raise RuntimeError("a defect in a client's close")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Every client of the pipeline replaced by a twin that tells when it is opened and closed."""
    found = Opened()

    class Store(StoreTwin):
        def __init__(self, _settings: object) -> None:
            super().__init__([])
            found.open("store")

        def ping(self) -> None:
            pass

        def close(self) -> None:
            found.close("store")

    class Triton(TritonTwin):
        address = "twin"

        def __init__(self, *_arguments: object) -> None:
            super().__init__()
            found.open("triton")

        def is_ready(self) -> bool:
            return True

        def close(self) -> None:
            found.close("triton")

    class Kafka:
        name = ""

        def __init__(self, *_arguments: object) -> None:
            found.open(self.name)

        def close(self) -> None:
            found.close(self.name)

    class Producer(Kafka):
        name = "producer"

    class Fetcher(Kafka):
        name = "fetcher"
        allowed = ()

        def __init__(self, *_arguments: object, **_options: object) -> None:
            super().__init__()

    class Consumer(Kafka):
        name = "consumer"
        is_joined = True

        def poll(self, timeout_ms: int, *_limits: int) -> list[object]:
            threading.Event().wait(timeout_ms / 1000)
            return []

        def set_paused(self, _paused: bool) -> None:
            pass

        def waiting(self) -> dict[int, int]:
            return {}

        def positions(self) -> dict[int, int]:
            return {}

        def obstacle(self) -> str:
            return ""

    class Pool(ExaminerTwin):
        def __init__(self, *_arguments: object) -> None:
            super().__init__(settings())
            found.open("pool")

        def close(self) -> None:
            found.close("pool")

    for name, twin in {
        "Pool": Pool,
        "Store": Store,
        "Triton": Triton,
        "Producer": Producer,
        "Consumer": Consumer,
        "Fetcher": Fetcher,
    }.items():
        monkeypatch.setattr(subject, name, twin)
    return found


def worker(**groups: dict[str, Any]) -> Pipeline:
    return Pipeline(settings(http={"port": 0}, **groups))


def stage_threads() -> list[str]:
    names = ("publish", "infer", "decode", "fetch", "intake", "monitor")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]


def test_a_worker_that_is_told_to_stop_closes_everything(opened: Opened) -> None:
    """It drains, ends its stages and closes each client once."""
    one = worker()
    one.run(on_ready=lambda _port: one.request_stop())
    assert opened.names == []
    assert stage_threads() == []


@pytest.mark.parametrize("refuses", ["producer", "fetcher", "consumer"])
def test_a_failed_start_leaves_nothing_open(opened: Opened, refuses: str) -> None:
    """Whatever was opened before the failure is closed, and no thread goes on."""
    one = worker()
    opened.refuses = refuses
    with pytest.raises(ZeroDivisionError):
        one.run()
    assert opened.names == []
    assert stage_threads() == []


@pytest.mark.slow
@pytest.mark.parametrize("breaks", ["consumer", "producer", "store", "triton", "fetcher"])
def test_a_close_that_breaks_does_not_keep_the_others_open(opened: Opened, breaks: str) -> None:
    """An unexpected error of one client is told, and the rest is closed all the same."""
    one = worker()
    opened.breaks = breaks
    one.run(on_ready=lambda _port: one.request_stop())
    assert opened.names == []


def test_a_stage_that_breaks_ends_the_worker_with_its_error(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect is not swallowed with its thread: `run` raises it, after closing everything."""

    def broken(_self: object, _wait_s: float) -> None:
        raise ArithmeticError("a defect")

    monkeypatch.setattr(subject.Infer, "step", broken)
    with pytest.raises(ArithmeticError, match="a defect"):
        worker().run()
    assert opened.names == []


@pytest.mark.slow
def test_a_server_that_does_not_come_up_is_named(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start ends at its limit with the server's name and the setting that waits for longer."""
    one = worker(run={"startup_timeout_s": 1})

    def away(_self: object) -> None:
        raise Unavailable("redis", "connection refused")

    monkeypatch.setattr(type(one._store), "ping", away)
    with pytest.raises(Unavailable, match=r"connection refused .*ASSAY_RUN__STARTUP_TIMEOUT_S"):
        one.run()
    assert opened.names == []


def test_a_signal_handler_only_sets_flags(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may interrupt the main thread while that holds the log's lock: nothing is logged, nothing is waited for."""
    one = worker()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    logged: list[str] = []
    monkeypatch.setattr(subject.log, "info", lambda event, **_fields: logged.append(event))
    try:
        one.handle_signals()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (one._drain.is_set(), one._stop.is_set()) == (True, False)
        os.kill(os.getpid(), signal.SIGINT)
        assert one._stop.is_set()
        assert logged == []
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
