"""The faults: what breaks, for how long, and how it is healed. Each is a context; inside of it the fault stands.

for fault in choose(random.Random(seed), 100): with fault.planted(world): time.sleep(fault.lasts_s)
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import redis
from kafka import KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from tests.faults.proxy import Mode
from tests.faults.world import SERVERS, World
from worker.local.kafka_server import TOPICS


@dataclass(frozen=True)
class Fault:
    """`planted(world)` stands for about `lasts_s` seconds."""

    name: str
    planted: Callable[[World], AbstractContextManager[None]]
    lasts_s: float = 3.0


@contextlib.contextmanager
def network(server: str, mode: Mode, cut: bool, world: World) -> Iterator[None]:
    with world.proxies[server].failing(mode, cut=cut):
        yield


@contextlib.contextmanager
def hung(server: str, world: World) -> Iterator[None]:
    pid = world.pid(server)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def killed(server: str, world: World) -> Iterator[None]:
    os.kill(world.pid(server), signal.SIGKILL)
    yield
    world.heal()


@contextlib.contextmanager
def redis_set(name: str, value: str, healthy: str, world: World) -> Iterator[None]:
    world.outside.redis.config_set(name, value)
    try:
        yield
    finally:
        world.outside.redis.config_set(name, healthy)


@contextlib.contextmanager
def redis_full(world: World) -> Iterator[None]:
    world.outside.redis.config_set("maxmemory-policy", "noeviction")
    with redis_set("maxmemory", "1", "0", world):
        yield


@contextlib.contextmanager
def redis_read_only(world: World) -> Iterator[None]:
    with redis_set("min-replicas-to-write", "3", "0", world):  # NOREPLICAS: it answers, and refuses what writes
        yield


@contextlib.contextmanager
def redis_slow(world: World) -> Iterator[None]:
    world.outside.redis.client_pause(2_000, all=True)
    yield


@contextlib.contextmanager
def redis_forgetful(world: World) -> Iterator[None]:
    """The cache goes, and some keys come back as what nobody wrote."""
    keys = list(world.outside.redis.scan_iter("assay:image:*"))
    for number, key in enumerate(keys):
        world.outside.redis.delete(key)
        if number % 3 == 0:
            world.outside.redis.lpush(key, "a list")
        elif number % 3 == 1:
            world.outside.redis.hset(key, mapping={"width": "0", "height": "²", "format": "jpeg"})
    yield


@contextlib.contextmanager
def redis_without_connections(world: World) -> Iterator[None]:
    with contextlib.suppress(redis.RedisError):
        world.outside.redis.client_kill_filter(_type="normal", skipme=True)
    yield


@contextlib.contextmanager
def refusing(topic: str, world: World) -> Iterator[None]:
    """The topic takes records of 100 bytes at most."""
    _configure(world, topic, "100")
    try:
        yield
    finally:
        _configure(world, topic, "50000000")


def _configure(world: World, topic: str, most: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=world.kafka.bootstrap_servers)
    try:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs={"max.message.bytes": most})])
    finally:
        admin.close()


@contextlib.contextmanager
def more_partitions(world: World) -> Iterator[None]:
    world.add_partition()
    yield


@contextlib.contextmanager
def deleted_records(world: World) -> Iterator[None]:
    world.delete_what_is_read()
    yield


@contextlib.contextmanager
def aborted_records(world: World) -> Iterator[None]:
    """Somebody's transaction fails in the middle: nobody may judge what it wrote."""
    producer = KafkaProducer(bootstrap_servers=world.kafka.bootstrap_servers, transactional_id="somebody")
    producer.init_transactions()
    producer.begin_transaction()
    for number in range(5):
        producer.send(TOPICS[0], b"aborted", headers=[("ce_id", b"aborted/%d" % number)])
    producer.flush()
    yield
    producer.abort_transaction()
    producer.close()


@contextlib.contextmanager
def worker_ended(kill: bool, world: World) -> Iterator[None]:
    world.restart_worker(kill=kill)
    yield


def _network() -> Iterator[Fault]:
    modes = {
        "latency": (Mode("latency", 0.3), False),
        "trickle": (Mode("trickle", 20_000), False),
        "half-open": (Mode("half_open"), False),
        "half-open anew": (Mode("half_open"), True),
        "refused": (Mode("refuse"), True),
        "reset in an answer": (Mode("reset", 200), True),
        "hole in an answer": (Mode("hole", 100), True),
        "cut": (Mode(), True),
    }
    for server in SERVERS:
        for name, (mode, cut) in modes.items():
            yield Fault(f"{server}: {name}", partial(network, server, mode, cut))


FAULTS = [
    *_network(),
    *(Fault(f"{server}: hangs", partial(hung, server)) for server in SERVERS),
    *(Fault(f"{server}: killed", partial(killed, server), 2.0) for server in SERVERS),
    Fault("redis: out of memory", redis_full),
    Fault("redis: refuses writes", redis_read_only),
    Fault("redis: slow", redis_slow),
    Fault("redis: cache gone and odd", redis_forgetful, 1.0),
    Fault("redis: connections killed", redis_without_connections, 1.0),
    Fault("kafka: verdicts refused", partial(refusing, TOPICS[1]), 5.0),
    Fault("kafka: partition added", more_partitions, 1.0),
    Fault("kafka: read records deleted", deleted_records, 1.0),
    Fault("kafka: aborted transaction", aborted_records, 1.0),
    Fault("worker: killed", partial(worker_ended, True), 1.0),
    Fault("worker: ended", partial(worker_ended, False), 1.0),
]


def choose(source: random.Random, count: int) -> list[Fault]:
    """`count` faults in random order; each comes before any comes again."""
    chosen: list[Fault] = []
    while len(chosen) < count:
        chosen += source.sample(FAULTS, len(FAULTS))
    return chosen[:count]
