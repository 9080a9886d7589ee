"""Inference: versions that belong to their scores, guilty images found by halving, a sick model told from a bad
image.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.properties import given
from tests.twins import VERSION, TritonTwin, Workbench, record, settings, tensor, wait_for
from worker.clients.triton import InferenceFailed
from worker.contract import ImageInfo, Scores
from worker.errors import Rejected, Unavailable
from worker.item import Decoded, DecodedBatch, Judgement, Outcome
from worker.model import ModelWatch
from worker.stages.decide import to_scores
from worker.telemetry.metrics import Metrics


def batch(bench: Workbench, *reds: int) -> DecodedBatch:
    """Images as Decode hands them on, each of one red."""
    info = ImageInfo(format="png", width=224, height=224, bytes=1)
    images = bench.identified(*[record(offset) for offset in range(len(reds))])
    return DecodedBatch([Decoded(encoded.image, info, 1.5) for encoded in images], tensor(*reds))


def judge(bench: Workbench, *reds: int) -> list[Outcome]:
    """One batch through the stage; returns the outcomes in its order."""
    with bench.running("infer"):
        bench.queues.decoded.put(batch(bench, *reds), bench.stop)
        wait_for(lambda: len(bench.queues.ended) == 1, "the batch comes out")
    return [ended.outcome for ended in bench.published()]


def shown(outcomes: list[Outcome]) -> list[str]:
    return [
        outcome.reason.value if isinstance(outcome, Rejected) else f"{outcome.scores.linear:.2f}"
        for outcome in outcomes
    ]


@given(arrays.arrays(np.float32, 3, elements=st.floats(0, 1, width=32)))
def test_scores_are_the_shortest_decimals_of_the_model_s_floats(row: np.ndarray) -> None:
    """No false digits: each score reads back as the same float32, and is written as short as that allows."""
    scores = to_scores(row)
    values = [scores.linear, scores.knn, scores.svm]
    assert np.array_equal(np.array(values, np.float32), row)
    assert [repr(value) for value in values] == [repr(float(str(value))) for value in row]


def test_rounding_beyond_the_ends_is_cut() -> None:
    """A float32 sum may pass 1 by a bit; a probability may not."""
    assert to_scores(np.array([1.0000001, -1e-9, 0.5], np.float32)) == Scores(linear=1.0, knn=0.0, svm=0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 7.0, -0.5, 1.01])
def test_what_is_no_number_is_no_score(value: float) -> None:
    """NaN and infinities are refused, not cut to a probability."""
    with pytest.raises(ValueError, match="svm"):
        to_scores(np.array([0.5, 0.5, value], np.float32))


def test_a_batch_gets_scores_and_the_version_that_gave_them() -> None:
    """Row i belongs to item i."""
    bench = Workbench()
    outcomes = judge(bench, 0, 51, 255)
    assert shown(outcomes) == ["0.00", "0.20", "1.00"]
    for outcome in outcomes:
        assert isinstance(outcome, Judgement)
        assert outcome.model_version == VERSION
        assert (outcome.decode_ms, outcome.from_cache) == (1.5, False)
        assert outcome.infer_ms is not None
    assert bench.triton.batches == [[0, 51, 255]]


@pytest.mark.parametrize("guilty", [{0}, {3}, {7}, {2, 3}, {0, 7}, set(range(8))])
def test_halving_finds_the_guilty_images(guilty: set[int]) -> None:
    """Only the images that fail alone are rejected, each after its tries; all others get their own scores."""
    bench = Workbench(settings(triton={"max_attempts": 3}))
    bench.triton.poison = {100 + number for number in guilty}
    outcomes = judge(bench, *range(100, 108))
    expected = ["inference_failed" if number in guilty else f"{(100 + number) / 255:.2f}" for number in range(8)]
    assert shown(outcomes) == expected
    for number in guilty:
        rejected = outcomes[number]
        assert isinstance(rejected, Rejected)
        assert (rejected.attempts, rejected.stage) == (3, "infer")
        assert bench.triton.batches.count([100 + number]) == 3
    assert not bench.triton_server.is_away


def test_nan_scores_are_the_image_s_fault() -> None:
    """A score that is no number is handled like a call that fails: found by halving, rejected alone."""
    bench = Workbench(settings(triton={"max_attempts": 2}))
    bench.triton.nan = {9}
    assert shown(judge(bench, 10, 9, 20)) == ["0.04", "inference_failed", "0.08"]


def test_a_model_that_fails_on_everything_rejects_nothing() -> None:
    """The canary tells a sick model from a bad image: the batch waits until the model is well."""
    bench = Workbench()
    bench.triton.ill = True
    with bench.running("infer"):
        bench.queues.decoded.put(batch(bench, 10, 20), bench.stop)
        wait_for(lambda: bench.triton_server.is_away, "the breaker opens")
        assert len(bench.queues.ended) == 0
        bench.triton.ill = False
        wait_for(lambda: len(bench.queues.ended) == 1, "the batch comes out")
    assert shown([ended.outcome for ended in bench.published()]) == ["0.04", "0.08"]


def test_a_canary_scored_nan_is_a_sick_model() -> None:
    """A model that scores even a plain picture NaN is waited for."""
    bench = Workbench()
    bench.triton.nan = set(range(256))
    with bench.running("infer"):
        bench.queues.decoded.put(batch(bench, 10), bench.stop)
        wait_for(lambda: bench.triton_server.is_away, "the breaker opens")
        bench.triton.nan = set()
        wait_for(lambda: len(bench.queues.ended) == 1, "the batch comes out")
    assert shown([ended.outcome for ended in bench.published()]) == ["0.04"]


def test_a_reload_during_a_call_makes_the_batch_run_again() -> None:
    """Scores and version in a verdict belong together: what a reload fell into is inferred by the new version."""
    bench = Workbench()
    bench.triton.reload_to = "ba9876543210"
    (outcome,) = judge(bench, 51)
    assert bench.triton.batches == [[51], [51]]
    assert isinstance(outcome, Judgement)
    assert outcome.model_version == "ba9876543210"
    assert bench.metric("assay_model_info", name="code", version="ba9876543210") == 1


def watch(triton: TritonTwin) -> ModelWatch:
    return ModelWatch(triton, "code", Metrics())  # type: ignore[arg-type]


def test_the_watch_knows_no_version_before_it_asked() -> None:
    """Empty until the first refresh; a server that is away raises and leaves the last known version."""
    triton = TritonTwin()
    subject = watch(triton)
    assert subject.version == ""
    assert subject.refresh() == subject.version == VERSION
    triton.away = True
    with pytest.raises(Unavailable):
        subject.refresh()
    assert subject.version == VERSION


def test_idle_time_ends_with_a_success_only() -> None:
    """A failing call does not count as a sign of life; a good one does."""
    triton = TritonTwin()
    subject = watch(triton)
    assert subject.idle_s() == float("inf")
    triton.ill = True
    with pytest.raises(InferenceFailed):
        subject.infer(tensor(1))
    assert subject.idle_s() == float("inf")
    triton.ill = False
    subject.infer(tensor(1))
    assert subject.idle_s() < float("inf")
