"""Is the worker well? A thread looks at the dependencies once a second; /livez and /readyz only read what it saw.

Live: the poll loop moves. Ready: partitions are assigned, and Kafka, Redis and the model answer. The server's own word
on the model is not enough (a model whose process has died still counts as ready there): an idle worker sends a canary.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog

from worker.clients.kafka_probe import Probe
from worker.clients.redis import Store
from worker.clients.triton import InferenceFailed, Triton
from worker.errors import Unavailable
from worker.model import CANARY, ModelWatch
from worker.retry import CircuitBreaker
from worker.settings import Settings
from worker.stages.poll import Poll
from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)
INTERVAL_S = 1.0
STALE_S = 8.0
CANARY_EVERY_S = 5.0
CANARY_DEADLINE_S = 3.0


class Monitor:
    """Looks at the dependencies and answers the probes."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        triton: Triton,
        watch: ModelWatch,
        breakers: Sequence[CircuitBreaker],
        metrics: Metrics,
        poll: Poll,
    ) -> None:
        self._settings = settings
        self._store = store
        self._triton = triton
        self._watch = watch
        self._breakers = breakers
        self._metrics = metrics
        self._poll = poll
        self._probe = Probe(settings.kafka)
        self._stop = threading.Event()
        self._seen: dict[str, tuple[bool, str]] = {}
        self._seen_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1)
        self._probe.close()

    def livez(self) -> tuple[bool, dict[str, Any]]:
        """Does the poll loop move, and is it in the group? A dependency that is away is no reason to be restarted.

        A join may take as long as the slowest member may take to poll; beyond that this one is stuck.
        """
        now = time.monotonic()
        silent_s, outside_s = now - self._poll.heartbeat_at, now - self._poll.joined_at
        stall_s = self._settings.run.stall_timeout_s
        join_limit_s = self._settings.kafka.max_poll_interval_ms / 1000 + stall_s
        kafka_is_there = self._seen.get("kafka", (False, ""))[0]
        stuck = outside_s > join_limit_s and kafka_is_there
        checks = {"loop": f"moved {silent_s:.1f} s ago", "group": f"joined {outside_s:.1f} s ago"}
        return silent_s < stall_s and not stuck, checks

    def readyz(self) -> tuple[bool, dict[str, Any]]:
        """Partitions assigned, dependencies there, no breaker open."""
        assigned = self._poll.assigned
        checks: dict[str, Any] = {"partitions": assigned}
        fresh = time.monotonic() - self._seen_at < STALE_S
        seen = self._seen
        for name, (_, detail) in seen.items():
            checks[name] = detail
        away = [breaker.name for breaker in self._breakers if breaker.is_away]
        if away:
            checks["breakers_open"] = away
        if not fresh:
            checks["monitor"] = "no result yet, or not for too long"
        return bool(assigned) and fresh and not away and all(well for well, _ in seen.values()), checks

    def _run(self) -> None:
        looks: dict[str, Callable[[], str]] = {"kafka": self._kafka, "redis": self._redis, "triton": self._model}
        with ThreadPoolExecutor(len(looks), thread_name_prefix="monitor") as pool:
            while not self._stop.is_set():
                results = {name: pool.submit(self._look, look) for name, look in looks.items()}
                try:
                    before, self._seen = self._seen, {name: result.result() for name, result in results.items()}
                except Exception:
                    if self._stop.is_set():  # its clients were closed under it
                        return
                    raise
                self._seen_at = time.monotonic()
                self._tell_of_kafka(before.get("kafka", (True, ""))[0], *self._seen["kafka"])
                for name, (well, _) in self._seen.items():
                    self._metrics.dependency_up.labels(dependency=name).set(well)
                self._stop.wait(INTERVAL_S)

    def _tell_of_kafka(self, was_well: bool, well: bool, detail: str) -> None:
        """Its client waits by itself, in words of its own: the log gets the two events of what has a breaker."""
        if was_well and not well:
            log.warning(
                "dependency_away", dependency="kafka", error=detail, action="waiting; nothing is rejected for it"
            )
        elif well and not was_well:
            log.info("dependency_recovered", dependency="kafka")

    def _look(self, look: Callable[[], str]) -> tuple[bool, str]:
        try:
            return True, look()
        except (Unavailable, InferenceFailed) as error:
            return False, str(error)

    def _kafka(self) -> str:
        return f"{self._probe.check()} answers"

    def _redis(self) -> str:
        self._store.ping()
        return "answers"

    def _model(self) -> str:
        version = self._watch.refresh()
        if not self._triton.is_ready():
            raise Unavailable(
                "triton", f"{self._triton.address}: model {self._settings.triton.model_name} is not ready"
            )
        if self._watch.idle_s() > CANARY_EVERY_S:
            self._watch.infer(CANARY, timeout_s=CANARY_DEADLINE_S)
        return f"model version {version}"
