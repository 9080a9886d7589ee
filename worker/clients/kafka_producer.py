"""Producing through kafka-python: records go out together, are waited for, and each that its topic refuses has an end.

A rejection is the record as it came; where the topic refuses it as too large even compressed it goes without its
value, then without the received headers. What is refused for another reason, or cannot be reached, is for the caller to
try again. A producer that has failed is made anew: the idempotent one refuses everything after one such answer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog
from kafka import KafkaAdminClient, KafkaProducer, codec
from kafka.errors import (
    InvalidRecordError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
)
from kafka.serializer import Serializer

from worker.clients.kafka import connection_options, explain, missing_topic
from worker.contract import Headers
from worker.errors import Unavailable
from worker.settings import KafkaSettings

log = structlog.get_logger(__name__)
_NULL = object()  # a null value: `send` itself refuses one without a key
_ALONE_BYTES = 512 * 1024  # below every topic's usual limit (1 MiB); what is above it may cost the producer its state
_KEPT_KEY_BYTES = 1024
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_MISSING_S = 30.0  # so long a topic that is not there is not asked for again


class TopicMissing(KafkaTimeoutError):  # type: ignore[misc]
    """Brokers answer, and know no such topic."""


_ITS_OWN = (*_TOO_LARGE, TopicMissing)  # what says nothing of other records


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record to produce. A null header value becomes empty: kafka-python cannot write one.

    The last `own_headers` of its headers are ours and lead back to the record that it repeats; a record that has such
    headers may be made smaller, any other goes as it is. `instead`: what goes where its topic refuses this one.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    own_headers: int = 0
    instead: Outgoing | None = None

    @property
    def size_bytes(self) -> int:
        """What counts against limits, before compression, about."""
        return len(self.key or b"") + len(self.value or b"") + sum(len(n) + len(v or b"") for n, v in self.headers)

    def after(self, refusal: BaseException) -> Outgoing | None:
        """The form to try next, or None where there is none."""
        if self.instead is not None and isinstance(refusal, (*_TOO_LARGE, InvalidRecordError, TopicMissing)):
            return self.instead
        if not self.own_headers:
            return None
        received, ours = self.headers[: -self.own_headers], self.headers[-self.own_headers :]
        if isinstance(refusal, InvalidRecordError) and self.key is None:  # its topic is compacted, which takes a key
            origin = dict(ours)
            parts = (origin.get(f"original_{part}") or b"" for part in ("topic", "partition", "offset"))
            return replace(self, key=b"/".join(parts))
        if not isinstance(refusal, _TOO_LARGE):
            return None
        if self.value:
            ours = [*ours, ("value_omitted", str(len(self.value)).encode())]
            return replace(self, value=b"", headers=[*received, *ours], own_headers=len(ours))
        if received:
            ours = [*ours, ("headers_omitted", str(len(received)).encode())]
            key = self.key if len(self.key or b"") <= _KEPT_KEY_BYTES else None
            return replace(self, key=key, headers=ours, own_headers=len(ours))
        return None


class _HeaderName(str):
    """A name whose bytes are no UTF-8 (contract.Record): kafka-python encodes it, and gets the bytes as they came."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode(encoding, "surrogateescape" if errors == "strict" else errors)


class _NullAware(Serializer):  # type: ignore[misc]
    """Values are bytes already; our null becomes the protocol's."""

    def serialize(self, topic: str, headers: list[tuple[str, bytes]], data: Any) -> Any:  # noqa: ARG002  # their names
        return None if data is _NULL else data


class _Producer(KafkaProducer):  # type: ignore[misc]
    def __init__(self, **configs: Any) -> None:
        super().__init__(**configs)
        # As in kafka_fetcher.py: the option is taken and not handed on.
        self._metadata.config["allow_auto_create_topics"] = self.config["allow_auto_create_topics"]

    def _ensure_valid_record_size(self, size: int) -> None:
        """Never refuse by the size before compression: brokers count what arrives."""


class Producer:
    """Produces and waits for the acknowledgement of all in-sync replicas; a failed producer is made anew.

    Raises Unavailable where no broker answers.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: _Producer | None = None
        self._missing: dict[str, float] = {}  # topics that were not there, and until when that is believed
        self._connect()

    def _connect(self) -> _Producer:
        if self._producer is None:
            settings = self._settings
            try:
                self._producer = _Producer(
                    **connection_options(settings),
                    metrics_enabled=False,
                    value_serializer=_NullAware(),
                    acks="all",
                    enable_idempotence=True,
                    allow_auto_create_topics=False,
                    compression_type=None if settings.compression == "none" else settings.compression,
                    linger_ms=0,
                    batch_size=256 * 1024,
                    max_request_size=settings.max_request_bytes,
                    max_block_ms=5_000,
                    delivery_timeout_ms=settings.request_timeout_ms + 5_000,
                )
            except (KafkaError, OSError) as error:
                raise Unavailable("kafka", explain(settings, error)) from error
        return self._producer

    def produce(self, records: Sequence[Outgoing]) -> list[int]:
        """Send `records` and wait for them. Returns the indices of those that were NOT acknowledged.

        Raises Unavailable where none could be, or where a record is refused that cannot be made smaller.
        """
        small = [index for index, record in enumerate(records) if record.size_bytes <= _ALONE_BYTES]
        together = [index for index in small if records[index].instead is None]
        alone = [[index] for index, record in enumerate(records) if record.size_bytes > _ALONE_BYTES]
        # Those whose topic may be missing come last: they are waited for in vain.
        alone += [parked] if (parked := [index for index in small if records[index].instead is not None]) else []
        failed: list[int] = []
        error: BaseException | None = None
        for indices in [together, *alone] if together else alone:
            if error is not None and not isinstance(error, _ITS_OWN):  # nobody is there: the rest would wait in vain
                failed += indices
                continue
            for index, found in self._deliver({index: records[index] for index in indices}).items():
                failed.append(index)
                error = found
        if error is not None:
            detail = self._detail(error, [records[index] for index in failed])
            log.warning("produce_failed", failed=len(failed), of=len(records), error=detail)
            if len(failed) == len(records):
                raise Unavailable("kafka", detail) from error
        return sorted(failed)

    def _deliver(self, records: dict[int, Outgoing]) -> dict[int, BaseException]:
        """The errors of those that were not acknowledged in any form."""
        errors = self._send(records)
        for index in list(errors):
            record = records[index]
            if len(records) > 1 and record.after(errors[index]) is not None:
                # One refusal fails whatever is under way with it: only alone a record is known to be the cause.
                del errors[index]
                errors |= self._send({index: record})
            while index in errors and (smaller := record.after(errors[index])) is not None:
                log.warning(
                    "record_refused",
                    topic=record.topic,
                    bytes=record.size_bytes,
                    error=str(errors.pop(index)) or "too large",
                    action=f"it goes with {smaller.size_bytes} bytes, {smaller.headers[-1][0]}",
                )
                record = smaller
                errors |= self._send({index: record})
        return errors

    def _send(self, records: dict[int, Outgoing]) -> dict[int, BaseException]:
        errors: dict[int, BaseException] = {}
        futures = {}
        producer = self._connect()
        for index, record in records.items():
            if errors and not isinstance(next(reversed(errors.values())), _ITS_OWN):
                errors[index] = next(reversed(errors.values()))  # each would wait for metadata as long as the first
                continue
            if record.instead is not None and self._is_known_to_miss(record.topic):
                errors[index] = TopicMissing(missing_topic(record.topic))
                continue
            try:
                self._check_packed_size(record)
                futures[index] = producer.send(
                    record.topic,
                    value=_NULL if record.value is None else record.value,
                    key=record.key,
                    headers=[(_HeaderName(name), b"" if value is None else value) for name, value in record.headers],
                )
            except KafkaTimeoutError:  # it waits for the topic's partitions, and says so of neither
                errors[index] = self._told_apart(record, KafkaTimeoutError(missing_topic(record.topic)))
            except (KafkaError, OSError) as error:
                errors[index] = error
        refused_here = set(errors)
        deadline = time.monotonic() + (self._settings.request_timeout_ms + 5_000) / 1000
        for index, future in futures.items():
            try:
                future.get(timeout=max(0.001, deadline - time.monotonic()))
            except (KafkaError, OSError) as error:
                errors[index] = self._told_apart(records[index], error)
        if errors.keys() - refused_here or any(not isinstance(error, _ITS_OWN) for error in errors.values()):
            # An idempotent producer that gave a record up may refuse all later ones: begin with a new one.
            self._discard()
        return errors

    def _is_known_to_miss(self, topic: str) -> bool:
        return time.monotonic() < self._missing.get(topic, 0.0)

    def _told_apart(self, record: Outgoing, error: BaseException) -> BaseException:
        """`error`, or TopicMissing where the record has another place to go and brokers know no such topic."""
        if record.instead is None or isinstance(error, _ITS_OWN):
            return error
        if not self._is_known_to_miss(record.topic):
            try:
                admin = KafkaAdminClient(**connection_options(self._settings))
                try:
                    is_there = record.topic in admin.list_topics()
                finally:
                    admin.close()
            except (KafkaError, OSError):
                return error
            if is_there:
                return error
            self._missing[record.topic] = time.monotonic() + _MISSING_S
        return TopicMissing(missing_topic(record.topic))

    def _check_packed_size(self, record: Outgoing) -> None:
        """What is too large for the broker's socket ends the connection without an answer. Raises KafkaError."""
        limit = self._settings.max_request_bytes
        if record.size_bytes > limit and self._packed_bytes(record.value or b"") > limit:
            raise MessageSizeTooLargeError(f"ASSAY_KAFKA__MAX_REQUEST_BYTES={limit}")

    def _packed_bytes(self, value: bytes) -> int:
        name = self._settings.compression
        return len(value) if name == "none" else len(getattr(codec, f"{name}_encode")(value))

    def _detail(self, error: BaseException, failed: Sequence[Outgoing]) -> str:
        if not isinstance(error, _TOO_LARGE):
            return explain(self._settings, error)
        topics = ", ".join(sorted({record.topic for record in failed}))
        largest = max(record.size_bytes for record in failed)
        return f"{topics} refuses a record of {largest} bytes: raise the topic's max.message.bytes"

    def _discard(self) -> None:
        if self._producer is not None:
            producer, self._producer = self._producer, None
            with contextlib.suppress(KafkaError, OSError):
                producer.close(timeout=0)

    def close(self) -> None:
        if self._producer is not None:
            self._producer.close(timeout=1)  # what is not acknowledged by now is redelivered
