"""What publishing tells: metrics, traces, times, the shadow policy and what is watched for drift."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.stages.test_publish import end, images, items, rejected, verdicts
from tests.twins import P1, Workbench, record, settings
from worker.clock import Clock
from worker.errors import RejectReason
from worker.evidence import Evidence, FileMetadata
from worker.item import Judgement
from worker.parking import Parking
from worker.telemetry.tracing import ItemTrace


def test_metrics_tell_what_ended() -> None:
    """Verdicts by decision and source, rejections by reason and stage, scores by head."""
    bench = Workbench()
    good, bad = items(bench, record(0), record(1))
    end(bench, [good, rejected(bad, RejectReason.TOO_LARGE, "intake")], ended=2)
    assert bench.metric("assay_verdicts_total", decision="real", source="model") == 1
    assert bench.metric("assay_rejections_total", reason="too_large", stage="intake") == 1
    assert bench.metric("assay_scores_count", head="knn") == 1
    assert bench.metric("assay_last_progress_timestamp_seconds") > 0


class Still(Clock):
    """A clock that stands."""

    def monotonic(self) -> float:
        return 100.0

    def time(self) -> float:
        return 1_795_262_500.0


def test_a_verdict_tells_how_long_the_image_was_on_its_way() -> None:
    """From Kafka's timestamp, or from when the worker had it; and Redis is told when Kafka recorded it, or, where it
    does not say, when it was judged.
    """
    bench, saved = Workbench(), []
    publish: Any = bench.driven("publish").stage
    publish._tools = replace(bench.tools, clock=Still())
    bench.store.save = lambda verdicts, images, late=(): saved.extend(verdicts)  # type: ignore[method-assign]
    at_ms = [1_795_262_400_000, -1]
    encoded = images(bench, *(replace(record(number), timestamp_ms=ms) for number, ms in enumerate(at_ms)))
    for one, queued_ms in zip(encoded, (2_000.0, None), strict=True):
        one.image.item.queued_ms, one.image.item.touched_at = queued_ms, 97.0
    end(bench, verdicts(encoded), ended=2)
    assert [one.verdict.timings_ms.total for one in saved] == [5_000.0, 3_000.0]
    for stage, count, took_s in (("queued", 1, 2.0), ("total", 2, 6.0)):
        assert bench.metric("assay_stage_seconds_count", stage=stage) == count
        assert bench.metric("assay_stage_seconds_sum", stage=stage) == took_s
    decided = datetime.fromisoformat(saved[0].verdict.decided_at)
    assert decided - datetime.fromisoformat(saved[0].recorded_at) == timedelta(seconds=100)
    assert saved[1].recorded_at == saved[1].verdict.decided_at


def test_each_round_is_measured_and_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage's own seconds, and one span with the traces of its images."""
    bench, traced = Workbench(), []

    @contextmanager
    def batch(stage: str, traces: Sequence[Any]) -> Iterator[None]:
        traced.append((stage, list(traces)))
        yield

    monkeypatch.setattr(bench.tools.tracing, "batch", batch)
    both = items(bench, record(0), record(1))
    end(bench, both, ended=2)
    assert traced == [("publish", [one.item.trace for one in both])]
    assert bench.metric("assay_stage_seconds_count", stage="publish") == 1
    assert 0 <= bench.metric("assay_stage_seconds_sum", stage="publish") < 300


def test_a_trace_ends_with_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of what was parked, and of what came too late."""
    bench, told = Workbench(), []
    monkeypatch.setattr(ItemTrace, "finish", lambda _self, outcome: told.append(outcome))
    good, bad, away, late = items(bench, record(0), record(1), record(2), record(0, partition=1))
    parked = replace(away, outcome=Parking(at_ms=2, since_ms=1, attempt=1, detail="s3 is away"))
    bench.tracker.revoke([P1])
    end(bench, [good, rejected(bad), parked, late], ended=4)
    assert told == ["verdict", "rejected", "parked", "stale"]


def test_metrics_tell_how_long_it_took_and_what_was_found() -> None:
    """Seconds by stage, of what was decoded and asked for this image; evidence by kind and value."""
    bench = Workbench()
    first, second = items(bench, record(0), record(1))
    assert isinstance(first.outcome, Judgement)
    evidence = Evidence(declared="generated", metadata=FileMetadata(tool="comfyui"))
    outcome = replace(first.outcome, decode_ms=250.0, infer_ms=4000.0, evidence=evidence)
    end(bench, [replace(first, outcome=outcome), second], ended=2)
    for stage, took_s in (("decode", 0.25), ("infer", 4.0)):
        assert bench.metric("assay_stage_seconds_sum", stage=stage) == took_s
        assert bench.metric("assay_stage_seconds_count", stage=stage) == 1
    for kind, value in (("declared", "generated"), ("tool", "comfyui")):
        assert bench.metric("assay_evidence_total", kind=kind, value=value) == 1


def test_what_the_shadow_policy_would_have_decided_is_counted(tmp_path: Path) -> None:
    """By both decisions, on all that the shadow names: the header of the record, too."""
    shadow = tmp_path / "shadow.toml"
    shadow.write_text("[[rules]]\nwhen = 'headers.tenant == \"kids\" && scores.linear < 0.05'\ndecision = 'fake'")
    bench = Workbench(settings(policy={"shadow_path": shadow}))
    kids, others = items(bench, record(0, headers=[("tenant", b"kids")]), record(1))
    end(bench, [kids, others], ended=2)
    for would_be, count in (("fake", 1), ("review", 1), ("real", 0)):
        assert bench.metric("assay_policy_shadow_decisions_total", decision="real", shadow=would_be) == count


def test_what_is_published_is_watched_for_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each verdict once."""
    bench, seen = Workbench(), []
    monkeypatch.setattr(bench.policies, "observe", seen.append)
    end(bench, items(bench, record(0), record(1)), ended=2)
    assert [verdict.image_id for verdict in seen] == ["a", "b"]
