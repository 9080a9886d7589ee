"""The Kafka consumer on a real broker."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.harness import wait_until
from worker.clients.kafka_consumer import Consumer
from worker.contract import Partition
from worker.settings import load

pytestmark = pytest.mark.integration
PARTITIONS = 3


def test_a_join_that_outlives_its_poll_is_collected(worker_env: dict[str, str]) -> None:
    """Polls shorter than a join: the consumer gets its partitions and keeps them (kafka-python 3.0.12 alone hangs here
    every time).
    """
    settings = load(environ={name: value for name, value in worker_env.items() if name.startswith("ASSAY_")}).kafka
    consumer = Consumer(settings, lambda _new: None, lambda _gone: None)

    def poll_until(condition: Callable[[], bool], limit_s: float) -> bool:
        """Poll without a pause: the client works only while it is polled."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            consumer.poll(1, 1)
            if condition():
                return True
        return False

    def is_settled() -> bool:
        return consumer.is_joined and len(consumer.waiting()) == 2 * PARTITIONS  # of both topics

    try:
        assert poll_until(is_settled, 30)
        poll_until(lambda: False, 1.5)  # the re-join that loses its result comes within a second of the first join
        assert poll_until(is_settled, 30)
    finally:
        consumer.close()


def test_several_consumers_starting_at_once_share_the_partitions(worker_env: dict[str, str]) -> None:
    """Three consumers of one group, polled side by side: each ends with one partition of each topic."""
    settings = load(environ={name: value for name, value in worker_env.items() if name.startswith("ASSAY_")}).kafka
    consumers = [Consumer(settings, lambda _new: None, lambda _gone: None) for _ in range(PARTITIONS)]

    def assignments() -> list[Partition]:
        with ThreadPoolExecutor(PARTITIONS) as pool:
            list(pool.map(lambda consumer: consumer.poll(20, 1), consumers))
        return sorted(partition for consumer in consumers for partition in consumer.waiting())

    try:
        wait_until(
            lambda: len(assignments()) == 2 * PARTITIONS and all(len(c.waiting()) == 2 for c in consumers),
            "one partition of each topic for each",
            60,
        )
    finally:
        for consumer in consumers:
            consumer.close()
