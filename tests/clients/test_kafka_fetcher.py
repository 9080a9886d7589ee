"""The seam in kafka-python: which version it is made for, and how much is asked for on a slow line."""

from __future__ import annotations

import tomllib
from types import SimpleNamespace
from typing import Any

import kafka
import pytest
from kafka.consumer.fetcher import Fetcher
from kafka.errors import NodeNotReadyError, RequestTimedOutError

from tests.integration.harness import REPO
from worker.clients import kafka_fetcher
from worker.clients.kafka_fetcher import VERSION, RecordConsumer, _RecordFetcher


def test_the_version_is_the_one_that_is_pinned_and_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is refused before it can misbehave."""
    assert kafka.__version__ == VERSION
    wanted = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert [line for line in wanted if line.startswith("kafka-python[") and line.endswith(f"=={VERSION}")]
    monkeypatch.setattr(kafka_fetcher.kafka, "__version__", "3.1.0")
    with pytest.raises(RuntimeError, match=rf"3\.1\.0 is installed, {VERSION}"):
        RecordConsumer(max_record_bytes=1)


def test_what_takes_the_parser_s_place_is_still_there() -> None:
    """The names that are overridden exist, so that none is overridden in vain."""
    names = ("PartitionRecords", "_parse_fetched_data", "_append", "_handle_fetch_error", "_handle_fetch_response")
    assert all(hasattr(Fetcher, name) for name in (*names, "fetched_records"))
    assert "_next_partition_records" in Fetcher.fetched_records.__code__.co_names


def fetcher() -> Any:
    net = SimpleNamespace(_net=None)
    return _RecordFetcher(
        SimpleNamespace(_manager=net),
        None,
        max_record_bytes=1,
        fetch_max_bytes=16 * 2**20,
        max_partition_fetch_bytes=4 * 2**20,
        request_timeout_ms=15_000,
        enable_incremental_fetch_sessions=False,
    )


def test_an_answer_too_long_for_its_deadline_makes_the_next_ones_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to a bound, not for other errors, and back up once answers are quick."""
    one = fetcher()
    one._handle_fetch_error(1, NodeNotReadyError())
    assert one.config["fetch_max_bytes"] == 16 * 2**20
    one._handle_fetch_error(1, RequestTimedOutError())
    assert (one.config["fetch_max_bytes"], one.config["max_partition_fetch_bytes"]) == (4 * 2**20, 2**20)
    for _ in range(20):
        one._handle_fetch_error(1, RequestTimedOutError())
    assert one.config["fetch_max_bytes"] == 64 * 1024
    monkeypatch.setattr(Fetcher, "_handle_fetch_response", lambda *_: None)
    one._handle_fetch_response(1, {}, kafka_fetcher.time.monotonic() - 10, None)
    assert one.config["fetch_max_bytes"] == 64 * 1024, "slow answers do not ask for more"
    for _ in range(20):
        one._handle_fetch_response(1, {}, kafka_fetcher.time.monotonic(), None)
    assert (one.config["fetch_max_bytes"], one.config["max_partition_fetch_bytes"]) == (16 * 2**20, 4 * 2**20)
