"""A stack of its own, a proxy before each server, a worker behind them, and load: what faults are planted in."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import NewPartitions

from tests.faults.audit import Sent, audit
from tests.faults.proxy import Proxy
from tests.integration.conftest import SHORT_SESSION
from tests.integration.harness import Outside, Worker, samples, unlike, wait_until
from worker.clients import kafka_topics
from worker.local import stack as local_stack
from worker.local.kafka_server import TOPICS
from worker.local.server import free_port
from worker.settings import KafkaSettings, variable

SERVERS = ("kafka", "redis", "triton")
IMAGES_PER_S = 5.0
PATIENCE_S = 300.0  # a busy machine is no fault


class World:
    """Everything that a fault may touch. `sent` grows while `load` runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stack = directory / "stack"
        direct = local_stack.up(self.stack).env
        self.proxies = {
            "kafka": Proxy(direct["ASSAY_KAFKA__BOOTSTRAP_SERVERS"], advertises=True),
            "redis": Proxy(direct["ASSAY_REDIS__URL"].removeprefix("redis://").partition("/")[0]),
            "triton": Proxy(direct["ASSAY_TRITON__URL"]),
        }
        fields = {name: field for name, field in KafkaSettings.model_fields.items() if name.endswith("_topic")}
        common = {
            **os.environ,
            **SHORT_SESSION,
            **{variable("kafka", name): str(field.default) for name, field in fields.items()},
            "ASSAY_KAFKA__GROUP_ID": "assay-worker",
            "ASSAY_REDIS__KEY_PREFIX": "assay:",
        }
        self.direct = {**common, **direct}
        self.kafka = KafkaSettings(bootstrap_servers=[direct["ASSAY_KAFKA__BOOTSTRAP_SERVERS"]])
        self.env = {
            **self.direct,
            "ASSAY_KAFKA__BOOTSTRAP_SERVERS": self.proxies["kafka"].address,
            "ASSAY_REDIS__URL": f"redis://{self.proxies['redis'].address}/0",
            "ASSAY_TRITON__URL": self.proxies["triton"].address,
            # A call that hangs must not outlast the patience of a test.
            "ASSAY_TRITON__DEADLINE_MS": "25000",
            "ASSAY_KAFKA__REQUEST_TIMEOUT_MS": "5000",
        }
        self.outside = Outside(self.direct)
        self.sent: list[Sent] = []
        self.worker = self._start_worker()
        self._pictures = [data for name, data in samples().items() if name.endswith(".jpg")][:10]
        self._scores: list[float] = []
        self._learn_scores()

    def _start_worker(self) -> Worker:
        number = len(list(self.directory.glob("worker-*.log")))
        env = {**self.env, "ASSAY_HTTP__PORT": str(free_port()), "ASSAY_LOG__LEVEL": "info"}
        return Worker(env, self.directory / f"worker-{number}.log")

    def restart_worker(self, *, kill: bool) -> None:
        """End it, by SIGKILL or by SIGTERM, and start another."""
        if kill:
            self.worker.kill()
        else:
            assert self.worker.terminate() == 0, self.worker.log_tail()
        self.worker = self._start_worker()

    def _learn_scores(self) -> None:
        """What each picture scores while nothing is wrong."""
        wait_until(self.worker.is_ready, "worker ready", PATIENCE_S)
        for number, picture in enumerate(self._pictures):
            self.outside.send(f"known/{number}", picture)
        self.outside.flush()
        verdicts = self.outside.wait_verdicts([f"known/{number}" for number in range(len(self._pictures))], PATIENCE_S)
        for number, picture in enumerate(self._pictures):
            score = float(verdicts[f"known/{number}"]["scores"]["linear"])  # type: ignore[index]
            self._scores.append(score)
            self.sent.append(Sent(f"known/{number}", hashlib.sha256(picture).hexdigest(), score))

    def send(self) -> str:
        """One more image that no cache knows. Returns its id."""
        number = len(self.sent)
        which = number % len(self._pictures)
        data = unlike(self._pictures[which], number)
        self.sent.append(Sent(f"image/{number}", hashlib.sha256(data).hexdigest(), self._scores[which]))
        self.outside.send(self.sent[-1].image_id, data)
        return self.sent[-1].image_id

    @contextlib.contextmanager
    def load(self) -> Iterator[None]:
        """Images come in meanwhile, straight to the broker; while it is away they wait in the producer."""
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(1 / IMAGES_PER_S):
                with contextlib.suppress(Exception):  # the broker may be the one that is away
                    self.send()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(60)

    def heal(self) -> None:
        """Whatever a fault killed is started again, and the worker is ready."""
        local_stack.up(self.stack)

    def recovered_after(self, patience_s: float = PATIENCE_S) -> float:
        """Seconds until an image that is sent now has its verdict."""
        started = time.monotonic()
        probe = self.send()
        self.outside.flush()
        self.outside.wait_verdicts([probe], patience_s)
        return time.monotonic() - started

    def pid(self, server: str) -> int:
        service = local_stack.status(self.stack).services[server]
        assert service is not None, f"{server} does not run"
        return service.pid

    def audit(self) -> list[str]:
        """Once everything has settled: what is wrong."""
        self.outside.flush()
        self.outside.wait_verdicts([one.image_id for one in self.sent], PATIENCE_S)
        wait_until(self.outside.all_committed, "every offset committed", PATIENCE_S)
        reasons = {
            image_id: dict(record.headers)["reject_reason"].decode()  # type: ignore[attr-defined]
            for image_id, record in self.outside.rejections().items()
        }
        committed, ends = self.outside.committed(), self.outside.ends()
        places = {number: (committed.get(number) or 0, end) for number, end in ends.items()}
        return audit(self.sent, self.outside.verdicts(), reasons, places)

    def add_partition(self) -> None:
        """The incoming topic has one more from now on."""
        count = next(topic.partitions for topic in kafka_topics.topics(self.kafka) if topic.name == TOPICS[0])
        self._administer(lambda admin: admin.create_partitions({TOPICS[0]: NewPartitions(count + 1)}))

    def delete_what_is_read(self) -> None:
        """Records of the incoming topic that are committed go away under the reader."""
        committed = {TopicPartition(TOPICS[0], p): at for p, at in self.outside.committed().items() if at}
        if committed:
            self._administer(lambda admin: admin.delete_records(committed))

    def _administer(self, operation: Callable[[KafkaAdminClient], object]) -> None:
        admin = KafkaAdminClient(bootstrap_servers=self.kafka.bootstrap_servers)
        try:
            operation(admin)
        finally:
            admin.close()

    def close(self) -> None:
        self.outside.close()
        if self.worker.process.poll() is None:
            self.worker.kill()
        for proxy in self.proxies.values():
            proxy.close()
        local_stack.down(self.stack, purge=True)
