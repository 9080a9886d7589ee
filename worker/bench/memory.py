"""Does the memory of worker and decoding processes stay bounded, however much waits in Kafka? Peaks with a small and
with a large backlog, in which every hundredth image is a large one.

The bound comes from the settings: what may be in work (ASSAY_FLOW__MAX_BYTES, and one poll above it), the consumer's
fetches, images while they are decoded, and batches on their way to inference.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from worker.bench import load
from worker.clients.kafka_producer import Producer
from worker.crop import CROP_BYTES
from worker.settings import Settings, variable

IMAGE_BYTES = 1_000_000
WATCH_S = 45.0
ALLOCATOR_SHARE = 1.25  # what the allocator keeps of buffers that were freed


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """Bytes. `idle`: after a first batch, so that what decoding and gRPC set up once is in it; `bound`: what the
    settings allow above it.
    """

    image_bytes: int
    idle: int
    small_backlog_images: int
    small_backlog_peak: int
    backlog_images: int
    backlog_peak: int
    bound: int

    @property
    def within(self) -> bool:
        return self.backlog_peak - self.idle <= self.bound


def bound_bytes(settings: Settings) -> int:
    """Bytes above the idle worker that the settings allow."""
    # A response as it came, its records copied out of it, the next one on the wire, and one poll above the high mark.
    consumer = 5 * settings.kafka.fetch_max_bytes
    # Encoded images in the blocks of the processes, and what decoders take.
    decoder = settings.intake.batch_max_bytes + settings.decode.memory_bytes
    pixels = settings.intake.batch_max_items * CROP_BYTES * (settings.triton.calls_in_flight * 2 + 4)
    return int(ALLOCATOR_SHARE * (settings.flow.max_bytes + consumer + decoder + pixels))


def measure(settings: Settings, config: Path | None, *, images: int, report: Callable[[str], None]) -> MemoryReport:
    """Idle, then with a backlog that just fills the flow, then with `images` of 1 MB waiting; each worker is a new
    process.
    """
    small = 2 * settings.flow.max_bytes // IMAGE_BYTES
    producer = Producer(settings.kafka)
    try:
        idle = _peak(settings, config, producer, images=settings.intake.batch_max_items, image_bytes=0, watch_s=10.0)
        report(f"idle: {idle / 1e6:.0f} MB")
        small_peak = _peak(settings, config, producer, images=small, image_bytes=IMAGE_BYTES, watch_s=WATCH_S)
        report(f"{small} images of 1 MB waiting: {small_peak / 1e6:.0f} MB")
        peak = _peak(settings, config, producer, images=images, image_bytes=IMAGE_BYTES, watch_s=WATCH_S)
        report(f"{images} images of 1 MB waiting: {peak / 1e6:.0f} MB")
    finally:
        producer.close()
    return MemoryReport(IMAGE_BYTES, idle, small, small_peak, images, peak, bound_bytes(settings))


def _peak(
    settings: Settings, config: Path | None, producer: Producer, *, images: int, image_bytes: int, watch_s: float
) -> int:
    """Peak resident bytes of a worker that finds `images` waiting, over `watch_s` seconds."""
    pictures = load.sample_images()
    large = _large_image()
    with load.own_topics(settings) as environment:
        numbered = (
            (f"bench/{n}", load.unlike(large if n % 100 == 99 else pictures[n % len(pictures)], n, image_bytes))
            for n in range(images)
        )
        load.produce(producer, environment[variable("kafka", "incoming_topic")], numbered)
        with load.worker(environment, config) as worker:
            peak = 0
            deadline = time.monotonic() + watch_s
            while time.monotonic() < deadline:
                peak = max(peak, worker.memory_bytes())
                time.sleep(0.1)
            return peak


def _large_image() -> bytes:
    """25 megapixels in a few bytes, and 500 MB while they are decoded."""
    out = io.BytesIO()
    Image.new("RGB", (5_000, 5_000)).save(out, "WEBP", lossless=True)
    return out.getvalue()
