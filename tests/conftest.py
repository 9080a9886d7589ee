"""Fixtures for every test: the real local stack, once per test session, and an environment of one's own on it.

A session starts a stack in its temporary directory and ends it; xdist's processes share one. With TEST_STACK=<run
directory> (say `.assay/stack` after `make stack-up`) a stack that already runs is used and left running.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.environment import own_environment, topics_of
from worker.clients import kafka_topics
from worker.local import stack as local_stack
from worker.local.locks import exclusive
from worker.settings import KafkaSettings

PARTITIONS = 3

# The same examples in every run, so that a change and not chance decides; HYPOTHESIS_PROFILE=search looks for new ones.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.register_profile("search", max_examples=5_000)
# `make mutate` asks each test hundreds of times.
hypothesis.settings.register_profile(
    "mutants", derandomize=True, max_examples=30, stateful_step_count=25, database=None
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# A shell starts its background jobs with SIGINT ignored, and Python leaves it so: tests that send it would wait in
# vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What a developer has exported must not reach the settings under test, nor the commands that tests start.
for _name in [name for name in os.environ if name.startswith("ASSAY_") and "__" in name]:
    del os.environ[_name]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m "not integration"` is what one runs between two edits: slow tests without servers are left out of it, too."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables that point the worker at a running Kafka, Redis and Triton. Shared: use names of your own on it."""
    if warm := os.environ.get("TEST_STACK"):
        yield local_stack.up(Path(warm)).env
        return
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    directory = shared / "shared-stack"
    users, lock = shared / "shared-stack.users", shared / "shared-stack.lock"
    with exclusive(lock, lambda: None):
        env = local_stack.up(directory).env
        users.write_text(str(_count(users) + 1))
    yield env
    with exclusive(lock, lambda: None):
        users.write_text(str(_count(users) - 1))
        if _count(users) == 0:
            local_stack.down(directory, purge=True)


def _count(users: Path) -> int:
    return int(users.read_text()) if users.exists() else 0


@pytest.fixture
def worker_env(stack: dict[str, str]) -> dict[str, str]:
    """A process environment on the shared stack with topics (3 partitions each), group, key prefix and HTTP port of its
    own.
    """
    env = own_environment(stack)
    settings = KafkaSettings(bootstrap_servers=[stack["ASSAY_KAFKA__BOOTSTRAP_SERVERS"]])
    kafka_topics.create_topics(settings, topics_of(env), PARTITIONS)
    return env


@pytest.fixture
def private_stack(tmp_path: Path) -> Iterator[Path]:
    """The run directory of a stack for one test alone, not started yet: for tests that kill servers. Ended with the
    test.
    """
    directory = tmp_path / "stack"
    yield directory
    local_stack.down(directory, purge=True)
