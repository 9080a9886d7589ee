"""`bench policy`: what deciding costs, on policies of 1, 10 and 50 rules whose last one holds: the dearest case."""

from __future__ import annotations

import time
from typing import Any

from worker.contract import ImageInfo, Scores
from worker.evidence import Evidence
from worker.policy import Facts, Policy, Thresholds, parse_policy

DECISIONS = 2000
RULES = (1, 10, 50)
# As a policy has them: evidence, image, scores, a detector that may be absent, a header.
_CONDITIONS = (
    'evidence.declared == "generated"',
    "min(image.width, image.height) < 128 || image.jpeg_quality < 30",
    "scores.linear >= 0.999 || (has(detectors.clip) && detectors.clip.linear >= 0.97)",
    'has(headers.tenant) && headers.tenant == "kids" && scores.linear >= 0.8',
    "scores.knn >= 0.98 && scores.svm >= 0.98",
)
FACTS = Facts(
    Scores(linear=0.9712, knn=0.81, svm=0.66),
    ImageInfo(format="jpeg", width=640, height=480, bytes=48211, jpeg_quality=87, frames=1),
    Evidence(),
    headers={"tenant": "adults"},
)


def measure_policy(decisions: int = DECISIONS, rounds: int = 5) -> dict[str, Any]:
    """Microseconds of processor time a decision takes: the best of the rounds, by number of rules."""
    found = {"thresholds_us": _microseconds(Policy(Thresholds()), decisions, rounds)}
    return found | {f"rules_{count}_us": _microseconds(_policy(count), decisions, rounds) for count in RULES}


def _policy(count: int) -> Policy:
    conditions = [_CONDITIONS[number % len(_CONDITIONS)] for number in range(count - 1)]
    rules = [f"[[rules]]\nwhen = '{when}'\ndecision = \"review\"" for when in (*conditions, "scores.linear > 0.5")]
    return parse_policy("\n".join(rules), "bench policy")


def _microseconds(policy: Policy, decisions: int, rounds: int) -> float:
    policy.decide(FACTS)
    seconds = []
    for _ in range(rounds):
        started = time.thread_time()
        for _ in range(decisions):
            policy.decide(FACTS)
        seconds.append(time.thread_time() - started)
    return min(seconds) / decisions * 1e6
