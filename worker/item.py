"""An image's life in types: what each stage knows of it, and hands on.

    Item ──▶ Referenced ──▶ Encoded ──▶ Decoded ──▶ Ended
      └───────────────────────┘ └───────────────────┘ a rejection, or scores from the cache

`Item` is the admitted record and stays the same object on its whole way; the others say what has been found out, and
are never changed. `Ended` is all that publishing needs: an outcome that is a judgement, a rejection, or to be parked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from worker.admission import Admission
from worker.contract import DetectorScores, ImageInfo, ImageReference, Record, Scores
from worker.crop import Lease, Pixels
from worker.errors import Rejected
from worker.evidence import Evidence
from worker.parking import Parking
from worker.telemetry.tracing import ItemTrace


@dataclass(slots=True, eq=False)
class Item:
    """One record on its way. `touched_at`: seconds of the monotonic clock, when the worker first had it.

    `queued_ms`: from its Kafka timestamp until then; None where the record has no sensible timestamp.
    """

    record: Record
    epoch: int
    touched_at: float
    queued_ms: float | None
    trace: ItemTrace = field(default_factory=lambda: ItemTrace(None))
    fetched_bytes: int = 0  # of the image that a reference led to, while they are held
    kept: bytes | None = None  # these, where a detector may want them after `code` has had them
    reference_uri: str | None = None  # where the reference led, of a record that is one
    aside: bool = False  # it is slow, or waits for one with its bytes that is, and keeps nobody else out

    def hold_fetched(self, admission: Admission, size_bytes: int) -> None:
        """Count the bytes that a reference led to; they are held beside the record's own."""
        self.fetched_bytes += size_bytes
        admission.hold_fetched(size_bytes)

    def release_fetched(self, admission: Admission) -> None:
        """The fetched image is no longer needed, but by detectors; the record itself stays, a rejection carries it."""
        if self.kept is not None:
            return
        size_bytes, self.fetched_bytes = self.fetched_bytes, 0
        admission.release_fetched(size_bytes)

    def release(self, admission: Admission) -> None:
        """It has ended: nothing of it is held any more."""
        self.kept = None
        self.release_fetched(admission)
        admission.release(self.record.size_bytes, aside=self.aside)

    def set_aside(self, admission: Admission) -> None:
        """From now on it keeps nobody out but by its bytes, where more of the kind may be aside."""
        if not self.aside:
            self.aside = admission.set_aside()

    @property
    def encoded(self) -> bytes:
        """The image's bytes, while a detector may still want them."""
        return self.kept if self.kept is not None else self.record.value or b""

    @property
    def origin(self) -> str:
        """Where it came from, for logs."""
        source = self.record.source
        return f"{source.topic}/{source.partition}/{source.offset}"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a reference leads: `host` is what is asked, `allowed` the entry of the settings that allows it."""

    host: str
    allowed: str


@dataclass(frozen=True, slots=True, eq=False)
class Referenced:
    """Has its id; its image is somewhere else."""

    item: Item
    image_id: str
    reference: ImageReference


@dataclass(frozen=True, slots=True, eq=False)
class Identified:
    """Whose image it is: id and SHA-256 (hex) of the encoded bytes."""

    item: Item
    image_id: str
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """An image as it was sent, or as a reference led to it.

    `known`: what the cache knows of it, where its evidence alone is to be read anew; such images are batched apart.
    """

    image: Identified
    data: bytes
    known: Judgement | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """An image whose pixels are row i of its batch; the encoded bytes are gone. `decode_ms`: waiting included."""

    image: Identified
    info: ImageInfo
    decode_ms: float
    evidence: Evidence = field(default_factory=Evidence)
    reader: str = ""


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """`pixels`: uint8 [N, 224, 224, 3] RGB, row i of image i; they lie in `lease`, where there is one."""

    images: list[Decoded]
    pixels: Pixels
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a verdict is made of. `decode_ms` and `infer_ms` are None where the stage was skipped.

    `reader`: the version of what read the evidence; it stands beside it in the cache. `detectors`: what those beside
    `code` said that were asked; `configured`: the version of each that might have been.
    """

    info: ImageInfo
    scores: Scores
    model_version: str
    from_cache: bool = False
    decode_ms: float | None = None
    infer_ms: float | None = None
    evidence: Evidence = field(default_factory=Evidence)
    reader: str = ""
    detectors: Mapping[str, DetectorScores] = field(default_factory=dict)
    configured: Mapping[str, str] = field(default_factory=dict)

    @property
    def versions(self) -> str:
        """All models that might have had a say, as the id of the verdict covers them: `<code>+<name>:<version>`."""
        others = {**self.configured, **{name: found.version for name, found in self.detectors.items()}}
        return "+".join([self.model_version, *(f"{name}:{version}" for name, version in sorted(others.items()))])

    def shared(self) -> Judgement:
        """The same, for an image with equal bytes that did none of the work."""
        return replace(self, from_cache=True, decode_ms=None, infer_ms=None)


Outcome = Judgement | Rejected | Parking


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    """An item with its outcome. A rejection may lack the id (it was bad) or the hash (the image was never had)."""

    item: Item
    image_id: str | None
    sha256: str | None
    outcome: Outcome

    @classmethod
    def of(cls, image: Identified, outcome: Outcome) -> Ended:
        """An identified image with its outcome."""
        return cls(image.item, image.image_id, image.sha256, outcome)
