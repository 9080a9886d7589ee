"""A detector beside `code` is asked about the images that are referred to it.

    judged by code ──▶ Referral ──(when it holds)──▶ Consult ──view──▶ Score x n ──▶ the next Referral, or Publish
                          └──(else)──────────────────────────────────────────────────▶

Nobody who needs nothing more waits here. Consult looks into the cache and has the detector's view made by child
processes of its own; Score asks the server. A detector that is away is waited for by those referred to it alone. An
image that cannot be shown to it keeps the verdict of the others: its scores are then absent.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import structlog

from worker.clients.redis import Store
from worker.clients.triton import InferenceFailed
from worker.clock import Clock, StopSignal
from worker.contract import DetectorScores
from worker.crop import Lease, Pixels
from worker.detectors import Description, DetectorWatch, to_detector_scores
from worker.errors import AssayError, Unavailable
from worker.examine.findings import Examined, Examiner
from worker.item import Ended, Judgement
from worker.policy.expression import Expression, activation
from worker.policy.facts import Facts, shape_of
from worker.queues import Outlet, StageQueue
from worker.retry import Guarded
from worker.settings import Settings
from worker.stages.stage import Stage, Tools

log = structlog.get_logger(__name__)
FOLLOW_EVERY_S = 2.0


class ViewChanged(AssayError):
    """The server serves another view by now: the pixels are no longer what it wants to see."""


class When:
    """`ASSAY_DETECTORS__WHEN`: is an image to be shown to detectors? Without an expression all are."""

    def __init__(self, expression: Expression | None) -> None:
        self._expression = expression
        self._shape = shape_of(expression.reads) if expression else {}

    def holds(self, judgement: Judgement) -> bool:
        if self._expression is None:
            return True
        facts = Facts(judgement.scores, judgement.info, judgement.evidence)
        return self._expression.holds(activation(facts.as_names(self._shape)))


@dataclass(frozen=True, slots=True, eq=False)
class Referred:
    """An image that a detector is asked about, and since when (seconds of the monotonic clock)."""

    ended: Ended
    judgement: Judgement
    at: float


class Referral:
    """Takes ended items from any stage: judged images for which `when` holds go to the detector, all others beyond."""

    def __init__(
        self,
        watch: DetectorWatch,
        when: When,
        tools: Tools,
        *,
        inbox: StageQueue[list[Referred]],
        beyond: Outlet[list[Ended]],
    ) -> None:
        self._watch = watch
        self._when = when
        self._tools = tools
        self._inbox = inbox
        self._beyond = beyond

    def put(self, piece: list[Ended], stop: StopSignal) -> None:
        """Never blocks but where the next one does. Raises Stopping."""
        now, name = self._tools.clock.monotonic(), self._watch.name
        others: list[Ended] = []
        referred: list[Referred] = []
        for ended in piece:
            judgement = ended.outcome
            if not isinstance(judgement, Judgement):
                others.append(ended)
                continue
            judgement = replace(judgement, configured={**judgement.configured, name: self._watch.version})
            if self._when.holds(judgement):
                referred.append(Referred(ended, judgement, now))
            else:
                others.append(replace(ended, outcome=judgement))
        self._tools.metrics.detectors.images.labels(detector=name, outcome="spared").inc(
            sum(isinstance(ended.outcome, Judgement) for ended in others)
        )
        if others:
            self._beyond.put(others, stop)
        if referred:
            self._inbox.put(referred, stop)


@dataclass(frozen=True, slots=True)
class Shown:
    """`pixels`: the detector's view, uint8 [N, H, W, 3], row i of image i; made for what `description` says."""

    images: list[Referred]
    pixels: Pixels
    description: Description
    lease: Lease | None = None


class Count:
    """How many images are being looked at; several threads count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.images = 0

    def add(self, images: int) -> None:
        with self._lock:
            self.images += images


@dataclass(frozen=True, slots=True)
class Line:
    """What travels to, within and from one detector. `looked_at`: images from the making of their view to the score."""

    beyond: Outlet[list[Ended]]
    referred: StageQueue[list[Referred]]
    shown: StageQueue[Shown]
    looked_at: Count = field(default_factory=Count)

    @classmethod
    def on(cls, clock: Clock, beyond: Outlet[list[Ended]]) -> Line:
        """With empty queues."""
        return cls(beyond, StageQueue(clock=clock), StageQueue(capacity=1, clock=clock))


class Eyes(Protocol):
    """Who makes the view of one description: child processes, or a twin in tests."""

    @property
    def examiner(self) -> Examiner[Referred]: ...

    def close(self) -> None: ...


class Consult(Stage):
    """From referred images to pixels, or to what the cache knows. One thread; `open_eyes` is called in it."""

    def __init__(
        self,
        settings: Settings,
        tools: Tools,
        watch: DetectorWatch,
        store: Guarded[Store],
        open_eyes: Callable[[Description], Eyes],
        line: Line,
    ) -> None:
        self._intake = settings.intake
        self._caches = settings.cache.enabled
        self._tools = tools
        self._watch = watch
        self._store = store
        self._open_eyes = open_eyes
        self._line = line
        self._waiting: deque[Referred] = deque()
        self._follow_at = 0.0
        self._made_for: Description | None = None
        self._eyes: Eyes | None = None

    def step(self, wait_s: float) -> None:
        """Take what is referred, show what makes a batch, hand on what is ready."""
        self._follow()
        eyes = self._looking()
        while piece := self._line.referred.get(0):
            self._take(piece)
        wait_s = min(wait_s, self._submit(eyes))
        for examined in eyes.examiner.wait(wait_s):
            self._hand_on(examined)

    def _follow(self) -> None:
        """Another version is noticed also while nobody is asked; one that is away is told by those who wait for it."""
        now = self._tools.clock.monotonic()
        if now < self._follow_at:
            return
        self._follow_at = now + FOLLOW_EVERY_S
        up = self._tools.metrics.dependency_up.labels(dependency=f"detector {self._watch.name}")
        try:
            self._watch.refresh()
        except Unavailable:
            up.set(0)
        else:
            up.set(1)

    def _looking(self) -> Eyes:
        """Eyes for the view and batches that are served. Others are closed once what they had to make is made."""
        wanted = self._watch.description
        if self._eyes is None or not self._fits(wanted):
            if self._eyes is not None:
                if self._line.looked_at.images:
                    return self._eyes
                self._eyes.close()
            self._eyes = self._open_eyes(wanted)
            self._made_for = wanted
            self._line.referred.listen(self._eyes.examiner.wake)
        return self._eyes

    def _fits(self, wanted: Description) -> bool:
        """Are the eyes made for this view, large enough for its batches? Their memory holds what they were made for."""
        made_for = self._made_for
        if made_for is None or _differs(made_for, wanted):
            return False
        return min(self._intake.batch_max_items, wanted.batch_max_items) <= made_for.batch_max_items

    def _take(self, piece: Sequence[Referred]) -> None:
        """What the cache knows of goes on at once."""
        version, heads = self._watch.version, self._watch.description.heads
        known: list[dict[str, float] | None] = [None] * len(piece)
        if self._caches:
            hashes = [one.ended.sha256 or "" for one in piece]
            known = self._store.call(lambda store: store.detector_scores(hashes, version), self._tools.stop)
        cached: list[Ended] = []
        for one, scores in zip(piece, known, strict=True):
            if scores is None or {*scores} != {*heads}:
                self._waiting.append(one)
            else:
                found = DetectorScores(version=version, scores=scores)
                cached.append(_with(one, self._watch.name, found, fresh=False))
        if cached:
            self._count("cached", len(cached))
            self._line.beyond.put(cached, self._tools.stop)

    def _submit(self, eyes: Eyes) -> float:
        """Show batches that are full or have waited for long enough; how long until the next has, seconds."""
        wanted = self._watch.description
        most, served = min(self._intake.batch_max_items, wanted.batch_max_items), self._fits(wanted)
        while self._waiting and served:
            left_s = self._waiting[0].at + self._intake.batch_max_wait_ms / 1000 - self._tools.clock.monotonic()
            if len(self._waiting) < most and left_s > 0:
                return left_s
            if not eyes.examiner.may_submit:
                break
            batch = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            self._line.looked_at.add(len(batch))
            eyes.examiner.submit([(one, one.ended.item.encoded) for one in batch])
        return float("inf")

    def _hand_on(self, examined: Examined[Referred]) -> None:
        self._line.looked_at.add(-len(examined.bad))
        if examined.bad:
            for one, rejected in examined.bad:
                log.info(
                    "detector_cannot_see",
                    detector=self._watch.name,
                    image_id=one.ended.image_id,
                    detail=rejected.detail,
                    action="the verdict is given without it",
                )
            self._count("failed", len(examined.bad))
            without = [replace(one.ended, outcome=one.judgement) for one, _ in examined.bad]
            self._line.beyond.put(without, self._tools.stop)
        if examined.good:
            assert self._made_for is not None, "eyes were opened for a description"
            images = [one for one, _ in examined.good]
            shown = Shown(images, examined.pixels, self._made_for, examined.lease)
            self._line.shown.put(shown, self._tools.stop)

    def _count(self, outcome: str, images: int) -> None:
        self._tools.metrics.detectors.images.labels(detector=self._watch.name, outcome=outcome).inc(images)


class Score(Stage):
    """From a detector's view to its scores. Driven by `calls_in_flight` threads; each step is one batch."""

    def __init__(self, settings: Settings, tools: Tools, watch: Guarded[DetectorWatch], line: Line) -> None:
        self._max_attempts = settings.triton.max_attempts
        self._tools = tools
        self._watch = watch
        self._line = line

    def step(self, wait_s: float) -> None:
        """Score one batch."""
        shown = self._line.shown.get(wait_s)
        if shown is None:
            return
        name, metrics = self._watch.client.name, self._tools.metrics.detectors
        try:
            outcomes = self._score(shown.images, shown.pixels, shown.description)
        except ViewChanged:
            self._line.referred.put(shown.images, self._tools.stop)
            return
        finally:
            if shown.lease is not None:
                shown.lease.release()
            self._line.looked_at.add(-len(shown.images))
        now = self._tools.clock.monotonic()
        ended: list[Ended] = []
        for one, found in zip(shown.images, outcomes, strict=True):
            metrics.images.labels(detector=name, outcome="scored" if found else "failed").inc()
            metrics.seconds.labels(detector=name).observe(now - one.at)
            for head, score in found.scores.items() if found else ():
                metrics.scores.labels(detector=name, head=head).observe(score)
            ended.append(_with(one, name, found, fresh=True))
        self._line.beyond.put(ended, self._tools.stop)

    def _score(self, images: Sequence[Referred], pixels: Pixels, made_for: Description) -> list[DetectorScores | None]:
        """For each image what the detector says; None where it fails on it alone. Raises Stopping, ViewChanged."""
        failures = 0
        while True:
            try:
                served, rows = self._watch.call(
                    lambda watch: _by_one_version(watch, pixels, made_for), self._tools.stop
                )
                return [
                    DetectorScores(version=served.version, scores=to_detector_scores(served.heads, row)) for row in rows
                ]
            except (InferenceFailed, ValueError) as error:
                self._watch.call(_check_canary, self._tools.stop)
                if _differs(made_for, self._watch.client.description):
                    raise ViewChanged("while it was asked") from error
                if len(images) > 1:
                    half = len(images) // 2
                    return self._score(images[:half], pixels[:half], made_for) + self._score(
                        images[half:], pixels[half:], made_for
                    )
                failures += 1
                if failures >= self._max_attempts:
                    one, name = images[0].ended, self._watch.client.name
                    action = "the verdict is given without it"
                    log.warning(
                        "detector_failed", detector=name, image_id=one.image_id, error=str(error), action=action
                    )
                    return [None]


def _differs(one: Description, other: Description) -> bool:
    """Do the two want to see something else?"""
    return one.view != other.view


def _by_one_version(
    watch: DetectorWatch, pixels: Pixels, made_for: Description
) -> tuple[Description, npt.NDArray[np.float32]]:
    """Scores of `pixels`, and the description that held before and after the call."""
    while True:
        before = watch.description
        if _differs(made_for, before):
            raise ViewChanged("before it was asked")
        rows = watch.score(np.ascontiguousarray(pixels), len(before.heads))
        after = watch.refresh()
        if after == before:
            return after, rows


def _check_canary(watch: DetectorWatch) -> None:
    """Does it score a picture that is surely no reason to fail? Raises Unavailable where it does not."""
    served = watch.refresh()
    try:
        to_detector_scores(served.heads, watch.score(watch.canary(served), len(served.heads))[0])
    except (InferenceFailed, ValueError) as error:
        raise Unavailable(f"detector {watch.name}", f"it fails on a plain picture too: {error}") from error


def _with(one: Referred, name: str, found: DetectorScores | None, *, fresh: bool) -> Ended:
    """The image with what the detector said."""
    judgement = one.judgement
    if found is not None:
        cached = judgement.from_cache and not fresh
        judgement = replace(judgement, detectors={**judgement.detectors, name: found}, from_cache=cached)
    return replace(one.ended, outcome=judgement)
