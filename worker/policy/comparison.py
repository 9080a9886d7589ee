"""What a policy would have decided, against what was decided: counted by decision, format, size, source and header.

Pure: verdicts in, figures out. With labels, precision and recall of both.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from worker.contract import Decision, Verdict
from worker.policy.facts import Facts
from worker.policy.policy import Policy

SAMPLE = 20  # changed images that are named, for a look at them
OTHER_VALUES = "(other values)"
_MAX_VALUES = 50  # of one header that are told apart
_SIZES_PX = (128, 256, 512, 1024)


@dataclass(slots=True)
class _Part:
    judged: int = 0
    changes: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        return {"judged": self.judged, "changed": self.changes.total(), "changes": dict(self.changes)}


@dataclass(slots=True)
class _Quality:
    """Decisions on images whose truth is known: (is it fake?, decision) -> how many."""

    counts: Counter[tuple[bool, Decision]] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        found, wrong = self.counts[True, "fake"], self.counts[False, "fake"]
        fakes = sum(count for (is_fake, _), count in self.counts.items() if is_fake)
        reals = self.counts.total() - fakes
        review = self.counts[True, "review"] + self.counts[False, "review"]
        return {
            "precision": _share(found, found + wrong),
            "recall": _share(found, fakes),
            "false_positive_rate": _share(wrong, reals),
            "review": review,
        }


class Comparison:
    """`policy` against `against`, or against what the verdicts say where that is None."""

    def __init__(self, policy: Policy, against: Policy | None = None, labels: dict[str, bool] | None = None) -> None:
        self._policy = policy
        self._against = against
        self._labels = labels
        self._total = _Part()
        self._before: Counter[str] = Counter()
        self._after: Counter[str] = Counter()
        self._parts: defaultdict[str, defaultdict[str, _Part]] = defaultdict(lambda: defaultdict(_Part))
        self._quality = (_Quality(), _Quality())
        self._sample: list[dict[str, Any]] = []
        self._headers = sorted(policy.headers | (against.headers if against else frozenset()))
        self._without_header: Counter[str] = Counter()

    @property
    def judged(self) -> int:
        """Verdicts so far."""
        return self._total.judged

    def add(self, verdict: Verdict) -> None:
        """Decide one stored verdict anew."""
        facts = Facts.of(verdict)
        after = self._policy.decide(facts)
        before = self._against.decide(facts).decision if self._against else verdict.decision
        change = "" if before == after.decision else f"{before}->{after.decision}"
        self._before[before] += 1
        self._after[after.decision] += 1
        for part in (self._total, *self._parts_of(verdict)):
            part.judged += 1
            if change:
                part.changes[change] += 1
        self._without_header.update(name for name in self._headers if name not in verdict.headers)
        if change and len(self._sample) < SAMPLE:
            reasons = list(after.reasons)
            self._sample.append(
                {"image_id": verdict.image_id, "before": before, "after": after.decision, "reasons": reasons}
            )
        is_fake = self._labels.get(verdict.sha256) if self._labels else None
        if is_fake is not None:
            for quality, decision in zip(self._quality, (before, after.decision), strict=True):
                quality.counts[is_fake, decision] += 1

    def to_dict(self) -> dict[str, Any]:
        """The figures as `policy backtest --json` prints them."""
        document: dict[str, Any] = {
            "policy": self._policy.ref.model_dump(),
            "against": self._against.ref.model_dump() if self._against else None,
            **self._total.to_dict(),
            "decisions": {"before": dict(self._before), "after": dict(self._after)},
            "by": {
                name: {value: part.to_dict() for value, part in sorted(parts.items())}
                for name, parts in self._parts.items()
            },
            "sample": self._sample,
            "without_header": dict(self._without_header),
        }
        if self._labels is not None:
            before, after = self._quality
            document["labelled"] = {
                "judged": after.counts.total(),
                "before": before.to_dict(),
                "after": after.to_dict(),
            }
        return document

    def _parts_of(self, verdict: Verdict) -> Iterator[_Part]:
        image = verdict.image
        yield self._parts["format"][image.format]
        yield self._parts["size"][_size(min(image.width, image.height))]
        yield self._parts["source"][verdict.source]
        for name in self._headers:
            parts = self._parts[f"headers.{name}"]
            value = verdict.headers.get(name, "(absent)")
            yield parts[value if value in parts or len(parts) < _MAX_VALUES else OTHER_VALUES]


def _size(shorter_px: int) -> str:
    """A class of the shorter side, in the order of the text."""
    for low, high in zip((0, *_SIZES_PX), _SIZES_PX, strict=False):
        if shorter_px < high:
            return f"{low:04} to {high - 1:04} px"
    return f"{_SIZES_PX[-1]:04} px and more"


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
