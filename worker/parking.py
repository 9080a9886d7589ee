"""Records that wait in `images.retry` for a storage: their headers, and back to what was received. Pure.

A parked record is the record as it came with these headers behind its own: when it is tried again (`retry_at`, ms),
how often it has been (`retry_attempt`), why it waits (`retry_detail`), since when (`retry_since`, ms), and where it
first came from (`original_*`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from worker.contract import Headers, Parked, Record, Source

RETRY_HEADERS = (
    "retry_at",
    "retry_attempt",
    "retry_detail",
    "retry_since",
    "original_topic",
    "original_partition",
    "original_offset",
    "original_timestamp",
)
_MAX_DETAIL_CHARS = 1024


@dataclass(frozen=True, slots=True)
class Parking:
    """The decision to park: until when, since when the record is tried, and why."""

    at_ms: int
    since_ms: int
    attempt: int
    detail: str


def parked_headers(record: Record, parking: Parking) -> Headers:
    """All received headers, and those that lead back."""
    source = record.source
    added = (
        parking.at_ms,
        parking.attempt,
        parking.detail[:_MAX_DETAIL_CHARS],
        parking.since_ms,
        source.topic,
        source.partition,
        source.offset,
        source.timestamp_ms,
    )
    ours = zip(RETRY_HEADERS, added, strict=True)
    return [*record.headers, *[(name, str(value).encode("utf-8", "replace")) for name, value in ours]]


def unparked(record: Record) -> Record:
    """A record of the retry topic as it was received; one that we have not written stays as it is."""
    received, ours = record.headers[: -len(RETRY_HEADERS)], record.headers[-len(RETRY_HEADERS) :]
    if tuple(name for name, _ in ours) != RETRY_HEADERS:
        return record
    try:
        at_ms, attempt, _, since_ms, topic, partition, offset, timestamp_ms = (
            (value or b"").decode("utf-8") for _, value in ours
        )
        source = Source(topic, int(partition), int(offset), int(timestamp_ms))
        parked = Parked(source, int(attempt), int(since_ms), int(at_ms))
    except ValueError:
        return record
    if source.partition < 0 or source.offset < 0 or parked.attempt < 1:
        return record
    return replace(record, headers=received, parked=parked)
