"""The bytes of a judged image again: from the record that a verdict came from, or from where its reference led.

They are the same bytes or none: the hash of the verdict decides.
"""

from __future__ import annotations

import contextlib
import hashlib

from worker.clients.kafka_topics import read_one
from worker.contract import REFERENCE_CONTENT_TYPE, ImageReference, Origin
from worker.errors import AssayError
from worker.explain.gone import Gone
from worker.settings import Settings


def read_again(settings: Settings, origin: Origin | None, sha256: str) -> bytes:
    """The image's bytes. Raises Gone."""
    if origin is None:
        raise Gone("the verdict is of an earlier version and does not say where its image came from")
    place = f"{origin.topic}/{origin.partition}/{origin.offset}"
    try:
        record = read_one(settings.kafka, origin.topic, origin.partition, origin.offset)
    except AssayError as error:
        raise Gone(f"its record {place} cannot be read: {error}") from None
    if record is None or record.value is None:
        raise Gone(f"its record {place} is not in Kafka any more (retention of the topic)")
    data = record.value
    if record.content_type == REFERENCE_CONTENT_TYPE:
        data = _fetch(settings, data)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Gone(f"what is at {origin.uri or place} now are other bytes than those that were judged")
    return data


def _fetch(settings: Settings, value: bytes) -> bytes:
    from worker.clients.fetch import Fetcher  # noqa: PLC0415 - its clients take long to import, and few verdicts need it

    with contextlib.closing(Fetcher(settings.references, settings.limits)) as fetcher:
        try:
            return fetcher.fetch(ImageReference.parse(value))
        except AssayError as error:
            raise Gone(f"its storage does not give it again: {error}") from None
