"""The short form of a policy: one head and two thresholds. Its text and its version are those of the first release."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from worker.contract import Score
from worker.policy.facts import Facts, short_number
from worker.policy.outcome import Outcome


class Thresholds(BaseModel):
    """score >= fake_from: fake; score < real_below: real; between the two: review."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="default", min_length=1, max_length=64)
    head: Literal["linear", "knn", "svm"] = "linear"
    fake_from: Score = 0.65
    real_below: Score = 0.35

    @model_validator(mode="after")
    def _in_order(self) -> Thresholds:
        if self.real_below > self.fake_from:
            raise ValueError(f"real_below={self.real_below} must not be above fake_from={self.fake_from}")
        return self

    @property
    def headers(self) -> frozenset[str]:
        """It names none."""
        return frozenset()

    def decide(self, facts: Facts) -> Outcome:
        """The decision, and the comparison that led to it in words an auditor can check."""
        score: float = getattr(facts.scores, self.head)
        said = f"{self.head} {short_number(score, (self.fake_from, self.real_below))}"
        if score >= self.fake_from:
            return Outcome("fake", (f"{said} >= {_exact(self.fake_from)}",))
        if score < self.real_below:
            return Outcome("real", (f"{said} < {_exact(self.real_below)}",))
        return Outcome("review", (f"{_exact(self.real_below)} <= {said} < {_exact(self.fake_from)}",))

    def summary(self) -> str:
        """In one line."""
        return f"fake from {self.fake_from:g}, real below {self.real_below:g} of {self.head}"

    def explain(self) -> list[tuple[str, str, str]]:
        """(which part, what it says, what it reads), as `policy check` shows it."""
        read = f"scores.{self.head}"
        return [
            ("fake", f"{read} >= {_exact(self.fake_from)}", read),
            ("real", f"{read} < {_exact(self.real_below)}", read),
            ("otherwise", "review", ""),
        ]

    def doubts(self) -> list[str]:
        """There is nothing to be doubted."""
        return []

    def meaning(self) -> dict[str, object]:
        """What its version hashes."""
        return self.model_dump()


def _exact(limit: float) -> str:
    """A threshold as the policy has it: 0.1234564 must not read as 0.123456 beside a score between the two."""
    short = f"{limit:g}"
    return short if float(short) == limit else repr(limit)
