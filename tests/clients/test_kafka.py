"""The Kafka consumer on a real broker."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from kafka import KafkaProducer, TopicPartition

from tests.integration.harness import wait_until
from worker.clients.kafka import consumer_options
from worker.clients.kafka_consumer import Consumer
from worker.clients.kafka_fetcher import RecordConsumer
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
        shares = [sorted(topic for topic, _ in consumer.waiting()) for consumer in consumers]
        assert shares == [sorted([settings.incoming_topic, settings.retry_topic])] * PARTITIONS
        assert len(set(assignments())) == 2 * PARTITIONS
    finally:
        for consumer in consumers:
            consumer.close()


def test_a_partition_that_paused_in_the_middle_of_its_batch_goes_on(worker_env: dict[str, str]) -> None:
    """What was fetched of it is set aside and taken up again, though another partition was read to its end meanwhile
    (kafka-python 3.0.12 alone never reads it again).
    """
    settings = load(environ={name: value for name, value in worker_env.items() if name.startswith("ASSAY_")}).kafka
    first, second = (TopicPartition(settings.incoming_topic, number) for number in range(2))
    with KafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        for partition in (first, second):
            for number in range(4):
                producer.send(partition.topic, b"%d" % number, partition=partition.partition)
    consumer = RecordConsumer(**consumer_options(settings))
    consumer.assign([first, second])
    consumer.seek_to_beginning()
    found: list[tuple[int, int]] = []

    def poll(most: int) -> int:
        found.extend((record.partition, record.offset) for record in consumer.poll_records(200, most))
        return len(found)

    try:
        wait_until(lambda: poll(1), "the first of a batch")
        paused = first if found[0][0] == first.partition else second
        consumer.pause(paused)
        wait_until(lambda: poll(100) == 5, "one partition is read to its end")
        consumer.resume(paused)
        wait_until(lambda: poll(100) == 8, "the other goes on")
        assert sorted(found) == [(partition, offset) for partition in range(2) for offset in range(4)]
    finally:
        consumer.close(autocommit=False)
