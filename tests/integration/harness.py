"""What the integration tests share: a worker as a process of its own, records in, verdicts and rejections out.

Everything goes through public interfaces (Kafka, Redis, HTTP, the command line), as a user's own test would.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import httpx
import redis
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests.integration.raw_kafka import produce_raw

REPO = Path(__file__).resolve().parents[2]
SAMPLES = REPO / "tests" / "data" / "images"
PATIENCE_S = 90.0
_RECONNECT_MS = 1_000  # kafka-python waits up to 30 s, which would be counted as the time of the worker
Message = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]


def samples(count: int | None = None) -> dict[str, bytes]:
    """Sample images by id (their path), both labels alike."""
    paths = sorted((path for path in SAMPLES.rglob("*") if path.is_file()), key=lambda path: path.name)
    return {path.relative_to(SAMPLES).as_posix(): path.read_bytes() for path in paths[:count]}


def unlike(image: bytes, number: int) -> bytes:
    """Other bytes, same picture: a JPEG's decoder ignores what stands behind its end."""
    return image + b"\0%d" % number


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Poll `condition`. Raises AssertionError naming what did not come."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.05)


class Worker:
    """`python -m worker run` as a process."""

    def __init__(self, env: Mapping[str, str], log_path: Path) -> None:
        self.env = {**os.environ, "ASSAY_LOG__FORMAT": "json", "ASSAY_LOG__LEVEL": "debug", **env}
        self.port = int(env["ASSAY_HTTP__PORT"])
        self.log_path = log_path
        self._log = log_path.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "worker", "run"], env=self.env, stdout=self._log, stderr=self._log, cwd=REPO
        )

    def get(self, path: str) -> httpx.Response | None:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=5, trust_env=False)
        except httpx.HTTPError:
            return None

    def is_ready(self) -> bool:
        assert self.process.poll() is None, f"the worker ended with {self.process.returncode}:\n{self.log_tail()}"
        response = self.get("/readyz")
        return response is not None and response.is_success

    def wait_ready(self) -> Worker:
        wait_until(self.is_ready, f"worker ready\n{self.log_tail()}")
        return self

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 where it is not there."""
        response = self.get("/metrics")
        wanted = ",".join(f'{key}="{value}"' for key, value in labels.items())
        prefix = f"{name}{{{wanted}}} " if labels else f"{name} "
        lines = response.text.splitlines() if response else []
        return next((float(line.removeprefix(prefix)) for line in lines if line.startswith(prefix)), 0.0)

    def terminate(self, timeout_s: float = 60) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        self.process.kill()
        self.wait(10)

    def wait(self, timeout_s: float) -> int:
        code = self.process.wait(timeout_s)
        self._log.close()
        return code

    def events(self, name: str) -> list[dict[str, object]]:
        """The log lines of one event."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        parsed = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in parsed if line.get("event") == name]

    def log_tail(self) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-30:])


@contextlib.contextmanager
def running_worker(env: Mapping[str, str], log_path: Path, **settings: str) -> Iterator[Worker]:
    """A ready worker; killed at the end if it still runs."""
    worker = Worker({**env, **settings}, log_path)
    try:
        yield worker.wait_ready()
    finally:
        if worker.process.poll() is None:
            worker.process.send_signal(signal.SIGCONT)
            worker.kill()


class Outside:
    """What others see of one set of topics: a producer, readers, and Redis."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self.servers = env["ASSAY_KAFKA__BOOTSTRAP_SERVERS"]
        self.incoming = env["ASSAY_KAFKA__INCOMING_TOPIC"]
        self.verdicts_topic = env["ASSAY_KAFKA__VERDICTS_TOPIC"]
        self.rejected_topic = env["ASSAY_KAFKA__REJECTED_TOPIC"]
        self.prefix = env["ASSAY_REDIS__KEY_PREFIX"]
        self.redis = redis.Redis.from_url(env["ASSAY_REDIS__URL"], decode_responses=True)
        self._producer = KafkaProducer(
            bootstrap_servers=self.servers,
            max_request_size=64 * 2**20,
            acks="all",
            reconnect_backoff_max_ms=_RECONNECT_MS,
        )
        self._records: dict[str, list[object]] = defaultdict(list)
        self._consumers: dict[str, KafkaConsumer] = {}

    def send(
        self,
        image_id: str | None,
        value: bytes | None,
        headers: Iterable[tuple[str, bytes]] = (),
        key: bytes | None = None,
    ) -> None:
        """One record; `image_id` goes into ce_id."""
        all_headers = [*([("ce_id", image_id.encode())] if image_id is not None else []), *headers]
        if key is None and image_id is not None:
            key = image_id.encode()
        self._producer.send(self.incoming, value=value, key=key, headers=all_headers)

    def send_raw(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes | None]]
    ) -> None:
        """One record as it is, null header values and a null value without a key included: kafka-python's own checks
        refuse them.
        """
        produce_raw(self.servers, topic, key, value, list(headers))

    def send_all(self, images: Mapping[str, bytes]) -> None:
        for image_id, value in images.items():
            self.send(image_id, value)
        self.flush()

    def flush(self) -> None:
        self._producer.flush(timeout=60)

    def records(self, topic: str) -> list[object]:
        """All records of `topic` so far."""
        consumer = self._consumers.get(topic)
        if consumer is None:
            consumer = KafkaConsumer(
                bootstrap_servers=self.servers,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                reconnect_backoff_max_ms=_RECONNECT_MS,
            )
            consumer.assign([TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or ())])
            consumer.seek_to_beginning()
            self._consumers[topic] = consumer
        while polled := consumer.poll(timeout_ms=200, max_records=500):
            for records in polled.values():
                self._records[topic].extend(records)
        return self._records[topic]

    def verdicts(self) -> list[dict[str, object]]:
        return [json.loads(record.value) for record in self.records(self.verdicts_topic)]

    def rejections(self) -> dict[str, object]:
        """The rejected records by image id."""
        return {
            dict(record.headers).get("image_id", b"").decode(): record for record in self.records(self.rejected_topic)
        }

    def wait_verdicts(self, ids: Iterable[str], timeout_s: float = PATIENCE_S) -> dict[str, dict[str, object]]:
        """The latest verdict record of each id."""
        wanted = set(ids)
        found: dict[str, dict[str, object]] = {}

        def all_there() -> bool:
            found.update({str(verdict["image_id"]): verdict for verdict in self.verdicts()})
            return wanted <= found.keys()

        try:
            wait_until(all_there, "verdicts", timeout_s)
        except AssertionError as error:
            missing = sorted(wanted - found.keys())
            raise AssertionError(f"{error} on {len(missing)} of {len(wanted)} images: {missing[:5]}") from None
        return {image_id: found[image_id] for image_id in wanted}

    def stored(self, image_id: str) -> dict[str, str]:
        return self.redis.hgetall(f"{self.prefix}verdict:{image_id}")

    def committed(self) -> dict[int, int | None]:
        """The group's committed offset of each partition."""
        consumer = KafkaConsumer(
            bootstrap_servers=self.servers, group_id=self.env["ASSAY_KAFKA__GROUP_ID"], enable_auto_commit=False
        )
        try:
            partitions = sorted(consumer.partitions_for_topic(self.incoming) or ())
            return {p: consumer.committed(TopicPartition(self.incoming, p)) for p in partitions}
        finally:
            consumer.close()

    def ends(self) -> dict[int, int]:
        """One past the last offset of each partition."""
        consumer = KafkaConsumer(bootstrap_servers=self.servers)
        try:
            partitions = [TopicPartition(self.incoming, p) for p in consumer.partitions_for_topic(self.incoming) or ()]
            return {tp.partition: end for tp, end in consumer.end_offsets(partitions).items()}
        finally:
            consumer.close()

    def all_committed(self) -> bool:
        committed = self.committed()
        return all((committed[partition] or 0) == end for partition, end in self.ends().items())

    def close(self) -> None:
        self._producer.close(timeout=5)
        for consumer in self._consumers.values():
            consumer.close()
        self.redis.close()
