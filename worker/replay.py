"""`replay`: rejected records -> back to the incoming topic, once what was wrong has been mended.

Each record goes back once, however often it was rejected, with its own bytes, key and headers; ours are stripped.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from worker.clients.kafka_producer import Outgoing, Producer
from worker.clients.kafka_topics import Reader, publish
from worker.contract import Record
from worker.durations import parse_duration
from worker.errors import RejectReason, SettingsError
from worker.rejections import rejection_header, without_rejection_headers
from worker.settings import KafkaSettings


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rejected record. `origin` is where it first came from; `complete`: its value came along, so it may go back."""

    record: Record
    image_id: str
    reason: str
    detail: str
    origin: str
    complete: bool

    def described(self) -> dict[str, str]:
        """For a script: what it is and why it was rejected."""
        return {"image_id": self.image_id, "reason": self.reason, "detail": self.detail, "origin": self.origin}

    def on_one_line(self) -> str:
        """For a person; a terminal escapes it."""
        missing = "" if self.complete else "  (its bytes were too large for the topic: send them again)"
        return f"{self.reason:18} {self.image_id or self.origin}  {self.detail}{missing}"


def parse_since(text: str, now_s: float) -> int:
    """Milliseconds since the epoch of `2h` (ago) or an ISO 8601 time (UTC without a zone). Raises SettingsError."""
    with contextlib.suppress(ValueError):
        if not text.strip().isdigit():  # 20261121 is a date
            return max(0, int((now_s - parse_duration(text)) * 1000))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(
            [f"--since {text!r}: a time such as 2026-11-21T12:00:00Z or an age such as 90m, 2h, 3d is expected"]
        ) from None
    return max(0, int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000))


def check_reason(text: str | None) -> RejectReason | None:
    """Raises SettingsError for what is no reason."""
    try:
        return None if text is None else RejectReason(text)
    except ValueError:
        raise SettingsError(
            [f"--reason {text!r}: one of {', '.join(reason.value for reason in RejectReason)} is expected"]
        ) from None


def replay(
    settings: KafkaSettings, *, reason: RejectReason | None, since_ms: int | None, limit: int | None, dry_run: bool
) -> Iterator[Candidate]:
    """Each candidate, once it is back in the incoming topic (with `dry_run`: which would go).

    One whose bytes are not on the topic is told and stays. Raises Unavailable.
    """
    with contextlib.closing(Producer(settings)) as producer:
        for found in candidates(settings, reason=reason, since_ms=since_ms, limit=limit):
            if found.complete and not dry_run:
                publish(producer, [restored(found, settings.incoming_topic)])
            yield found


def candidates(
    settings: KafkaSettings, *, reason: RejectReason | None, since_ms: int | None, limit: int | None
) -> Iterator[Candidate]:
    """The rejected records that match, oldest first within a partition, each image once."""
    reader = Reader(settings, settings.rejected_topic, since_ms)
    seen: set[tuple[str, bytes]] = set()
    try:
        for record in reader.until_end():
            found = _candidate(record)
            if found is None or (reason is not None and found.reason != reason):
                continue
            identity = (found.image_id or found.origin, hashlib.sha256(record.value or b"").digest())
            if identity in seen:
                continue
            if limit is not None and len(seen) >= limit:
                return
            seen.add(identity)
            yield found
    finally:
        reader.close()


def _candidate(record: Record) -> Candidate | None:
    reason = rejection_header(record, "reject_reason")
    if not reason:
        return None
    origin = "/".join(rejection_header(record, f"original_{part}") for part in ("topic", "partition", "offset"))
    return Candidate(
        record,
        rejection_header(record, "image_id"),
        reason,
        rejection_header(record, "reject_detail"),
        origin,
        complete=not rejection_header(record, "value_omitted"),
    )


def restored(candidate: Candidate, topic: str) -> Outgoing:
    """The record as its producer had sent it."""
    record = candidate.record
    return Outgoing(topic, record.key, record.value, without_rejection_headers(record.headers))
