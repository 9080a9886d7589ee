"""The stack's Kafka: one node in KRaft mode, run by the JRE of a wheel from resolved jars.

Sized for a laptop: a small heap, few internal partitions, retention bounded by bytes; records of up to 40 MiB.
"""

from __future__ import annotations

import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker.errors import Unavailable
from worker.local import install
from worker.local.server import HOST, NotServing, Server, lines
from worker.settings import KafkaSettings

TOPICS = tuple(
    str(KafkaSettings.model_fields[f"{kind}_topic"].default)
    for kind in ("incoming", "verdicts", "rejected", "retry", "reviews")
)
PARTITIONS = 4
MAX_RECORD_BYTES = 40 * 1024 * 1024
# A rejection is the record as it came and some headers: its topic must take more than the incoming one, or it waits for
# ever.
MAX_REJECTED_BYTES = KafkaSettings().max_request_bytes

_LOG4J = """\
status = warn
appenders = file
appender.file.type = RollingFile
appender.file.name = FILE
appender.file.fileName = ${sys:kafka.logs.dir}/kafka.log
appender.file.filePattern = ${sys:kafka.logs.dir}/kafka.log.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = [%d] %p %m (%c)%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 20MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 1
rootLogger.level = info
rootLogger.appenderRefs = file
rootLogger.appenderRef.file.ref = FILE
"""


def new_cluster_id(random: bytes) -> str:
    """22 characters of base64url out of 16 random bytes, never with a dash in front: the storage tool would take it for
    an option.
    """
    return urlsafe_b64encode(bytes([random[0] & 0x7F]) + random[1:]).decode().rstrip("=")


class KafkaServer(Server):
    """Broker and controller in one process. `retention_bytes`: per partition, chosen once for the run directory."""

    name = "kafka"
    port_names = ("kafka", "kafka_controller")

    def __init__(
        self, directory: Path, ports: Mapping[str, int], retention_bytes: int, topics: Sequence[str] = TOPICS
    ) -> None:
        super().__init__(directory, ports)
        self.retention_bytes = retention_bytes
        self.topics = tuple(topics)
        self.data = self.directory / "data"

    @property
    def env(self) -> dict[str, str]:
        return {"ASSAY_KAFKA__BOOTSTRAP_SERVERS": self.address}

    def files(self) -> dict[str, str]:
        controller = f"{HOST}:{self.ports['kafka_controller']}"
        properties: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": self.data,
            "num.partitions": PARTITIONS,
            "default.replication.factor": 1,
            "min.insync.replicas": 1,
            "auto.create.topics.enable": "true",
            "message.max.bytes": MAX_RECORD_BYTES,
            "replica.fetch.max.bytes": MAX_RECORD_BYTES,
            "socket.request.max.bytes": 4 * MAX_RECORD_BYTES,
            "log.retention.bytes": self.retention_bytes,
            "log.retention.hours": 168,
            "log.retention.check.interval.ms": 60_000,
            # Retention deletes whole segments: several must fit into its bound.
            "log.segment.bytes": 128 * 1024 * 1024,
            # Internal topics: one replica, one partition; the defaults (50 each) make a slow start and many files.
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 1,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "num.recovery.threads.per.data.dir": 1,
            "log.cleaner.dedupe.buffer.size": 2 * 1024 * 1024,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1_000,
            # The controller turns a killed broker away until its old session ends (9 s by default).
            "broker.session.timeout.ms": 1_500,
            "broker.heartbeat.interval.ms": 300,
        }
        return {"server.properties": lines(properties, "="), "log4j2.properties": _LOG4J}

    def command(self) -> tuple[list[str], dict[str, str]]:
        heap = ["-Xms256m", "-Xmx768m", "-XX:MaxDirectMemorySize=512m", "-XX:+ExitOnOutOfMemoryError"]
        return self._java(*heap, "kafka.Kafka", str(self.directory / "server.properties")), {}

    def _java(self, *arguments: str) -> list[str]:
        return [
            str(install.java()),
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Xlog:disable",
            "-Xlog:all=warning:stderr",
            f"-Dkafka.logs.dir={self.log.parent}",
            f"-Dlog4j2.configurationFile={self.directory / 'log4j2.properties'}",
            "-cp",
            f"{install.kafka_jars()}/*",
            *arguments,
        ]

    def prepare(self) -> None:
        """Give an empty data directory its cluster id."""
        super().prepare()
        if (self.data / "meta.properties").exists():
            return
        cluster_id = new_cluster_id(uuid.uuid4().bytes)
        arguments = [
            "kafka.tools.StorageTool",
            "format",
            "--ignore-formatted",
            "-t",
            cluster_id,
            "-c",
            str(self.directory / "server.properties"),
        ]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(self._java("-Xmx128m", *arguments), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable("kafka", f"{self.data} could not be formatted: {(done.stderr or done.stdout).strip()}")

    def check(self) -> None:
        """The port is open and the broker names its topics; those of the worker are created where they are missing."""
        # kafka-python takes a quarter of a second to import, and an admin client backs off for seconds before a closed
        # port.
        self.connect().close()
        from worker.clients import kafka_topics  # noqa: PLC0415

        settings = KafkaSettings(bootstrap_servers=[self.address], client_id="assay-stack", request_timeout_ms=5_000)
        try:
            present = {topic.name for topic in kafka_topics.topics(settings)}
            if missing := [name for name in self.topics if name not in present]:
                repeating = [name for name in missing if name in TOPICS[2:]]
                kafka_topics.create_topics(
                    settings, repeating, PARTITIONS, {"max.message.bytes": str(MAX_REJECTED_BYTES)}
                )
                kafka_topics.create_topics(settings, [name for name in missing if name not in repeating], PARTITIONS)
                # The controller has made them; the broker hears of it a moment later.
                raise NotServing(f"its topics are being made: {', '.join(missing)}")
        except Unavailable as error:
            raise NotServing(error.detail) from error
