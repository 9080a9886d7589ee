"""The auditor finds what is planted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.audit import Sent, audit

SENT = [Sent(f"id/{number}", f"{number:064x}", 0.1 * number) for number in range(4)]


def verdict(number: int, **changes: Any) -> dict[str, Any]:
    one = SENT[number]
    whole = {
        "image_id": one.image_id,
        "sha256": one.sha256,
        "verdict_id": f"v{number}",
        "scores": {"linear": one.linear + 1e-5},
    }
    return whole | changes


GOOD = [verdict(number) for number in range(4)]
COMMITTED = {"p0": (2, 2), "p1": (2, 2)}


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    """A verdict that was published twice is still one verdict."""
    assert audit(SENT, [*GOOD, GOOD[1]], {}, COMMITTED) == []


@pytest.mark.parametrize(
    ("verdicts", "rejections", "committed", "what"),
    [
        (GOOD[1:], {}, COMMITTED, "lost: id/0"),
        ([*GOOD, verdict(2, verdict_id="other")], {}, COMMITTED, "doubled: id/2"),
        ([*GOOD[:3], verdict(3, scores={"linear": 0.31})], {}, COMMITTED, "wrong score: id/3"),
        ([*GOOD[:3], verdict(3, sha256="0" * 64)], {}, COMMITTED, "wrong bytes: id/3"),
        ([*GOOD, verdict(0, image_id="id/9")], {}, COMMITTED, "invented: id/9"),
        (GOOD[1:], {"id/0": "inference_failed"}, COMMITTED, "rejected: id/0 for inference_failed"),
        (GOOD, {"id/0": "corrupt"}, COMMITTED, "rejected: id/0"),
        (GOOD, {}, {"p0": (1, 2)}, "uncommitted: p0"),
    ],
)
def test_each_planted_fault_is_found(
    verdicts: list[dict[str, Any]], rejections: dict[str, str], committed: dict[str, tuple[int, int]], what: str
) -> None:
    """Alone, and named."""
    (found,) = audit(SENT, verdicts, rejections, committed)
    assert found.startswith(what)
