"""Rejections: what the headers of a rejected record say, and how they come off again."""

from __future__ import annotations

from collections.abc import Iterable

from worker.contract import Headers, Record
from worker.errors import Rejected

REJECTION_HEADERS = frozenset(
    {
        "reject_reason",
        "reject_stage",
        "reject_detail",
        "reject_attempts",
        "original_topic",
        "original_partition",
        "original_offset",
        "original_timestamp",
        "image_id",
        "sha256",
        "worker_version",
        "model_version",
    }
)
# Beside them where a rejection had to be made smaller: the size in bytes of what is missing, the number of headers.
OMISSION_HEADERS = frozenset({"value_omitted", "headers_omitted"})


def without_rejection_headers(headers: Iterable[tuple[str, bytes | None]]) -> Headers:
    """What the producer sent, without what a rejection added: what `replay` puts back.

    Ours stand behind `reject_reason`; a header before it that has one of our general names (`image_id`, `sha256`, …) is
    the producer's own and stays.
    """
    kept: Headers = []
    ours = False
    for name, value in headers:
        ours = ours or name == "reject_reason"
        if name not in REJECTION_HEADERS | OMISSION_HEADERS or not (ours or name.startswith("reject_")):
            kept.append((name, value))
    return kept


def rejection_header(record: Record, name: str) -> str:
    """What a rejection says under `name`; empty where it says nothing. Ours stand last: a producer may use such a name
    itself.
    """
    value = next((value for key, value in reversed(record.headers) if key == name), None)
    return (value or b"").decode("utf-8", "replace")


def rejection_headers(
    record: Record,
    rejected: Rejected,
    *,
    image_id: str | None,
    sha256: str | None,
    worker_version: str,
    model_version: str | None,
) -> Headers:
    """All received headers, with those of this rejection in place of an earlier one's."""
    added: dict[str, str | None] = {
        "reject_reason": rejected.reason.value,
        "reject_stage": rejected.stage,
        "reject_detail": rejected.detail[:1024],
        "reject_attempts": str(rejected.attempts),
        "original_topic": record.source.topic,
        "original_partition": str(record.source.partition),
        "original_offset": str(record.source.offset),
        "original_timestamp": str(record.source.timestamp_ms),
        "image_id": image_id,
        "sha256": sha256,
        "worker_version": worker_version,
        "model_version": model_version,
        "value_omitted": str(record.omitted.size_bytes) if record.omitted else None,
    }
    extra: Headers = [(name, value.encode("utf-8", "replace")) for name, value in added.items() if value is not None]
    return without_rejection_headers(record.headers) + extra
