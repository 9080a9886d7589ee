"""How much of the model server's own speed reaches the user: the worker against Triton alone, in turn, on the same
images.

Both sides have as many calls in flight and as large batches as the settings say. Machines are shared and noisy, so each
round measures both and the ratio is the result, not the rates.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from worker.bench import load
from worker.bench.apart import examined_apart
from worker.clients.kafka_producer import Producer
from worker.clients.kafka_topics import Reader
from worker.clients.triton import Triton
from worker.crop import Pixels
from worker.errors import Unavailable
from worker.settings import Settings


@dataclass(frozen=True, slots=True)
class Round:
    """One pair of measurements, images per second; `worker_cpu_ms`: processor time of the worker per image."""

    triton_images_per_s: float
    worker_images_per_s: float
    worker_cpu_ms: float

    @property
    def ratio(self) -> float:
        return self.worker_images_per_s / self.triton_images_per_s


def measure(
    settings: Settings, config: Path | None, *, images: int, rounds: int, report: Callable[[str], None]
) -> list[Round]:
    """`rounds` pairs over `images` images each. Raises Unavailable where a server does not answer."""
    pictures = load.sample_images()
    pixels = _decoded(settings, pictures)
    triton = Triton(settings.triton, settings.intake.batch_max_items)
    producer = Producer(settings.kafka)
    found: list[Round] = []
    try:
        with load.own_topics(settings) as environment, load.worker(environment, config) as worker:
            _worker_rate(worker, producer, pictures, images=settings.intake.batch_max_items * 2, first=0)  # warm-up
            _triton_rate(triton, settings, pixels, settings.intake.batch_max_items * 2)
            for number in range(rounds):
                alone = _triton_rate(triton, settings, pixels, images)
                cpu_before = worker.cpu_s()
                through = _worker_rate(worker, producer, pictures, images=images, first=(number + 1) * 1_000_000)
                found.append(Round(alone, through, (worker.cpu_s() - cpu_before) * 1000 / images))
                report(
                    f"round {number + 1}: Triton alone {alone:.1f} images/s, worker {through:.1f} images/s, "
                    f"ratio {found[-1].ratio:.3f}"
                )
    finally:
        producer.close()
        triton.close()
    return found


def median_ratio(rounds: list[Round]) -> float:
    return statistics.median(one.ratio for one in rounds)


def _decoded(settings: Settings, pictures: list[bytes]) -> Pixels:
    """One batch of the same pictures as pixels."""
    rows = settings.intake.batch_max_items
    with examined_apart(settings.decode, settings.limits, rows) as apart:
        found = apart.examine([pictures[number % len(pictures)] for number in range(rows)])
    return np.stack([found[number][1] for number in range(rows)])


def _triton_rate(triton: Triton, settings: Settings, pixels: Pixels, images: int) -> float:
    """Images/s of Triton alone, as many calls in flight as the worker keeps."""
    calls = max(1, images // len(pixels))
    left = iter(range(calls))
    lock = threading.Lock()
    errors: list[Exception] = []
    times: list[float] = []

    def run() -> None:
        while True:
            with lock:
                if next(left, None) is None or errors:
                    return
            try:
                triton.infer(np.ascontiguousarray(pixels))
                times.extend([time.perf_counter()] * len(pixels))
            except Exception as error:  # noqa: BLE001  # raised again below
                errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(settings.triton.calls_in_flight)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return _rate(times)


def _worker_rate(
    worker: load.BenchWorker, producer: Producer, pictures: list[bytes], *, images: int, first: int
) -> float:
    """Images/s of the worker on images that no cache knows, by the moments of its decisions."""
    kafka = worker.settings.kafka
    reader = Reader(kafka, kafka.verdicts_topic, from_end=True)
    try:
        load.produce(
            producer,
            kafka.incoming_topic,
            (
                (f"bench/{number}", load.unlike(pictures[number % len(pictures)], number))
                for number in range(first, first + images)
            ),
        )
        times: list[float] = []
        deadline = time.monotonic() + 120
        while len(times) < images:
            for record in reader.poll(timeout_ms=200, max_records=500):
                times.append(datetime.fromisoformat(json.loads(record.value or b"")["decided_at"]).timestamp())
                deadline = time.monotonic() + 120
            if time.monotonic() > deadline:
                raise Unavailable("worker", f"{images - len(times)} verdicts have not come for 120 s")
    finally:
        reader.close()
    return _rate(times)


def _rate(times: list[float]) -> float:
    """Images/s from the first batch to the last, of the moments at which images were done.

    The same estimate for both sides: a batch that is half done when the first one falls counts for neither or for both.
    """
    times = sorted(times)
    at_first = sum(
        1 for moment in times if moment - times[0] < 0.02
    )  # the batch that falls first is where the clock starts
    return (len(times) - at_first) / max(times[-1] - times[0], 1e-9)
