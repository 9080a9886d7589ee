"""W3C trace context: an incoming `traceparent` is continued into the verdict, with or without OpenTelemetry.

Without it (the default) nothing is recorded: the outgoing record has the same trace id and a span id of our own, an
invalid or missing one stays away. With `ASSAY_TRACING__ENABLED=true` (extra `otel`) each item has a span below the
incoming one and each batch a span with links to its items; the exporter is the one that the OTEL_* variables name, none
by default.

Use:  tracing = Tracing(settings.tracing, version); item = tracing.item(record.header("traceparent")); item.traceparent
      with tracing.batch("infer", items): …
      item.finish("verdict"); tracing.close()
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Self

from worker.errors import SettingsError
from worker.settings import TracingSettings, variable

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

# version, trace id, parent id, flags; a later version may append more fields (W3C Trace Context, section 3.2)
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 0x01
CLOSE_S = 2.0


@dataclass(frozen=True, slots=True)
class SpanContext:
    """`trace_id` 128 bits, `span_id` 64 bits, neither 0; `flags` 8 bits, of which version 00 knows `sampled` (1)."""

    trace_id: int
    span_id: int
    flags: int

    @classmethod
    def parse(cls, traceparent: bytes | None) -> Self | None:
        """The context in a `traceparent` header, or None where there is none or an invalid one."""
        match = _TRACEPARENT.fullmatch(traceparent or b"")
        if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5] is not None):
            return None
        trace_id, span_id = int(match[2], 16), int(match[3], 16)
        return cls(trace_id, span_id, int(match[4], 16)) if trace_id and span_id else None

    def traceparent(self) -> bytes:
        """The header's value, version 00: flags that this version does not know are not passed on."""
        return b"00-%032x-%016x-%02x" % (self.trace_id, self.span_id, self.flags & _SAMPLED)


def continue_trace(traceparent: bytes | None) -> tuple[bytes | None, SpanContext | None]:
    """(header of the outgoing record, its context): the same trace with a new span id, or (None, None) without a valid
    one.
    """
    incoming = SpanContext.parse(traceparent)
    if incoming is None:
        return None, None
    context = SpanContext(incoming.trace_id, secrets.randbits(64) or 1, incoming.flags)
    return context.traceparent(), context


@dataclass(slots=True)
class ItemTrace:
    """The trace of one item. `traceparent` is the header of the record it becomes, None where there is no trace."""

    traceparent: bytes | None
    _span: Span | None = None

    def finish(self, outcome: str) -> None:
        """The item has become a verdict, a rejection, or was dropped: `outcome` says which."""
        if self._span is not None:
            self._span.set_attribute("assay.outcome", outcome)
            self._span.end()


class Tracing:
    """Traces of one worker. `processor` takes the spans instead of what the OTEL_* variables name.

    Raises SettingsError when tracing is enabled and OpenTelemetry or the exporter named is not installed.
    """

    def __init__(self, settings: TracingSettings, version: str, processor: SpanProcessor | None = None) -> None:
        self._enabled = settings.enabled
        if not settings.enabled:
            return
        try:
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an optional extra
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - an optional extra
        except ImportError as error:
            name = variable("tracing", "enabled")
            raise SettingsError(
                [f"{name}=true: OpenTelemetry is not installed; run pip install 'assay-worker[otel]'"]
            ) from error
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over these.
        service = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "assay-worker"}
        self._provider = TracerProvider(
            resource=Resource.create({**service, "service.version": version}), shutdown_on_exit=False
        )
        if processor is None and (exporter := _exporter()) is not None:
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - an optional extra

            processor = BatchSpanProcessor(exporter)
        if processor is not None:
            self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("assay", version)

    def item(self, traceparent: bytes | None) -> ItemTrace:
        """Begin an item: below the incoming span; without one a new trace where tracing is enabled, else none."""
        if not self._enabled:
            return ItemTrace(continue_trace(traceparent)[0])
        from opentelemetry import context, trace  # noqa: PLC0415 - an optional extra

        parent = context.Context()
        if (incoming := SpanContext.parse(traceparent)) is not None:
            remote = trace.SpanContext(
                incoming.trace_id,
                incoming.span_id,
                is_remote=True,
                trace_flags=trace.TraceFlags(incoming.flags & _SAMPLED),
            )
            parent = trace.set_span_in_context(trace.NonRecordingSpan(remote), parent)
        span = self._tracer.start_span("assay.item", context=parent, kind=trace.SpanKind.CONSUMER)
        own = span.get_span_context()
        return ItemTrace(SpanContext(own.trace_id, own.span_id, int(own.trace_flags)).traceparent(), span)

    @contextmanager
    def batch(self, stage: str, items: Sequence[ItemTrace], elapsed_s: float = 0.0) -> Iterator[None]:
        """A span `assay.<stage>` over the block and what went before it for `elapsed_s`, linked to its items; an
        exception that leaves the block is recorded on it.
        """
        if not self._enabled:
            yield
            return
        from opentelemetry import context, trace  # noqa: PLC0415 - an optional extra

        links = [trace.Link(item._span.get_span_context()) for item in items if item._span is not None]  # noqa: SLF001 - its own class
        with self._tracer.start_as_current_span(
            f"assay.{stage}",
            context=context.Context(),
            links=links,
            attributes={"assay.batch.items": len(items)},
            start_time=time.time_ns() - int(elapsed_s * 1e9),
        ):
            yield

    def close(self) -> None:
        """Hand over what is not yet exported; a collector that does not answer is not waited for beyond CLOSE_S."""
        if self._enabled:
            closing = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
            closing.start()
            closing.join(CLOSE_S)


def _exporter() -> SpanExporter | None:
    """The exporter of OTEL_TRACES_EXPORTER; `otlp` where only an OTLP endpoint is set; None where neither is."""
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    name = os.environ.get("OTEL_TRACES_EXPORTER") or ("otlp" if endpoint else "none")
    if name == "none":
        return None
    name = "otlp_proto_grpc" if name == "otlp" else name
    found = next(iter(entry_points(group="opentelemetry_traces_exporter", name=name)), None)
    if found is None:
        expected = "expected none, console, otlp, or one from another package"
        raise SettingsError([f"OTEL_TRACES_EXPORTER={name}: no such exporter is installed; {expected}"])
    exporter: SpanExporter = found.load()()
    return exporter
