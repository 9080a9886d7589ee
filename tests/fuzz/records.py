"""Damaged record batches, hostile headers and references, through what reads them: the batch parser, the choice of the
image id, the reference, the headers of a rejection. Nothing may come out but records and rejections.
"""

import hashlib
import random
import struct
from typing import Any

from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.util import calc_crc32c

from worker.clients.kafka_batches import Place, batch_records, read_batch, split
from worker.contract import ImageReference, Record, resolve_image_id
from worker.errors import Rejected, RejectReason
from worker.rejections import rejection_headers

TOPIC_END = 1000
MAX_RECORD_BYTES = 100_000
_LENGTH_AT, _CRC_AT = 8, 17
_WORDS = (b"ce_id", b"content-type", b"traceparent", b"reject_reason", b"original_topic", b"\xff\xfe", b"", b"x" * 300)
_VALUES = (b"", b"\0", b"a" * 257, b"\xed\xa0\x80", "é\u202e".encode(), b"\x1b]0;x\x07", b"id", b"application/json")
_REFERENCE = b"application/vnd.assay.image-ref+json"
_URIS = (
    *(
        "s3://bucket/../other/key",
        "s3://b",
        "s3://",
        "https://[::1",
        "https://user:pass@host/x",
        "file:///../etc/passwd",
    ),
    *(
        "https://host:99999/",
        "http://169.254.169.254/",
        "//x",
        "\0",
        "https://hö.st/",
        "s3://b/k?versionId=%00",
        "x" * 5000,
    ),
)


def fuzz_records(count: int, seed: int = 0) -> dict[str, Any]:
    """How many came out readable, unreadable and rejected, and what did not come out at all."""
    told = {"records": 0, "readable": 0, "unreadable": 0, "rejected": 0}
    findings: list[dict[str, Any]] = []
    for number in range(count):
        source = random.Random(f"{seed}:{number}")
        data = _damaged(_batch(source), source)
        place = Place("images.incoming", 0, source.choice((0, 0, 5)), TOPIC_END)
        try:
            batches = [_records(part, place) for part in split(memoryview(data))]
            for records in batches:
                offsets = [record.offset for record in records]
                if offsets != sorted(set(offsets)):
                    findings.append({"record": number, "kind": f"offsets {offsets[:20]}"})
            for record in (record for records in batches for record in records):
                told["records"] += 1
                told["unreadable" if record.unreadable else "readable"] += 1
                told["rejected"] += _handled(record, source)
        except Exception as error:  # noqa: BLE001 - what the fuzzer is for
            findings.append({"record": number, "kind": f"{type(error).__name__}: {error}"[:300]})
    return {**told, "findings": findings}


def _records(part: memoryview, place: Place) -> list[Record]:
    return list(batch_records(read_batch(part, place), place, MAX_RECORD_BYTES))


def _batch(source: random.Random) -> bytes:
    codec = source.choice((0, 0, 0, 1, 2, 3, 4))
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=codec, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=1 << 20,
    )  # fmt: skip
    for offset in range(source.randint(1, 4)):
        builder.append(
            offset, 1_700_000_000_000, source.choice((None, b"key", b"\xff")), _value(source), _headers(source)
        )
    return bytes(builder.build())


def _value(source: random.Random) -> bytes | None:
    reference = f'{{"uri": "{source.choice(_URIS)}", "id": "{source.choice(("a", "", "x" * 300))}"}}'.encode()
    return source.choice((None, b"", b"\xff\xd8\xff", reference, b"{", b"[" * 2000, source.randbytes(300)))


def _headers(source: random.Random) -> list[tuple[str, bytes]]:
    names = [source.choice(_WORDS).decode("utf-8", "replace") for _ in range(source.randint(0, 5))]
    headers = [(name, source.choice(_VALUES)) for name in names]
    return [*headers, ("content-type", _REFERENCE)] if source.random() < 0.5 else headers


def _damaged(data: bytes, source: random.Random) -> bytes:
    """Bytes changed in place, with length and checksum that hold again in most."""
    out = bytearray(data)
    for _ in range(source.choice((0, 1, 1, 3, 10))):
        out[source.randrange(_LENGTH_AT if source.random() < 0.2 else _CRC_AT + 4, len(out))] = source.choice(
            (0, 1, 0x7F, 0x80, 0xFF, source.randrange(256))
        )
    if source.random() < 0.2:
        del out[source.randrange(12, len(out)) :]
    if source.random() < 0.8 and len(out) > _CRC_AT + 4:
        struct.pack_into(">i", out, _LENGTH_AT, len(out) - 12)
        struct.pack_into(">I", out, _CRC_AT, calc_crc32c(bytes(out[_CRC_AT + 4 :])))
    return bytes(out) * source.choice((1, 1, 2))


def _handled(record: Record, source: random.Random) -> int:
    """What intake does with it: 1 where it is rejected, with headers that can be written."""
    rejected = Rejected(RejectReason.CORRUPT, "x" * source.choice((1, 5000)), stage="decode")
    sha256 = hashlib.sha256(record.value or b"").hexdigest()
    image_id = None
    try:
        image_id = resolve_image_id(record, ("ce_id", "key", "sha256"), sha256)
        if record.content_type == _REFERENCE.decode():
            ImageReference.parse(record.value or b"")
    except Rejected as found:
        rejected = found
    for name, value in rejection_headers(
        record, rejected, image_id=image_id, sha256=sha256, worker_version="0", model_version=None
    ):
        name.encode("utf-8", "surrogateescape")
        assert value is None or isinstance(value, bytes)
    return int(rejected.stage == "intake")
