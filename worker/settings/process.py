"""The process itself: its HTTP port, its patience, its logs and traces, its life cycle, and the local stack."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from worker.settings.types import Group, Port, PositiveInt


class HttpSettings(Group):
    """Metrics and health."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: Port = Field(
        default=9464, description="Port of /metrics, /livez and /readyz; 0 takes a free one and logs it."
    )


class RetrySettings(Group):
    """How faults of a dependency are waited out: backoff with full jitter."""

    base_ms: PositiveInt = Field(default=50, description="First wait, before jitter.")
    max_ms: PositiveInt = Field(default=5_000, description="Longest wait.")
    breaker_failures: PositiveInt = Field(
        default=3, description="Failures in a row after which a dependency counts as away."
    )


class LogSettings(Group):
    """Logs, on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe event to show."
    )
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="`auto`: console on a terminal, JSON elsewhere."
    )


class TracingSettings(Group):
    """OpenTelemetry; the incoming trace context is continued without it."""

    enabled: bool = Field(
        default=False, description="Make spans (needs the extra `otel`); the exporter is set by the OTEL_* variables."
    )


class RunSettings(Group):
    """Life cycle of `run`."""

    startup_timeout_s: int = Field(
        default=600,
        ge=0,
        description="How long to wait for Kafka, Redis and Triton at start; then exit 3. 0 waits for ever.",
    )
    drain_timeout_s: int = Field(
        default=25, ge=1, description="How long SIGTERM lets work in flight finish; keep the grace period above it."
    )
    stall_timeout_s: int = Field(default=60, ge=5, description="/livez fails when the loop has not moved for so long.")


class StackSettings(Group):
    """The local stack of `stack` and `demo`."""

    dir: Path | None = Field(default=None, description="Run directory; `.assay/stack` beside the package when unset.")
