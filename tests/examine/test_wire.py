"""What worker and child say to each other survives the way, and an answer of a child that was taken over does no
harm.
"""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.contract import ImageInfo
from worker.errors import Rejected, RejectReason
from worker.examine.findings import Cost, Findings
from worker.examine.wire import Failed, ForDevice, Garbled, Job, Outcome, TooDear, parse, to_json

INFO = ImageInfo(format="jpeg", width=640, height=480, bytes=1234, jpeg_quality=85, frames=1)


def test_a_job_survives_the_way() -> None:
    """With and without a bound on the cost."""
    for most in (None, Cost(40.0, 1 << 26)):
        job = Job([(0, 10), (10, 20)], 3, 7, most, "apart")
        assert Job.parse(job.to_json()) == Job([[0, 10], [10, 20]], 3, 7, most, "apart")  # type: ignore[list-item]


def test_outcomes_survive_the_way() -> None:
    """Each kind, in order."""
    rejected = Rejected(RejectReason.TOO_MANY_PIXELS, "too many", stage="intake")
    outcomes = [Findings(INFO), rejected, TooDear(Cost(99.5, 7)), ForDevice(), Failed("memory", "decoding")]
    found = parse(to_json(outcomes), [1234] * 5)
    assert found[0] == Findings(INFO)
    assert isinstance(found[1], Rejected)
    assert (found[1].reason, found[1].detail, found[1].stage) == (RejectReason.TOO_MANY_PIXELS, "too many", "intake")
    assert found[2:] == outcomes[2:]


def test_the_size_is_what_the_worker_knows() -> None:
    """A child's word on it does not count."""
    (found,) = parse(to_json([Findings(INFO)]), [99])
    assert isinstance(found, Findings) and found.info.bytes == 99


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"[1]",
        b"nonsense",
        b"[" * 100_000,
        b'[{"info": {"format": "jpeg", "width": 0, "height": 1}, "evidence": {}}]',
        b'[{"info": {"format": 7, "width": 1, "height": 1}, "evidence": {}}]',
        b'[{"reason": "because", "detail": "", "stage": "decode"}]',
        b'[{"cost": {"effort_ms": [], "decoded_bytes": 1}}]',
        b'{"0": {}}',
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(answer: bytes) -> None:
    """As one error, whatever it is."""
    with pytest.raises(Garbled):
        parse(answer, [1])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["info", "reason", "cost", "cause", "x"]), inner),
)


@given(st.lists(JSON, min_size=1, max_size=3))
def test_any_json_is_understood_or_refused(answer: list[Any]) -> None:
    """An outcome for each image, or Garbled: nothing else leaves the parser."""
    try:
        outcomes = parse(json.dumps(answer).encode(), [1] * len(answer))
    except Garbled:
        return
    assert [isinstance(outcome, get_args(Outcome)) for outcome in outcomes] == [True] * len(answer)


def test_details_are_bounded() -> None:
    """A child cannot fill the headers of a rejection."""
    answer = [{"reason": "corrupt", "detail": "x" * 100_000, "stage": "decode"}]
    (found,) = parse(json.dumps(answer).encode(), [1])
    assert isinstance(found, Rejected) and len(found.detail) == 500
