"""What people decided, read back from `images.reviews`: the report on it, and the sums behind it. Pure but for
`read` and `waiting`.

Of several reviews of one verdict the latest counts: a lead's over those of two who differed, an appeal's over what was
before. Golden items decide nothing and are counted apart. Where a queue takes a share of the verdicts alone, each of
its images stands for 1 / share of them (`weight`).
"""

from __future__ import annotations

import contextlib
import math
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from worker.clients.kafka_topics import Reader
from worker.console.audit import Audit
from worker.console.board import Board
from worker.console.queues import Queues
from worker.review import Review
from worker.settings import KafkaSettings, Settings

_Z95 = 1.959964
_RESAMPLES = 1000
_LEADS = ("conflicts", "appeals")


def read(settings: KafkaSettings, since_ms: int | None) -> tuple[list[Review], int]:
    """The reviews on the topic, each once, oldest first; and how many records are none. Raises Unavailable."""
    found: dict[str, Review] = {}
    unreadable = 0
    with contextlib.closing(Reader(settings, settings.reviews_topic, since_ms)) as reader:
        for record in reader.until_end():
            try:
                review = Review.model_validate_json(record.value or b"")
            except ValidationError:
                unreadable += 1
                continue
            found[str(review.review_id)] = review
    return sorted(found.values(), key=lambda one: one.decided_at), unreadable


@dataclass
class Case:
    """One verdict and all that people said of it, oldest first, golden items left out."""

    reviews: list[Review] = field(default_factory=list)

    @property
    def final(self) -> Review:
        return self.reviews[-1]

    @property
    def first(self) -> Review:
        """By the queue that it came in through: its share and name say how it was drawn."""
        return self.reviews[0]

    @property
    def is_open(self) -> bool:
        """Two people differ and no lead has decided yet."""
        said = {one.decision for one in self.reviews}
        return len(said) > 1 and all(one.queue not in _LEADS for one in self.reviews)

    @property
    def weight(self) -> float:
        return 1 / self.first.share


def cases(reviews: Iterable[Review]) -> list[Case]:
    """By verdict, in the order of their first review."""
    found: dict[str, Case] = defaultdict(Case)
    for review in reviews:
        if not review.golden:
            found[str(review.verdict_id)].reviews.append(review)
    return list(found.values())


def interval(right: float, count: float) -> list[float] | None:
    """Wilson's interval of a share, 95 %. `count`: how many images stand behind it, weights taken into account."""
    if count <= 0:
        return None
    share, z2 = right / count, _Z95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return [round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4)]


def _share(found: Sequence[Case], decision: str) -> dict[str, Any]:
    """Which share of these people decided so, weighted; Kish's effective count of groups behind the interval."""
    weights = [one.weight for one in found]
    total = sum(weights)
    if not total:
        return {"share": None, "interval": None, "images": 0}
    share = sum(one.weight for one in found if one.final.decision == decision) / total
    # Near duplicates say the same: a group stands behind the interval as one image does.
    groups: dict[str, float] = defaultdict(float)
    for one, weight in zip(found, weights, strict=True):
        groups[str(one.final.group or one.final.verdict_id)] += weight
    effective = total**2 / sum(weight**2 for weight in groups.values())
    return {"share": round(share, 4), "interval": interval(share * effective, effective), "images": len(found)}


def kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa of two opinions; None where there are none, or chance alone makes them agree."""
    if not pairs:
        return None
    agree = sum(one == two for one, two in pairs) / len(pairs)
    # Who was first and who second is chance: both sides have the same distribution.
    both = Counter(decision for pair in pairs for decision in pair)
    chance = sum((count / (2 * len(pairs))) ** 2 for count in both.values())
    return None if chance >= 1 else (agree - chance) / (1 - chance)


def _kappa_interval(pairs: Sequence[tuple[str, str]]) -> list[float] | None:
    """Percentile bootstrap, 95 %; None below ten pairs."""
    if len(pairs) < 10:
        return None
    rng = random.Random(0)
    drawn = [kappa(rng.choices(pairs, k=len(pairs))) for _ in range(_RESAMPLES)]
    known = sorted(one for one in drawn if one is not None)
    if len(known) < _RESAMPLES // 2:
        return None
    return [round(known[int(len(known) * part)], 4) for part in (0.025, 0.975)]


def waiting(settings: Settings) -> dict[str, dict[str, Any]]:
    """Of each queue in the settings, and those of leads: images that are not done, and the age of the oldest, from its
    verdict on (None where there is none). Raises SettingsError and Unavailable (Redis).
    """
    console = settings.console
    board = Board(settings, Queues.load(console.queues_path, console.second_share))
    try:
        return {
            state.name: {
                "images": state.open,
                "oldest_seconds": (
                    None if state.oldest_ms is None else round(max(0.0, time.time() - state.oldest_ms / 1000), 1)
                ),
            }
            for state in board.states()
        }
    finally:
        board.scripts.close()


def audit(settings: Settings) -> Audit:
    """The console's, for what is taken out without it."""
    return Audit(Board(settings, Queues.load(None, settings.console.second_share)))


def report(reviews: Sequence[Review], unreadable: int = 0) -> dict[str, Any]:
    """Plain values, as `reviews report --json` prints them beside `waiting`."""
    found = [one for one in cases(reviews) if not one.is_open]
    decided = [one for one in found if one.final.decision != "unsure"]
    by_worker = {
        decision: [one for one in decided if one.final.verdict.decision == decision]
        for decision in ("fake", "real", "review")
    }
    pairs = [
        (one.reviews[0].decision, one.reviews[1].decision)
        for one in cases(reviews)
        if len(one.reviews) > 1 and one.reviews[1].opinion == 2 and not one.reviews[1].appeal
    ]
    measured = kappa(pairs)
    return {
        "reviews": len(reviews),
        "verdicts": len(found),
        "contested": sum(one.is_open for one in cases(reviews)),
        "unreadable": unreadable,
        "decisions": dict(Counter(one.final.decision for one in found)),
        "precision_of_fake": _share(by_worker["fake"], "fake"),
        "fakes_among_real": _share(by_worker["real"], "fake"),
        "fakes_among_review": _share(by_worker["review"], "fake"),
        "agreement": {
            "pairs": len(pairs),
            "kappa": None if measured is None else round(measured, 4),
            "interval": _kappa_interval(pairs),
        },
        "appeals": _appeals(found),
        "reviewers": _reviewers(reviews),
    }


def _appeals(found: Sequence[Case]) -> dict[str, int]:
    appealed = [one for one in found if one.final.appeal]
    changed = sum(one.final.decision != one.reviews[-2].decision for one in appealed if len(one.reviews) > 1)
    return {"decided": len(appealed), "changed": changed}


def _reviewers(reviews: Sequence[Review]) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for name in sorted({one.reviewer for one in reviews}):
        own = [one for one in reviews if one.reviewer == name]
        golden = [one for one in own if one.golden]
        right = sum(one.decision == one.truth for one in golden)
        rows[name] = {
            "reviews": len(own) - len(golden),
            "median_seconds": round(statistics.median(one.seconds for one in own), 2),
            "golden": len(golden),
            "golden_right": right,
            "golden_interval": interval(right, len(golden)),
        }
    return rows
