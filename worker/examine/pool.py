"""The pool of child processes: hands images to them, watches them, and makes good for those that die.

A child that dies, or is ended because it took too long or too much memory, costs the images that it had in hand one
more try, each alone; an image that was alone is to blame, and is rejected after `max_attempts`. The rest of its job
goes to the next child at once. One thread calls all of this, and blocks in `wait` alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from worker.clients.shared_memory import Regions
from worker.crop import View
from worker.errors import Rejected, RejectReason
from worker.examine.batches import NO_PIXELS, Alone, Batch, Image
from worker.examine.block import MAX_IMAGES, State
from worker.examine.cores import usable_cores
from worker.examine.crew import Answer, Child, Crew, Death
from worker.examine.findings import Cost, Examined, Findings
from worker.examine.lanes import VERY_SLOW_MS, Shares, SlowLane
from worker.examine.wire import Failed, ForDevice, Garbled, Job, Route, TooDear, parse
from worker.settings import DecodeSettings, LimitSettings
from worker.telemetry.metrics import Metrics

T = TypeVar("T")
log = structlog.get_logger(__name__)
# A job for one child is as small as this where more children wait for work; smaller ones cost DALI more than they gain.
_SMALL_JOB = 4
_SPARE_BYTES = 8 << 20
# Batches under way here at once: one that children work on, one that they go on with.
BATCHES = 2
# Where none of these is, there is no CUDA device either; a driver would not be loaded to ask.
_DEVICE_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
_TOLD_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class _Work(Generic[T]):
    """What a child has been given. `ticket`: of the slow lane."""

    images: Sequence[Image[T]]
    route: Route
    ticket: int | None = None


class Pool(Generic[T]):
    """Child processes that examine images. Start it before anything that holds secrets in descriptors.

    `regions` hold the pixels of batches; there is one free for every batch that `may_submit` allows. `trust_path`:
    authorities whose signers' manifests count (provenance/trust.py). `view`: make this of images, and look at nothing
    else in them; None: the crop of `code`, and evidence.
    """

    def __init__(
        self,
        settings: DecodeSettings,
        limits: LimitSettings,
        regions: Regions,
        metrics: Metrics,
        trust_path: Path | None = None,
        view: View | None = None,
    ) -> None:
        self._settings = settings
        self._is_first = view is None
        self._regions = regions
        self._metrics = metrics
        self.shares = Shares.of(settings.processes or usable_cores(), settings.memory_bytes)
        self._capacity_bytes = max(limits.max_image_bytes, _SPARE_BYTES)
        config = {
            "capacity_bytes": self._capacity_bytes,
            "memory_bytes": settings.memory_bytes,
            "max_image_bytes": limits.max_image_bytes,
            "max_image_pixels": limits.max_image_pixels,
            "device": settings.device,
            "trust_path": str(trust_path.absolute()) if trust_path else None,
            "view": view.to_json() if view else None,
        }
        files = [region.file for region in regions.all]
        self._crew = Crew(config, files, timeout_ms=settings.timeout_ms)
        wanted = settings.device == "gpu" or (
            settings.device == "auto" and any(file.exists() for file in _DEVICE_FILES)
        )
        self._has_device = wanted and view is None
        self._batches: set[Batch[T]] = set()
        self._quick: deque[list[Image[T]]] = deque()
        self._for_device: deque[list[Image[T]]] = deque()
        self._slow: SlowLane[Image[T]] = SlowLane(self.shares.slow, self.shares.slow_bytes)
        self._alone: Alone[T] = Alone()
        self._told_at: dict[str, float] = {}
        self._tell_slow: Callable[[T], None] = lambda _token: None

    @property
    def may_submit(self) -> bool:
        return len(self._batches) < BATCHES and self._regions.free > 0

    def submit(self, batch: Sequence[tuple[T, bytes]]) -> None:
        """Examine these images; as many as a region holds at most. Each is put into a child's block when it is next."""
        made = Batch(batch, self._regions.take())
        self._batches.add(made)
        size = max(_SMALL_JOB, -(-len(batch) // self.shares.quick))
        self._quick.extend(self._jobs(made.images, size))
        self._dispatch()

    def tell_slow(self, told: Callable[[T], None]) -> None:
        """`told` hears of each image that leaves its batch for the slow lane."""
        self._tell_slow = told

    def wait(self, timeout_s: float) -> list[Examined[T]]:
        """What is done, something where it comes within `timeout_s`. Raises SettingsError without the GPU asked for."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._dispatch()
            done = self._collect()
            left_s = deadline - time.monotonic()
            if done or left_s <= 0:
                return done
            events, woken = self._crew.wait(left_s)
            for event in events:
                if isinstance(event, Answer):
                    self._answered(event)
                else:
                    self._ended(event.child, event.death)
            if woken:
                self._dispatch()
                return self._collect()

    def wake(self) -> None:
        """End a `wait`; any thread may call it."""
        self._crew.wake()

    def close(self) -> None:
        """End the processes."""
        self._crew.close()

    @property
    def decoder(self) -> str:
        """What decodes most images: `gpu` or `cpu` is DALI, `pillow` is without it."""
        return "gpu" if self._crew.is_ready("device") else self._crew.decoder

    @property
    def pids(self) -> list[int]:
        """Of the processes here, for who measures them."""
        return self._crew.pids

    @property
    def trouble(self) -> str:
        """Why nothing can be examined; empty while something can, or could a moment ago. Any thread may ask."""
        return self._crew.trouble

    def _jobs(self, images: Sequence[Image[T]], most: int) -> Iterator[list[Image[T]]]:
        """Runs of neighbouring rows that fit a block; each image that must be alone is one."""
        job: list[Image[T]] = []
        size_bytes = 0
        for image in images:
            size_bytes += len(image.data)
            apart = job and (
                image.alone or job[-1].alone or image.row != job[-1].row + 1 or image.batch is not job[-1].batch
            )
            if apart or len(job) >= min(most, MAX_IMAGES) or (job and size_bytes > self._capacity_bytes):
                yield job
                job, size_bytes = [], len(image.data)
            job.append(image)
        if job:
            yield job

    def _dispatch(self) -> None:
        """Keep the children at their number, and give each that is idle what is next for it."""
        crew = self._crew
        crew.keep("quick", self.shares.quick)
        crew.keep("slow", self._slow.wants_children)
        if self._has_device and not crew.device_missing:
            crew.keep("device", 1)
        if not crew.is_ready("device"):
            while self._for_device:
                self._again(self._for_device.pop())
        while self._for_device and (child := crew.idle("device")):
            self._give(child, _Work(self._for_device.popleft(), "device"), most=None)
        while self._quick and (child := crew.idle("quick")):
            images = self._quick.popleft()
            route = images[0].route if images[0].route != "here" or not crew.is_ready("device") else "apart"
            self._give(child, _Work(images, route), most=self.shares.quick_most)
        while (child := crew.idle("slow")) and (started := self._slow.start()):
            ticket, image = started
            self._give(child, _Work([image], image.route, ticket), most=None)
        if self._is_first:
            self._metrics.slow_images.set(len(self._slow))

    def _give(self, child: Child, work: _Work[T], *, most: Cost | None) -> None:
        images = work.images
        batch = images[0].batch
        job = Job(
            places=child.block.load([image.data for image in images]),
            region=batch.lease.index if batch else None,
            first_row=images[0].row if batch else 0,
            most=most,
            route=work.route,
            with_evidence=not any(image.attempts for image in images),
        )
        used_bytes = sum(len(image.data) for image in images)
        limit_ms = float(self._settings.timeout_ms) if child.lane == "slow" else None
        self._crew.give(child, work, job.to_json(), used_bytes, limit_ms)

    def _answered(self, answer: Answer) -> None:
        work: _Work[T] = answer.work
        try:
            outcomes = parse(answer.findings, [len(image.data) for image in work.images])
        except Garbled as error:
            answer.child.work = work
            self._crew.end(answer.child, Death("defect", f"its answer makes no sense ({error})"))
            return
        self._let_go(work)
        for_device = []
        for image, outcome in zip(work.images, outcomes, strict=True):
            match outcome:
                case Findings() | Rejected():
                    self._finish(image, outcome, answer.child)
                case TooDear(cost):
                    self._slow_down(image, cost)
                case ForDevice():
                    for_device.append(image)
                case Failed(cause, detail):
                    death = Death(cause, detail)
                    self._crew.end(answer.child, death)  # what it holds is not known any more
                    self._try_again(image, death, alone=len(work.images) == 1)
        if work.route == "device":  # it refuses them
            self._again(for_device, "pillow")
        else:
            self._for_device.extend(self._jobs(for_device, MAX_IMAGES))

    def _ended(self, child: Child, death: Death | None) -> None:
        """A child is gone: its images go to others."""
        work: _Work[T] | None = child.work
        if death is not None:
            self._tell(child, death)
        if work is None:
            return
        self._let_go(work)
        if child.lane == "device":
            self._again(work.images, "pillow")
        elif death is None:  # nothing that an image did
            self._again(work.images)
        else:
            states = child.block.states(len(work.images))
            blamed = [image for image, state in zip(work.images, states, strict=True) if state is State.IN_HAND]
            blamed = blamed or list(work.images)  # it died between two steps: what was done before may have caused it
            self._again([image for image in work.images if image not in blamed])
            slow = death.cause == "slow" and len(blamed) == 1
            for image in blamed:
                self._try_again(image, death, alone=slow or len(work.images) == 1)

    def _try_again(self, image: Image[T], death: Death, *, alone: bool) -> None:
        """A child has ended with this image in hand. `alone`: nothing else can be the cause."""
        if not alone:
            image.alone = True
            self._again([image])
            return
        if death.cause != "slow":
            image.attempts += 1
            self._metrics.decode_attempts.labels(outcome=death.cause).inc()
        if image.attempts >= self._settings.max_attempts:
            self._finish(image, self._rejection(image, death), None)
        else:
            known = image.cost or self.shares.quick_most
            self._slow_down(image, Cost(max(known.effort_ms, VERY_SLOW_MS + 1), known.decoded_bytes))

    def _again(self, images: Sequence[Image[T]], route: Route = "here") -> None:
        """Before all others: these have waited."""
        slow = [image for image in images if image.batch is None]
        for image in slow:
            self._slow.add(image, image.cost or self.shares.quick_most, time.monotonic() * 1000)
        quick = [image for image in images if image.batch is not None]
        for image in quick:
            image.route = route
        self._quick.extendleft(reversed(list(self._jobs(quick, MAX_IMAGES))))

    def _slow_down(self, image: Image[T], cost: Cost) -> None:
        """Into the slow lane with it; its batch does not wait."""
        if image.batch is not None:
            image.batch.leave(image)
            self._tell_slow(image.token)
        image.cost, image.alone, image.row = cost, True, 0
        self._slow.add(image, cost, time.monotonic() * 1000)

    def _finish(self, image: Image[T], outcome: Findings | Rejected, child: Child | None) -> None:
        if child is not None:
            self._metrics.decode_attempts.labels(outcome="ok").inc()
            if isinstance(outcome, Rejected):
                outcome.attempts = image.attempts + 1
        if image.batch is None:
            self._alone.settle(image, outcome, child.block.crop() if child else NO_PIXELS)
        else:
            image.batch.settle(image, outcome)

    def _rejection(self, image: Image[T], death: Death) -> Rejected:
        settings = self._settings
        detail = {
            "timeout": f"decoding takes longer than ASSAY_DECODE__TIMEOUT_MS={settings.timeout_ms}",
            "memory": f"decoding takes more memory than ASSAY_DECODE__MEMORY_BYTES={settings.memory_bytes}",
        }.get(death.cause, f"the decoder ends by {death.text}")
        detail += f", on this image alone, {image.attempts} times"
        return Rejected(RejectReason.CORRUPT, detail, stage="decode", attempts=image.attempts)

    def _let_go(self, work: _Work[T]) -> None:
        if work.ticket is not None:
            self._slow.ended(work.ticket)

    def _collect(self) -> list[Examined[T]]:
        done = [batch.examined() for batch in self._batches if batch.is_done]
        self._batches = {batch for batch in self._batches if not batch.is_done}
        if self._alone:
            done += self._alone.examined(self._regions.rows)
        return [examined for examined in done if examined.good or examined.bad]

    def _tell(self, child: Child, death: Death) -> None:
        if death.cause == "idle":
            return
        self._metrics.decoder_restarts.labels(cause=death.cause).inc()
        now = time.monotonic()
        if now - self._told_at.get(death.cause, float("-inf")) >= _TOLD_EVERY_S:  # a sender decides how often
            self._told_at[death.cause] = now
            log.warning(
                "decoder_ended",
                cause=death.cause,
                detail=death.text,
                pid=child.pid,
                images=len(child.work.images) if child.work else 0,
                action="its images are decoded again by another",
            )
