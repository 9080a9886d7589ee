"""Is the worker well? A thread looks at the dependencies once a second; /livez and /readyz only read what it saw.

Live: the poll loop moves. Ready: partitions are assigned, Kafka, Redis and the model answer, and what waits is being
finished. The server's own word on the model is not enough (a model whose process has died still counts as ready there):
an idle worker sends a canary. Nor is Kafka's: a broker that answers may refuse what is produced, so its breaker counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import structlog

from worker.clients.kafka_probe import Probe
from worker.clients.redis import Store
from worker.clients.triton import InferenceFailed, Triton
from worker.errors import Unavailable
from worker.model import ModelWatch, canary
from worker.retry import CircuitBreaker
from worker.settings import Settings
from worker.stages.poll import Poll
from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)
INTERVAL_S = 1.0
STALE_S = 8.0
STUCK_S = 10.0  # a poll, or a call with its retries, that takes longer: nothing is finished meanwhile
CANARY_EVERY_S = 5.0
CANARY_DEADLINE_S = 3.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at a dependency found."""

    well: bool
    detail: str


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
        decoding_trouble: Callable[[], str],
    ) -> None:
        self._settings = settings
        self._store = store
        self._triton = triton
        self._watch = watch
        self._breakers = breakers
        self._metrics = metrics
        self._poll = poll
        self._decoding_trouble = decoding_trouble
        self._probe = Probe(settings.kafka)
        self._stop = threading.Event()
        self._seen: dict[str, Seen] = {}
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
        kafka = self._seen.get("kafka")
        stuck = outside_s > join_limit_s and kafka is not None and kafka.well
        checks = {"loop": f"moved {silent_s:.1f} s ago", "group": f"joined {outside_s:.1f} s ago"}
        return silent_s < stall_s and not stuck, checks

    def readyz(self) -> tuple[bool, dict[str, Any]]:
        """Partitions assigned, dependencies there, no breaker open, decoders there, nothing stuck."""
        now = time.monotonic()
        seen = self._seen
        assigned = self._poll.assigned
        names = [f"{topic}/{number}" for topic, number in assigned]
        checks: dict[str, Any] = {"partitions": names} | {name: look.detail for name, look in seen.items()}
        obstacles: dict[str, Any] = {}
        if away := [breaker.name for breaker in self._breakers if breaker.is_away]:
            obstacles["breakers_open"] = away
        calls = {breaker.name: breaker.longest_call_s() for breaker in self._breakers}
        if waiting := {name: f"a call waits for {took_s:.0f} s" for name, took_s in calls.items() if took_s > STUCK_S}:
            obstacles["waiting"] = waiting
        if (silent_s := now - self._poll.heartbeat_at) > STUCK_S:
            obstacles["loop"] = f"moved {silent_s:.1f} s ago"
        if trouble := self._decoding_trouble():
            obstacles["decoding"] = trouble
        if now - self._seen_at > STALE_S:
            obstacles["monitor"] = "no result yet, or not for too long"
        well = self._poll.has_incoming and not obstacles and all(look.well for look in seen.values())
        return well, checks | obstacles

    def _run(self) -> None:
        """Looks until it is stopped, whatever a look does: an end of this thread would be seen by nobody."""
        looks: dict[str, Callable[[], str]] = {"kafka": self._kafka, "redis": self._redis, "triton": self._model}
        with ThreadPoolExecutor(len(looks), thread_name_prefix="monitor") as pool:
            while not self._stop.is_set():
                try:
                    results = {name: pool.submit(self._look, name, look) for name, look in looks.items()}
                    self._note({name: result.result() for name, result in results.items()})
                except Exception:
                    if not self._stop.is_set():  # /readyz turns non-200 once what was seen is stale
                        log.exception("monitor_broken", action="looking again")
                self._stop.wait(INTERVAL_S)

    def _note(self, seen: dict[str, Seen]) -> None:
        before, self._seen = self._seen, seen
        self._seen_at = time.monotonic()
        self._tell_of_kafka(before.get("kafka"), seen["kafka"])
        for name, look in seen.items():
            self._metrics.dependency_up.labels(dependency=name).set(look.well)

    def _tell_of_kafka(self, before: Seen | None, now: Seen) -> None:
        """Its client waits by itself, in words of its own: the log gets the two events of what has a breaker."""
        was_well = before is None or before.well
        if was_well and not now.well:
            log.warning(
                "dependency_away", dependency="kafka", error=now.detail, action="waiting; nothing is rejected for it"
            )
        elif now.well and not was_well:
            log.info("dependency_recovered", dependency="kafka")

    def _look(self, name: str, look: Callable[[], str]) -> Seen:
        try:
            return Seen(well=True, detail=look())
        except (Unavailable, InferenceFailed) as error:
            return Seen(well=False, detail=str(error))
        except Exception as error:
            seen = Seen(well=False, detail=f"unexpected {type(error).__name__}: {error}")
            # Its client may have been closed under it; and the same once a second would fill the log.
            if not self._stop.is_set() and self._seen.get(name) != seen:
                log.exception("health_look_broken", dependency=name)
            return seen

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
            self._watch.infer(canary(), timeout_s=CANARY_DEADLINE_S)
        return f"model version {version}"
