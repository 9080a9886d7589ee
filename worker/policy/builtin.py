"""The policy where no file is set: what says itself that it was generated is fake; of the rest the thresholds decide.

No declaration makes anything real: metadata is free to write, and a signed photograph of a screen is a photograph.
"""

from __future__ import annotations

from worker.policy.facts import Facts
from worker.policy.outcome import Outcome
from worker.policy.thresholds import Thresholds

DECLARED = 'evidence.declared == "generated"'


class BuiltIn(Thresholds):
    """The thresholds' defaults behind one rule."""

    def decide(self, facts: Facts) -> Outcome:
        """As the thresholds, but for what declares itself generated."""
        return Outcome("fake", (DECLARED,)) if facts.evidence.declared == "generated" else super().decide(facts)

    def summary(self) -> str:
        """In one line."""
        return f"fake where {DECLARED}, else {super().summary()}"

    def explain(self) -> list[tuple[str, str, str]]:
        """(which part, what it says, what it reads), as `policy check` shows it."""
        return [("fake", DECLARED, "evidence.declared"), *super().explain()]

    def meaning(self) -> dict[str, object]:
        """What its version hashes."""
        return {**super().meaning(), "declared": "generated is fake"}
