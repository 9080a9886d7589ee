"""Fixtures of the console's tests: a real Kafka and Redis (no Triton: verdicts are written as a worker writes them)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.console.harness import Console, Outside, environment
from worker.clients import kafka_topics
from worker.local import stack as local_stack
from worker.settings import KafkaSettings

pytest.importorskip("starlette", reason="the console is not installed: make setup")


@pytest.fixture(scope="session")
def two_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Kafka and Redis; those of TEST_CONSOLE_STACK, where that names a run directory."""
    if warm := os.environ.get("TEST_CONSOLE_STACK"):
        yield local_stack.up(Path(warm), services=("kafka", "redis")).env
        return
    directory = tmp_path_factory.mktemp("console") / "stack"
    yield local_stack.up(directory, services=("kafka", "redis")).env
    local_stack.down(directory, purge=True)


@pytest.fixture
def outside(two_servers: dict[str, str]) -> Iterator[Outside]:
    env = environment(two_servers, uuid.uuid4().hex[:8])
    settings = KafkaSettings(bootstrap_servers=[env["ASSAY_KAFKA__BOOTSTRAP_SERVERS"]])
    names = [value for name, value in env.items() if name.startswith("ASSAY_KAFKA__") and name.endswith("_TOPIC")]
    kafka_topics.create_topics(settings, names, 3)
    found = Outside(env)
    yield found
    found.close()


@pytest.fixture
def open_console(outside: Outside, tmp_path: Path) -> Iterator[Callable[..., Console]]:
    """Opens a console on this test's topics, with its settings as keyword arguments."""
    opened: list[Console] = []

    def open_one(**settings: str) -> Console:
        opened.append(Console(outside.env, tmp_path, len(opened), **settings).start().wait_ready())
        return opened[-1]

    yield open_one
    for one in opened:
        one.kill()
