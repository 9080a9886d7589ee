"""How far each score is from where the decision would be another, found by asking the policy: any policy, any rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from pydantic import BaseModel, ConfigDict, Field

from worker.contract import HEADS, Decision
from worker.evidence import Evidence
from worker.policy import Facts, Policy

_STEPS = 200
_PRECISION = 1e-7


class Margin(BaseModel):
    """One score, and the nearest value of it alone that would change the decision; null where none would."""

    model_config = ConfigDict(frozen=True)

    fact: str
    value: float
    turns_at: float | None = Field(default=None, description="nearest value of this score that changes the decision")
    into: Decision | None = Field(default=None, description="the decision from there on")


def margins(policy: Policy, facts: Facts) -> list[Margin]:
    """Of every score, the others held."""
    return [_margin(policy, facts, name, value, change) for name, value, change in _scores(facts)]


def without_evidence(policy: Policy, facts: Facts) -> Decision:
    """What would be decided if the file and its neighbours said nothing."""
    return policy.decide(replace(facts, evidence=Evidence())).decision


def _scores(facts: Facts) -> Iterator[tuple[str, float, Callable[[float], Facts]]]:
    """Name and value of each score, and the facts with another value of it."""
    for head in HEADS:
        yield f"scores.{head}", getattr(facts.scores, head), partial(_with_head, facts, head)
    for name, detector in facts.detectors.items():
        for head, score in detector.scores.items():
            yield f"detectors.{name}.{head}", score, partial(_with_detector, facts, name, head)


def _with_head(facts: Facts, head: str, value: float) -> Facts:
    return replace(facts, scores=facts.scores.model_copy(update={head: value}))


def _with_detector(facts: Facts, name: str, head: str, value: float) -> Facts:
    detector = facts.detectors[name]
    changed = detector.model_copy(update={"scores": {**detector.scores, head: value}})
    return replace(facts, detectors={**facts.detectors, name: changed})


def _margin(policy: Policy, facts: Facts, name: str, value: float, change: Callable[[float], Facts]) -> Margin:
    decided = policy.decide(facts).decision

    def differs(at: float) -> bool:
        return policy.decide(change(at)).decision != decided

    for other in _outwards(value):
        if differs(other):
            turns_at = _boundary(differs, value, other)
            return Margin(fact=name, value=value, turns_at=turns_at, into=policy.decide(change(turns_at)).decision)
    return Margin(fact=name, value=value)


def _outwards(value: float) -> Iterator[float]:
    """Values around this one, the nearest first, and the ends of the scale last."""
    for step in range(1, _STEPS + 1):
        yield from (other for other in (value + step / _STEPS, value - step / _STEPS) if 0 <= other <= 1)
    yield from (0.0, 1.0)


def _boundary(differs: Callable[[float], bool], inside: float, outside: float) -> float:
    """The first value towards `outside` at which the decision differs, to `_PRECISION`; a short one if there is one."""
    while abs(outside - inside) > _PRECISION:
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if differs(middle) else (middle, outside)
    for digits in range(1, 8):
        short = round(outside, digits)
        if abs(short - outside) <= 2 * _PRECISION and differs(short):
            return short
    return outside
