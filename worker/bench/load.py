"""Load for the benchmarks: topics of their own, images that no cache knows, and a worker as a process of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker import settings as settings_module
from worker.clients.kafka_producer import Outgoing, Producer
from worker.clients.kafka_topics import create_topics, delete_topics, publish
from worker.demo import SAMPLES, stop_worker, wait_until_ready
from worker.errors import SettingsError
from worker.local.server import free_port
from worker.settings import KafkaSettings, Settings, variable

PARTITIONS = 4
BATCH = 32
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def sample_images() -> list[bytes]:
    """The JPEGs of the sample images: bytes behind a JPEG's end change its hash and not its picture."""
    images = [path.read_bytes() for path in sorted(SAMPLES.rglob("*.jpg"))]
    if not images:
        raise SettingsError([f"bench: no sample images at {SAMPLES}: run it in a checkout"])
    return images


def unlike(image: bytes, number: int, size_bytes: int | None = None) -> bytes:
    """The same picture with other bytes, padded to `size_bytes`."""
    mark = b"%016d" % number
    return image + mark + b"\0" * max(0, (size_bytes or 0) - len(image) - len(mark))


@dataclass(frozen=True, slots=True)
class BenchWorker:
    """A running worker and what it was started with."""

    pid: int
    settings: Settings

    def memory_bytes(self) -> int:
        """Resident memory of the worker and its decoding processes now; what several share counts once."""
        return sum(_proportional_bytes(pid) for pid in self._pids())

    def cpu_s(self) -> float:
        """Processor seconds that the worker and its decoding processes have used so far."""
        return sum(_cpu_s(pid) for pid in self._pids())

    def _pids(self) -> list[int]:
        pids = [self.pid]
        for pid in pids:  # grows while it is walked over: children of children
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
                pids += [int(word) for word in text.split()]
        return pids


def _proportional_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):  # it has just ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _cpu_s(pid: int) -> float:
    with contextlib.suppress(OSError):
        parts = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return sum(int(part) for part in parts[11:15]) / _CLOCK_TICKS  # its own, and those of children that have ended
    return 0.0


@contextlib.contextmanager
def own_topics(settings: Settings) -> Iterator[Mapping[str, str]]:
    """The variables that give a worker topics, a group and keys of its own; the topics are deleted at the end."""
    name = f"assay-bench-{uuid.uuid4().hex[:8]}"
    topics = {field: f"{name}.{field}" for field in KafkaSettings.model_fields if field.endswith("_topic")}
    environment = {variable("kafka", field): topic for field, topic in topics.items()}
    environment |= {
        variable("kafka", "group_id"): name,
        variable("kafka", "bootstrap_servers"): ",".join(settings.kafka.bootstrap_servers),
        variable("redis", "url"): settings.redis.url.get_secret_value(),
        variable("redis", "key_prefix"): f"{name}:",
        variable("redis", "verdict_ttl"): "600",
        variable("redis", "hash_ttl"): "600",
        variable("triton", "url"): settings.triton.url,
    }
    create_topics(
        settings.kafka,
        topics.values(),
        PARTITIONS,
        {"retention.bytes": "-1", "max.message.bytes": str(settings.kafka.max_request_bytes)},
    )
    try:
        yield environment
    finally:
        delete_topics(settings.kafka, list(topics.values()))


@contextlib.contextmanager
def worker(environment: Mapping[str, str], config: Path | None) -> Iterator[BenchWorker]:
    """A worker that is ready; drained and ended at the end."""
    port = free_port()
    full = {**os.environ, **environment, variable("http", "port"): str(port), variable("log", "level"): "warning"}
    arguments = ["--config", str(config)] if config else []
    with tempfile.TemporaryDirectory(prefix="assay-bench-") as folder:
        log_path = Path(folder) / "worker.log"
        with log_path.open("wb") as log:
            command = [sys.executable, "-m", "worker", "run", *arguments]
            process = subprocess.Popen(command, env=full, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until_ready(process, port, log_path)
            yield BenchWorker(process.pid, settings_module.load(config, full))
        finally:
            stop_worker(process)


def produce(producer: Producer, topic: str, images: Iterator[tuple[str, bytes]]) -> None:
    """Send all of `images` (id, bytes), some at a time. Raises Unavailable where one is not acknowledged."""
    while batch := list(itertools.islice(images, BATCH)):
        publish(
            producer,
            [Outgoing(topic, image_id.encode(), data, [("ce_id", image_id.encode())]) for image_id, data in batch],
        )
