"""`bench reviews`: does the console's queue cost the same with 100,000 images in it as with 1,000? What a person waits
for (a claim and a decision), what the page Queues asks, and Redis' memory for each image, on keys of their own.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from worker.console.board import Board
from worker.console.queues import Queues
from worker.contract import ImageInfo, ModelRef, Origin, PolicyRef, Scores, Timings, Verdict, verdict_id
from worker.evidence import Evidence
from worker.review import Review, ReviewedVerdict, review_id
from worker.settings import Settings

_ROUNDS = 200
_STAMP = "2026-11-21T12:00:00.000Z"


@dataclass(frozen=True, slots=True)
class Filled:
    """Milliseconds are medians by the wall clock; bytes are Redis' own count."""

    images: int
    claim_ms: float
    decide_ms: float
    queues_ms: float
    bytes_per_image: float


def measure_reviews(settings: Settings, *, images: int, report: Callable[[str], None]) -> dict[str, Any]:
    """With a hundredth of `images` queued, then with all. Raises Unavailable where Redis does not answer."""
    prefix = f"assay-bench-{uuid.uuid4().hex[:8]}:"
    own = settings.model_copy(
        update={
            "redis": settings.redis.model_copy(update={"key_prefix": prefix}),
            "console": settings.console.model_copy(update={"max_queued": images + 1, "second_share": 0.0}),
        }
    )
    board = Board(own, Queues.load(None, 0.0))
    try:
        board.caught_up(board.scripts.run_id())
        before, rows, queued = _used(board), [], 0
        for count in (max(1, images // 100), images):
            for number in range(queued, count):
                _add(board, number)
            queued = count
            rows.append(_measured(board, count, before))
            report(f"{count} queued: claim {rows[-1].claim_ms:.2f} ms, {rows[-1].bytes_per_image:.0f} bytes an image")
        few, many = rows
        return {
            "rounds": [{name: getattr(row, name) for name in Filled.__slots__} for row in rows],
            "claim_ratio": many.claim_ms / few.claim_ms,
            "decide_ratio": many.decide_ms / few.decide_ms,
            "queues_ratio": many.queues_ms / few.queues_ms,
        }
    finally:
        board.scripts.forget_all()
        board.scripts.close()


def _measured(board: Board, count: int, before: int) -> Filled:
    per_image = (_used(board) - before) / count
    claims, decisions, pages = [], [], []
    for number in range(min(_ROUNDS, count // 2)):
        who = f"person-{number % 5}"
        started = time.perf_counter()
        task = board.claim(who, board.queues.names, many=2, golden=False)[0]
        claims.append(time.perf_counter() - started)
        review = bench_review(task.verdict, review_id(task.id, task.token), who)
        started = time.perf_counter()
        answer = board.decide(review, task.id, task.token, 60_000)
        decisions.append(time.perf_counter() - started)
        assert answer == "ok", answer
        board.undo(who, str(review.review_id))
        held = board.task(task.id)
        assert held is not None
        board.give_back(who, task.id, held.token)
        started = time.perf_counter()
        board.states()
        pages.append(time.perf_counter() - started)
    claim, decide, queues = (1000 * statistics.median(times) for times in (claims, decisions, pages))
    return Filled(count, claim, decide, queues, per_image)


def _used(board: Board) -> int:
    return int(board.scripts.info("memory")["used_memory"])


def _add(board: Board, number: int) -> None:
    verdict = bench_verdict(number)
    place = board.queues.place(verdict, number)
    assert place is not None
    board.add(verdict, verdict.to_json(), place, number)
    board.join(str(verdict.verdict_id), hashlib.sha256(verdict.image_id.encode()).hexdigest()[:16])


def bench_verdict(number: int) -> Verdict:
    """As large as one of an ordinary upload."""
    sha256 = f"{number:064x}"
    image_id = f"bench/{os.getpid()}/{number}.jpg"
    return Verdict(
        verdict_id=verdict_id(image_id, sha256, "a" * 12, "b" * 12),
        image_id=image_id,
        sha256=sha256,
        decision="review",
        reasons=["review: between the limits"],
        scores=Scores(linear=0.61, knn=0.48, svm=0.55),
        model=ModelRef(name="code", version="a" * 12),
        policy=PolicyRef(name="default", version="b" * 12),
        image=ImageInfo(format="jpeg", width=4000, height=3000, bytes=2_000_000, jpeg_quality=85, frames=1),
        source="model",
        decided_at=_STAMP,
        timings_ms=Timings(queued=1.0, decode=1.0, infer=2.0, total=5.0),
        origin=Origin(topic="images.incoming", partition=number % 12, offset=number, uri=None),
        evidence=Evidence(),
    )


def bench_review(verdict: Verdict, identity: uuid.UUID, who: str) -> Review:
    """What `who` says of it."""
    return Review(
        review_id=identity,
        verdict_id=verdict.verdict_id,
        image_id=verdict.image_id,
        sha256=verdict.sha256,
        decision="fake",
        reason="artefacts",
        note="",
        reviewer=who,
        queue="review",
        verdict=ReviewedVerdict.of(verdict),
        decided_at=_STAMP,
        seconds=2.0,
    )
