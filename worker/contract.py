"""The public contract as code: records, references, verdicts, rejections <-> headers, JSON, Redis hashes.

Pure: no I/O, no clock. The JSON Schemas under docs/ are generated from the models here (`python -m worker schema`).
"""

from __future__ import annotations

import json
import unicodedata
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from worker.errors import Rejected, RejectReason
from worker.evidence import Evidence
from worker.moments import Moment

VERDICT_TYPE = "assay.verdict.v1"
REFERENCE_CONTENT_TYPE = "application/vnd.assay.image-ref+json"
MAX_IMAGE_ID_BYTES = 256
_HEADER_OVERHEAD_BYTES = 160  # a tuple, a str and a bytes of CPython
_MAX_AHEAD_MS = 24 * 3600 * 1000.0  # clocks that are wrong
_MAX_AGE_MS = 10 * 365 * 24 * 3600 * 1000.0  # topics that are kept for ever; seconds read as milliseconds are 1970
HEADS = ("linear", "knn", "svm")

Headers = list[tuple[str, bytes | None]]
Sha256Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
VersionHex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
Score = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True, slots=True)
class Omitted:
    """A value that was passed over because it is too long to keep."""

    size_bytes: int
    sha256: str


class Partition(NamedTuple):
    """A partition of one of the topics that are consumed."""

    topic: str
    number: int


@dataclass(frozen=True, slots=True)
class Source:
    """Where a record first came from."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Parked:
    """What the retry topic says of a record: tried `attempt` times since `since_ms`, not again before `retry_at_ms`."""

    source: Source
    attempt: int
    since_ms: int
    retry_at_ms: int


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record as received. `timestamp_ms`: milliseconds since the epoch, of the record in Kafka; -1 is none.

    Header names that are no UTF-8 hold their bytes as surrogates. `unreadable`: why the record could not be read; the
    rest is what could be had. `omitted`: its value was too long to keep and is empty here.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    unreadable: str = ""
    omitted: Omitted | None = None
    parked: Parked | None = None

    @property
    def place(self) -> Partition:
        """The partition that it is read from."""
        return Partition(self.topic, self.partition)

    @property
    def source(self) -> Source:
        """Where it first came from: for one from the retry topic not that topic."""
        own = Source(self.topic, self.partition, self.offset, self.timestamp_ms)
        return self.parked.source if self.parked else own

    @property
    def size_bytes(self) -> int:
        """Key, value and headers: what the record holds in memory, with the objects that hold each header."""
        headers = sum(len(name) + len(value or b"") + _HEADER_OVERHEAD_BYTES for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers

    def age_ms(self, now_ms: float) -> float | None:
        """How long ago its timestamp was, never below 0; None where that cannot be its time (none, or in seconds)."""
        age_ms = now_ms - self.timestamp_ms
        if self.timestamp_ms < 0 or not -_MAX_AHEAD_MS <= age_ms <= _MAX_AGE_MS:
            return None
        return max(0.0, age_ms)

    def header(self, name: str) -> bytes | None:
        """The first header called `name`, compared without case, or None."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), None)

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; empty where there is none."""
        raw = self.header("content-type") or b""
        return raw.decode("latin-1").split(";")[0].strip().lower()


class ImageReference(BaseModel):
    """A claim check: where the image is, instead of the image."""

    model_config = ConfigDict(extra="ignore", title="Assay image reference")

    uri: str = Field(
        min_length=1, max_length=4096, description="s3://bucket/key?versionId=…, https://host/path or file:///path"
    )
    sha256: Annotated[str, StringConstraints(to_lower=True, pattern=r"^[0-9a-fA-F]{64}$")] | None = Field(
        default=None, description="SHA-256 of the image's bytes in hex; verified when given"
    )
    id: str | None = Field(default=None, description="image id; the header ce_id beats it")

    @classmethod
    def parse(cls, value: bytes) -> Self:
        """Raises Rejected(bad_reference) when `value` is not a reference."""
        try:
            return cls.model_validate_json(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            raise Rejected(RejectReason.BAD_REFERENCE, f"{where}: {first['msg']}", stage="intake") from None


class Scores(BaseModel):
    """P(fake) of each head, in [0, 1]."""

    model_config = ConfigDict(frozen=True)

    linear: Score
    knn: Score
    svm: Score


class ModelRef(BaseModel):
    """Which model gave the scores."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: VersionHex


class PolicyRef(BaseModel):
    """Which policy turned the scores into the decision."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: VersionHex


FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif", "heic", "jxl")  # the last two with the extra `heif`


class ImageInfo(BaseModel):
    """What the image's header says. `width` and `height` in pixels, `bytes` the encoded size."""

    model_config = ConfigDict(frozen=True)

    format: str
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    bytes: int = Field(ge=1)
    jpeg_quality: int | None = Field(
        default=None, ge=1, le=100, description="of a JPEG, estimated from its quantisation tables; else null"
    )
    frames: int | None = Field(default=None, ge=1, description="images in the file; null where that was not looked at")


class Timings(BaseModel):
    """Milliseconds. `queued`: Kafka timestamp to first touch, None where the record has no sensible timestamp; None too
    for a stage that a cache hit skipped.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    queued: float | None = Field(ge=0)
    decode: float | None
    infer: float | None
    total: float = Field(ge=0)


class Origin(BaseModel):
    """Where the image came from: its record, and the address behind it where the record was a reference."""

    model_config = ConfigDict(frozen=True)

    topic: str
    partition: int = Field(ge=0)
    offset: int = Field(ge=0)
    uri: str | None


class DetectorScores(BaseModel):
    """What a detector beside `code` said: P(fake) by head."""

    model_config = ConfigDict(frozen=True)

    version: VersionHex
    scores: dict[str, Score]


Decision = Literal["real", "fake", "review"]


def _with_schema_required(schema: dict[str, Any]) -> None:
    """`schema` has a default for us who write it; whoever reads a verdict finds it always."""
    schema["required"].insert(0, "schema")


class Verdict(BaseModel):
    """The verdict on one image, as published to `images.verdicts` and stored in Redis.

    The fields with a default are of 1.1: always written, absent in verdicts that an earlier version stored.
    """

    model_config = ConfigDict(title="Assay verdict", populate_by_name=True, json_schema_extra=_with_schema_required)

    schema_: Literal["assay.verdict/1"] = Field(default="assay.verdict/1", alias="schema")
    verdict_id: uuid.UUID = Field(description="UUID 5 of image id, sha256, model version and policy version")
    image_id: str = Field(min_length=1)
    sha256: Sha256Hex
    decision: Decision
    reasons: list[str]
    scores: Scores
    model: ModelRef
    policy: PolicyRef
    image: ImageInfo
    source: Literal["model", "cache"]
    decided_at: Moment
    timings_ms: Timings
    origin: Origin | None = None
    detectors: dict[str, DetectorScores] = Field(default={}, description="the detectors beside `code` that were asked")
    evidence: Evidence = Evidence()
    labels: list[str] = Field(default=[], description="labels of the rule that decided, such as not_applicable")
    headers: dict[str, str] = Field(default={}, description="of the record's headers those that the policy names")

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True)


def verdict_id(image_id: str, sha256: str, model_version: str, policy_version: str) -> uuid.UUID:
    """The deterministic id: the same image judged by the same model and policy is the same verdict."""
    return uuid.uuid5(uuid.NAMESPACE_URL, "assay:" + "\n".join([image_id, sha256, model_version, policy_version]))


def verdict_hash(verdict: Verdict, as_json: str) -> dict[str, str]:
    """The Redis hash `assay:verdict:<image_id>`; `as_json` is `verdict.to_json()`, made once by the caller."""
    return {
        "decision": verdict.decision,
        **{f"score_{head}": repr(getattr(verdict.scores, head)) for head in HEADS},
        "sha256": verdict.sha256,
        "model": verdict.model.version,
        "policy": verdict.policy.version,
        "source": verdict.source,
        "decided_at": verdict.decided_at,
        "verdict_id": str(verdict.verdict_id),
        "declared": verdict.evidence.declared or "",
        "json": as_json,
    }


def overtakes(stored_json: object, verdict: Verdict) -> bool:
    """Is the stored verdict on a later record of the same partition? What cannot be read is not."""
    try:
        stored = Verdict.model_validate_json(stored_json).origin if isinstance(stored_json, str) else None
    except ValidationError:
        return False
    own = verdict.origin
    if stored is None or own is None or (stored.topic, stored.partition) != (own.topic, own.partition):
        return False
    return stored.offset > own.offset


def was_replaced(stored_json: object, verdict: Verdict, recorded_at: str) -> bool:
    """Is the stored verdict on a later record, and made since ours was recorded? Then ours is judged again, or late.
    (Made before there was our record: the topic was made anew, and its offsets began again.)
    """
    if not overtakes(stored_json, verdict):
        return False
    return Verdict.model_validate_json(str(stored_json)).decided_at > recorded_at


def verdict_headers(verdict: Verdict, group_id: str, traceparent: bytes | None) -> Headers:
    """CloudEvents 1.0 headers (Kafka binary mode) of a verdict record."""
    headers: Headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", str(verdict.verdict_id).encode()),
        ("ce_source", f"assay/{group_id}".encode()),
        ("ce_type", VERDICT_TYPE.encode()),
        ("ce_time", verdict.decided_at.encode()),
        ("content-type", b"application/json"),
    ]
    if traceparent is not None:
        headers.append(("traceparent", traceparent))
    return headers


class InvalidImageId(ValueError):
    """The text is no image id; the message says why."""


def check_image_id(text: str) -> str:
    """`text` if it is an image id: 1 to 256 bytes of UTF-8 without control characters. Raises InvalidImageId."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if not 1 <= size <= MAX_IMAGE_ID_BYTES:
        raise InvalidImageId(f"an image id has 1 to {MAX_IMAGE_ID_BYTES} bytes, this one {size}")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        raise InvalidImageId("an image id has no control characters")
    return text


def resolve_image_id(record: Record, sources: Sequence[str], value_sha256: str, reference_id: str | None = None) -> str:
    """The image id by the order in `sources` (of `ce_id`, `key`, `sha256`); a reference's own id stands right behind
    `ce_id`.

    Raises Rejected(bad_image_id) for a source that is there and invalid; an empty one, or a key that is not UTF-8,
    leaves the choice to the next.
    """
    for source in sources:
        candidates: list[tuple[str, bytes | str | None]] = []
        if source == "ce_id":
            candidates = [("header ce_id", record.header("ce_id")), ("id of the reference", reference_id)]
        elif source == "key":
            candidates = [("record key", record.key)]
        elif source == "sha256":
            return value_sha256
        for name, raw in candidates:
            if not raw:
                continue
            try:
                return check_image_id(raw.decode("utf-8") if isinstance(raw, bytes) else raw)
            except UnicodeDecodeError:
                if source == "key":
                    continue
                raise Rejected(RejectReason.BAD_IMAGE_ID, f"{name} is not UTF-8", stage="intake") from None
            except InvalidImageId as error:
                raise Rejected(RejectReason.BAD_IMAGE_ID, f"{name}: {error}", stage="intake") from None
    return value_sha256


def cached_scores_json(scores: Scores) -> str:
    """A field of `assay:image:<sha256>`; Python's shortest float form, so that it reads back digit for digit."""
    return scores.model_dump_json()


def parse_cached_scores(text: str | bytes) -> Scores | None:
    """The scores of a cache entry, or None where the entry is not readable (then it counts as a miss)."""
    try:
        return Scores.model_validate_json(text)
    except ValidationError:
        return None


def parse_detector_scores(version: str, text: str) -> dict[str, float] | None:
    """The scores of a detector in a cache entry, by head, or None where they are not readable."""
    try:
        return DetectorScores.model_validate({"version": version, "scores": json.loads(text)}).scores
    except ValueError:  # a ValidationError is one
        return None


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a public model, as the outside reads it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema(mode="serialization")}


def dump_json(document: Any) -> str:
    """Pretty JSON with a closing newline: the form of every generated file."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
