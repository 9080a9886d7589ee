"""`send`: files and folders -> images.incoming, and with `--wait` their verdicts as they arrive."""

from __future__ import annotations

import hashlib
import mimetypes
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from worker.clients.kafka_producer import Outgoing, Producer
from worker.clients.kafka_topics import Reader, publish
from worker.contract import InvalidImageId, Record, Verdict, check_image_id
from worker.errors import SettingsError, Unavailable
from worker.rejections import rejection_header
from worker.settings import KafkaSettings, Settings
from worker.stages.decide import timestamp

_BATCH = 32


@dataclass(frozen=True, slots=True)
class Source:
    """A file to send and the id it gets: its path relative to the folder that was named."""

    path: Path
    image_id: str

    @property
    def shown(self) -> str:
        """The path on one line, also where its name is not UTF-8 or has control characters."""
        text = os.fsencode(self.path).decode("utf-8", "replace")
        return text if text.isprintable() else repr(text)


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent. `error` says why a file was not."""

    image_id: str
    path: str
    sha256: str
    bytes: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an image: its verdict, or the reason and detail of its rejection."""

    image_id: str
    verdict: Verdict | None
    reject_reason: str | None = None
    reject_detail: str | None = None


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """The files at `paths`; of a folder all below it that are not hidden. Raises SettingsError for a path that leads
    nowhere.
    """
    sources: list[Source] = []
    problems: list[str] = []
    for path in paths:
        if path.is_dir():
            inside = [
                p
                for p in sorted(path.rglob("*"))
                if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts)
            ]
            if not inside:
                problems.append(f"{path}: no files in this folder")
            sources += [Source(p, p.relative_to(path).as_posix()) for p in inside]
        elif path.is_file():
            sources.append(Source(path, path.name))
        else:
            problems.append(f"{path}: no such file or folder")
    if problems:
        raise SettingsError(problems)
    return sources


def send(settings: KafkaSettings, producer: Producer, sources: Iterable[Source]) -> Iterator[Sent]:
    """Publish each file, and tell of it once the brokers have acknowledged it. Raises Unavailable where they do not."""
    batch: list[tuple[Sent, Outgoing]] = []
    for source in sources:
        try:
            check_image_id(source.image_id)
            data = source.path.read_bytes()
        except (InvalidImageId, OSError) as error:
            yield Sent(
                os.fsencode(source.image_id).decode("utf-8", "replace"), source.shown, "", 0, error=_reason(error)
            )
            continue
        sent = Sent(source.image_id, source.shown, hashlib.sha256(data).hexdigest(), len(data))
        if len(data) + 4096 > settings.max_request_bytes:
            limit = f"larger than ASSAY_KAFKA__MAX_REQUEST_BYTES={settings.max_request_bytes}; send a reference instead"
            yield Sent(sent.image_id, sent.path, sent.sha256, sent.bytes, error=limit)
            continue
        batch.append((sent, _outgoing(settings, source, data)))
        if len(batch) >= _BATCH or sum(len(out.value or b"") for _, out in batch) > settings.fetch_max_bytes:
            yield from _flush(producer, batch)
            batch = []
    yield from _flush(producer, batch)


def _reason(error: OSError | InvalidImageId) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _flush(producer: Producer, batch: Sequence[tuple[Sent, Outgoing]]) -> Iterator[Sent]:
    publish(producer, [outgoing for _, outgoing in batch])
    yield from (sent for sent, _ in batch)


def _outgoing(settings: KafkaSettings, source: Source, data: bytes) -> Outgoing:
    content_type = mimetypes.guess_type(source.path.name)[0] or "application/octet-stream"
    headers: list[tuple[str, bytes | None]] = [
        ("ce_specversion", b"1.0"),
        ("ce_id", source.image_id.encode()),
        ("ce_source", b"assay/send"),
        ("ce_type", b"assay.image.v1"),
        ("ce_time", timestamp(time.time()).encode()),
        ("content-type", content_type.encode()),
    ]
    return Outgoing(settings.incoming_topic, source.image_id.encode(), data, headers)


class Waiter:
    """Reads the verdicts and rejections that come after it was made."""

    def __init__(self, settings: Settings) -> None:
        self._readers = [
            Reader(settings.kafka, topic, from_end=True)
            for topic in (settings.kafka.verdicts_topic, settings.kafka.rejected_topic)
        ]

    def results(
        self, wanted: Iterable[Sent], *, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> Iterator[Result]:
        """A result for each of `wanted`, as they come. Raises Unavailable once none has come for `timeout_s`."""
        missing = {(sent.image_id, sent.sha256) for sent in wanted if sent.error is None}
        deadline = clock() + timeout_s
        while missing:
            for reader in self._readers:
                for record in reader.poll(timeout_ms=100):
                    found = _result(record)
                    if found is not None and found[0] in missing:
                        missing.remove(found[0])
                        deadline = clock() + timeout_s
                        yield found[1]
            if clock() > deadline:
                raise Unavailable(
                    "worker",
                    f"{len(missing)} images have no verdict for {timeout_s:.0f} s: is a worker running? "
                    "(python -m worker run)",
                )

    def close(self) -> None:
        for reader in self._readers:
            reader.close()


def _result(record: Record) -> tuple[tuple[str, str], Result] | None:
    """(id and hash, what became of it), or None for what is no verdict of ours: a tombstone, another program's."""
    reason = rejection_header(record, "reject_reason")
    if not reason:
        try:
            verdict = Verdict.model_validate_json(record.value or b"")
        except ValidationError:
            return None
        return (verdict.image_id, verdict.sha256), Result(verdict.image_id, verdict)
    image_id = rejection_header(record, "image_id")
    return (image_id, rejection_header(record, "sha256")), Result(
        image_id, None, reason, rejection_header(record, "reject_detail")
    )
