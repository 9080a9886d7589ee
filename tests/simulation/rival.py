"""Another member of the group that is always right and at once: whoever loses a partition to it must not write again.

It judges what is there by the plan alone, writes Redis and the topics, and commits.
"""

from __future__ import annotations

import json
import uuid

from kafka import TopicPartition

from tests.simulation.clock import EPOCH_S
from tests.simulation.kafka import RIVAL, Broker
from tests.simulation.plan import EXPECTED, Sent
from tests.simulation.servers import RedisServer, TritonServer
from tests.simulation.world import World
from worker.clients.kafka_producer import Outgoing
from worker.stages.decide import timestamp


class Rival:
    """Takes the partitions that are lent to it, and what it finds there."""

    def __init__(
        self, world: World, broker: Broker, redis: RedisServer, triton: TritonServer, policy_version: str
    ) -> None:
        self._world = world
        self._broker = broker
        self._redis = redis
        self._triton = triton
        self._policy_version = policy_version
        self._sent = {(one.partition, one.offset): one for one in world.plan.sent}

    def run(self) -> None:
        """Until the end of the history."""
        broker = self._broker
        while True:
            broker.changed.wait(0.1)
            for partition in broker.incoming:
                if broker.wanted(partition) == RIVAL and broker.may_take(partition):
                    broker.generation += 1
                    broker.owner[partition] = RIVAL
                    self._world.note("assigned", RIVAL, [partition])
                    self._judge(partition)
                elif broker.owner[partition] == RIVAL and broker.wanted(partition) != RIVAL:
                    broker.release(partition)

    def _judge(self, partition: TopicPartition) -> None:
        """As many of the waiting records as chance wants, usually all."""
        broker, rng = self._broker, self._world.rng
        waiting = [one for one in broker.log[partition] if one.offset >= broker.position(partition)]
        if waiting and rng.random() < 0.2:
            waiting = waiting[: rng.randrange(len(waiting))]
        self._redis.catch_up()
        for record in waiting:
            one = self._sent[partition.partition, record.offset]
            self._world.note("delivered", RIVAL, record.topic, [dict(one.headers)["traceparent"]])
            written = broker.write(RIVAL, self._rejection(one) if EXPECTED[one.kind] else self._verdict(one))
            self._world.note("acknowledged", RIVAL, [written.number])
        if waiting:
            before = broker.committed.get(partition)
            self._world.note("committed", RIVAL, partition, waiting[-1].offset + 1, before, False)
            broker.committed[partition] = waiting[-1].offset + 1

    def _verdict(self, one: Sent) -> Outgoing:
        version = self._triton.version
        text = "\n".join([one.image_id, one.sha256, version, self._policy_version])
        verdict_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"assay:{text}"))
        score = (one.number + 16 * int(version)) / 128
        document = {
            "verdict_id": verdict_id,
            "image_id": one.image_id,
            "sha256": one.sha256,
            "scores": {"linear": score, "knn": score / 2, "svm": score / 4},
            "model": {"version": version},
            "origin": {"partition": one.partition, "offset": one.offset},
            "decided_at": timestamp(EPOCH_S + self._world.hub.now),
        }
        as_json = json.dumps(document)
        self._redis.put(RIVAL, one.image_id, as_json)
        headers = [("ce_id", verdict_id.encode()), one.headers[0]]
        return Outgoing("images.verdicts", one.image_id.encode(), as_json.encode(), headers)

    def _rejection(self, one: Sent) -> Outgoing:
        headers = [
            *one.headers,
            ("reject_reason", EXPECTED[one.kind][0].encode()),
            ("reject_attempts", b"3"),
            ("original_partition", str(one.partition).encode()),
            ("original_offset", str(one.offset).encode()),
        ]
        return Outgoing("images.rejected", one.key, one.value, headers)
