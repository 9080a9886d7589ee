"""Fixtures of the integration tests: the outside of one set of topics, and workers on it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.deploy import tools
from tests.integration import harness
from tests.integration.harness import Outside, Worker, running_worker

SHORT_SESSION = {"ASSAY_KAFKA__SESSION_TIMEOUT_MS": "3000", "ASSAY_KAFKA__HEARTBEAT_INTERVAL_MS": "500"}


@pytest.fixture
def outside(worker_env: dict[str, str]) -> Iterator[Outside]:
    """Producer, readers and Redis on this test's own topics and keys."""
    found = Outside({**worker_env, **SHORT_SESSION})
    yield found
    found.close()


@pytest.fixture
def start_worker(outside: Outside, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Starts a ready worker on this test's topics, with settings as keyword arguments; ends it with the test."""
    with ExitStack() as stack:

        def start(**settings: str) -> Worker:
            number = len(list(tmp_path.glob("worker-*.log")))
            return stack.enter_context(running_worker(outside.env, tmp_path / f"worker-{number}.log", **settings))

        yield start


@pytest.fixture(scope="session")
def redis_tls_binary() -> Path:
    """A redis-server with TLS (the local stack's has none), or a skip that says why there is none."""
    try:
        return tools.redis_server()
    except tools.Missing as error:
        pytest.skip(str(error))


@pytest.fixture
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m worker …` and returns what it printed."""

    def run(*arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "worker", *arguments]
        return subprocess.run(
            command, env=dict(env), capture_output=True, text=True, check=False, timeout=240, cwd=harness.REPO
        )

    return run
