"""Trace context: continued without OpenTelemetry, recorded with it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from worker.errors import SettingsError
from worker.settings import TracingSettings
from worker.telemetry.tracing import SpanContext, Tracing, continue_trace

INCOMING = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"garbage",
        INCOMING.upper(),
        INCOMING + b"-more",
        INCOMING + b"\n",
        b" " + INCOMING,
        b"ff" + INCOMING[2:],
        INCOMING.replace(b"4bf92f3577b34da6a3ce929d0e0e4736", b"0" * 32),
        INCOMING.replace(b"00f067aa0ba902b7", b"0" * 16),
    ],
)
def test_invalid_headers_are_dropped(header: bytes | None) -> None:
    """What the specification calls invalid is no trace."""
    assert SpanContext.parse(header) is None
    assert continue_trace(header) == (None, None)


def test_a_trace_is_continued() -> None:
    """Same trace and flags, a new span each time."""
    headers = {continue_trace(INCOMING)[0] for _ in range(10)}
    assert len(headers) == 10
    for header in headers:
        context = SpanContext.parse(header)
        assert context is not None
        assert (context.trace_id, context.flags) == (TRACE_ID, 1)
        assert context.span_id != 0x00F067AA0BA902B7


def test_a_later_version_is_read_as_this_one() -> None:
    """Unknown versions may carry more fields and flags; we pass on what version 00 knows."""
    header, _ = continue_trace(b"cc" + INCOMING[2:-2] + b"ff-what-the-future-brings")
    assert header is not None
    assert header.startswith(b"00-4bf92f3577b34da6a3ce929d0e0e4736-")
    assert header.endswith(b"-01")


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 1))
def test_round_trip(trace_id: int, span_id: int, flags: int) -> None:
    """A context survives its header."""
    context = SpanContext(trace_id, span_id, flags)
    assert SpanContext.parse(context.traceparent()) == context


@given(st.binary(max_size=80))
def test_any_bytes_parse_or_not(header: bytes) -> None:
    """No header makes the parser raise."""
    context = SpanContext.parse(header)
    assert context is None or context.trace_id


def test_disabled_records_nothing_and_imports_nothing() -> None:
    """Without the setting OpenTelemetry is not even loaded."""
    program = (
        "import sys; from worker.settings import TracingSettings; from worker.telemetry.tracing import Tracing\n"
        "t = Tracing(TracingSettings(), '1'); i = t.item(None); assert i.traceparent is None\n"
        "with t.batch('infer', [i]): pass\n"
        "i.finish('verdict'); t.close(); assert not any(m.startswith('opentelemetry') for m in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    return Tracing(TracingSettings(enabled=True), "1.2.3", SimpleSpanProcessor(exporter))


def test_spans_of_items_and_batches(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    """An item's span is the child of the incoming one and the parent named in the outgoing record; the batch links to
    its items.
    """
    items = [tracing.item(INCOMING), tracing.item(None), tracing.item(b"garbage")]
    with tracing.batch("infer", items):
        pass
    for item in items:
        item.finish("verdict")
    tracing.close()
    batch, *spans = exporter.get_finished_spans()
    assert batch.name == "assay.infer"
    assert batch.parent is None
    assert batch.attributes == {"assay.batch.items": 3}
    assert [link.context.span_id for link in batch.links] == [span.context.span_id for span in spans]
    first, *new = spans
    assert (first.context.trace_id, first.parent.span_id, first.parent.is_remote) == (
        TRACE_ID,
        0x00F067AA0BA902B7,
        True,
    )
    assert first.attributes == {"assay.outcome": "verdict"}
    assert first.resource.attributes["service.name"] == "assay-worker"
    assert len({span.context.trace_id for span in [first, *new, batch]}) == 4
    for item, span in zip(items, spans, strict=True):
        assert SpanContext.parse(item.traceparent) == SpanContext(span.context.trace_id, span.context.span_id, 1)


def test_an_unsampled_trace_stays_unsampled(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    """The producer's decision holds: nothing is recorded, the flag goes on."""
    item = tracing.item(INCOMING[:-2] + b"00")
    item.finish("verdict")
    assert exporter.get_finished_spans() == ()
    context = SpanContext.parse(item.traceparent)
    assert context is not None
    assert (context.trace_id, context.flags) == (TRACE_ID, 0)


def test_an_error_is_on_the_batch(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    """What goes wrong in a batch is seen on its span, and goes on."""
    with pytest.raises(ValueError, match="broken"), tracing.batch("decode", []):
        raise ValueError("broken")
    assert exporter.get_finished_spans()[0].status.is_ok is False


def test_an_unknown_exporter_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that no installed package answers to is named."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
    with pytest.raises(SettingsError, match="OTEL_TRACES_EXPORTER=carrier-pigeon"):
        Tracing(TracingSettings(enabled=True), "1")


def test_the_exporter_comes_from_the_environment() -> None:
    """OTEL_TRACES_EXPORTER names the exporter, and close() hands over what is waiting."""
    program = (
        "from worker.settings import TracingSettings; from worker.telemetry.tracing import Tracing\n"
        "t = Tracing(TracingSettings(enabled=True), '1'); t.item(None).finish('verdict'); t.close()"
    )
    environ = os.environ | {"OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "mine"}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True, env=environ
    )
    assert '"name": "assay.item"' in done.stdout
    assert '"service.name": "mine"' in done.stdout


def test_without_the_extra_the_start_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enabling tracing without OpenTelemetry names the variable and the command that installs it."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"ASSAY_TRACING__ENABLED=true.*assay-worker\[otel\]"):
        Tracing(TracingSettings(enabled=True), "1")


@pytest.mark.slow
def test_a_collector_that_hangs_does_not_hold_up_the_end() -> None:
    """`close` returns although the exporter does not: the grace period is for the images."""
    asked, release = threading.Event(), threading.Event()

    class Hanging(SimpleSpanProcessor):
        def shutdown(self) -> None:
            asked.set()
            release.wait()

    tracing = Tracing(TracingSettings(enabled=True), "0", Hanging(InMemorySpanExporter()))
    try:
        tracing.close()
        assert asked.is_set()
    finally:
        release.set()
