"""What a policy says about one image."""

from __future__ import annotations

from typing import NamedTuple

from worker.contract import Decision


class Outcome(NamedTuple):
    """`reasons`: in words that an auditor can check; `labels`: of the rule that decided."""

    decision: Decision
    reasons: tuple[str, ...]
    labels: tuple[str, ...] = ()
