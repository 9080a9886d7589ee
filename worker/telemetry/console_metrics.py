"""Metrics of the review console, on a port of its own (`ASSAY_CONSOLE__METRICS_PORT`)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from worker.errors import Unavailable
from worker.review import Review
from worker.telemetry.metric_doc import PREFIX, MetricDoc

CONSOLE_DOCS = (
    MetricDoc(
        f"{PREFIX}reviews_total",
        "counter",
        ("decision", "queue", "became"),
        "reviews",
        "Reviews on Kafka; became: done, second (another opinion is wanted) or conflict (a lead is to decide).",
    ),
    MetricDoc(f"{PREFIX}review_seconds", "histogram", (), "seconds", "From the image on the screen to the decision."),
    MetricDoc(
        f"{PREFIX}reviews_golden_total", "counter", ("right",), "reviews", "Decisions on golden items, right or not."
    ),
    MetricDoc(f"{PREFIX}review_queue_images", "gauge", ("queue",), "images", "Images in a queue that are not done."),
    MetricDoc(
        f"{PREFIX}review_queue_oldest_seconds",
        "gauge",
        ("queue",),
        "seconds",
        "Age of the oldest of them, from its verdict on, held ones included; 0 where there is none.",
    ),
)

_SECONDS_BUCKETS = (0.5, 1, 2, 3, 5, 8, 12, 20, 30, 60, 120, 300, 900)


class State(Protocol):
    """Of a queue."""

    @property
    def name(self) -> str: ...
    @property
    def open(self) -> int: ...
    @property
    def oldest_ms(self) -> int | None: ...


class Board(Protocol):
    """What is asked at each scrape."""

    def states(self) -> Iterable[State]: ...


class ConsoleMetrics:
    """Counts the reviews that this process has seen on Kafka first, whoever wrote them."""

    def __init__(self, board: Board) -> None:
        self.registry = CollectorRegistry()
        self._reviews = Counter(
            f"{PREFIX}reviews", "Reviews on Kafka.", ("decision", "queue", "became"), registry=self.registry
        )
        self._seconds = Histogram(
            f"{PREFIX}review_seconds",
            "From the image on the screen to the decision.",
            registry=self.registry,
            buckets=_SECONDS_BUCKETS,
        )
        self._golden = Counter(
            f"{PREFIX}reviews_golden", "Decisions on golden items.", ("right",), registry=self.registry
        )
        self.registry.register(_Queues(board))
        ProcessCollector(registry=self.registry)

    def heard(self, review: Review, became: str) -> None:
        """A review that was not known before."""
        if review.golden:
            self._golden.labels(right=str(review.decision == review.truth).lower()).inc()
            return
        self._reviews.labels(decision=review.decision, queue=review.queue, became=became).inc()
        self._seconds.observe(review.seconds)


class _Queues(Collector):
    """Asked of Redis at each scrape: every console says the same."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def describe(self) -> Iterator[Any]:
        yield from ()

    def collect(self) -> Iterator[Any]:
        waiting = GaugeMetricFamily(f"{PREFIX}review_queue_images", "Images that are not done.", labels=["queue"])
        oldest = GaugeMetricFamily(
            f"{PREFIX}review_queue_oldest_seconds",
            "Age of the oldest of them; 0 where there is none.",
            labels=["queue"],
        )
        try:
            for state in self._board.states():
                waiting.add_metric([state.name], state.open)
                age_s = 0.0 if state.oldest_ms is None else max(0.0, time.time() - state.oldest_ms / 1000)
                oldest.add_metric([state.name], age_s)
        except Unavailable:
            return
        yield waiting
        yield oldest
