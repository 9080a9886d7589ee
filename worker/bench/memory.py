"""Does the worker's memory stay bounded, however much waits in Kafka? Peak resident memory with a backlog against the idle one.

The bound comes from the settings: what may be in work (ASSAY_FLOW__MAX_BYTES, and one poll above it), two fetches of the
consumer, and the batches on their way through decoding and inference.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from worker.bench import load
from worker.clients.kafka import Producer
from worker.clients.triton import CROP_BYTES
from worker.settings import Settings

IMAGE_BYTES = 1_000_000
WATCH_S = 60.0
ALLOCATOR_SHARE = 1.25  # what the allocator keeps of buffers that were freed


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """Bytes. `bound`: what the settings allow above `idle`."""

    waiting_images: int
    image_bytes: int
    idle: int
    peak: int
    bound: int

    @property
    def within(self) -> bool:
        return self.peak - self.idle <= self.bound


def bound_bytes(settings: Settings) -> int:
    """Bytes above the idle worker that the settings allow."""
    batches = settings.intake.batch_max_items * CROP_BYTES * (settings.triton.calls_in_flight * 2 + 4)
    one_poll = settings.kafka.fetch_max_bytes
    fetched = 3 * settings.kafka.fetch_max_bytes
    return int(ALLOCATOR_SHARE * (settings.flow.max_bytes + one_poll + fetched + batches))


def measure(settings: Settings, config: Path | None, *, images: int, report: Callable[[str], None]) -> MemoryReport:
    """Put `images` of 1 MB into Kafka, start a worker on them, and watch its memory for a minute or until it is through."""
    pictures = load.sample_images()
    producer = Producer(settings.kafka)
    try:
        with load.own_topics(settings) as environment:
            with load.worker(environment, config) as worker:
                idle = worker.rss_bytes()[0]
            report(f"idle: {idle / 1e6:.0f} MB; sending {images} images of {IMAGE_BYTES / 1e6:.0f} MB")
            topic = environment["ASSAY_KAFKA__INCOMING_TOPIC"]
            numbered = ((f"bench/{n}", load.unlike(pictures[n % len(pictures)], n, IMAGE_BYTES)) for n in range(images))
            load.produce(producer, topic, numbered)
            with load.worker(environment, config) as worker:
                deadline = time.monotonic() + WATCH_S
                while time.monotonic() < deadline:
                    time.sleep(0.5)
                peak = worker.rss_bytes()[1]
                return MemoryReport(images, IMAGE_BYTES, idle, peak, bound_bytes(worker.settings))
    finally:
        producer.close()
