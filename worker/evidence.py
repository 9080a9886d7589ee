"""What a file and its neighbours say about an image's origin, beside the scores: the `evidence` of a verdict.

Every field is always there, null where nothing was found, so that a rule may read any of them. `declared` follows from
the others by `declare`; which claim counts for what is said there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Declared = Literal["generated", "edited", "captured"]
C2paState = Literal["valid", "untrusted", "invalid"]
Watermark = Literal["stable-diffusion", "sdxl", "flux"]
Text = Annotated[str, Field(max_length=256)]

# IPTC's vocabulary of digital source types (cv.iptc.org/newscodes/digitalsourcetype), by its last path segment. Those
# of neither group say nothing that a decision could stand on: a drawing, a screen shot, a fractal.
GENERATED_TYPES = frozenset({"trainedAlgorithmicMedia"})
EDITED_TYPES = frozenset(
    {
        "compositeWithTrainedAlgorithmicMedia",
        "compositeSynthetic",
        "compositeCapture",
        "composite",
        "algorithmicallyEnhanced",
        "humanEdits",
        "minorHumanEdits",
    }
)
CAPTURED_TYPES = frozenset({"digitalCapture", "computationalCapture", "negativeFilm", "positiveFilm", "print"})
AIGC_GENERATED = "1"


class _Fact(BaseModel):
    # Whoever reads a verdict finds every field, although we need not name those that were not found.
    model_config = ConfigDict(frozen=True, json_schema_serialization_defaults_required=True)


class C2pa(_Fact):
    """The active C2PA manifest inside the file; a remote one is never fetched."""

    state: C2paState | None = Field(
        default=None,
        description="valid: sound, and its signer chains to the trust list; untrusted: sound, by a signer that nobody "
        "vouches for; invalid: the file or the manifest was changed, or the certificate had expired",
    )
    issuer: Text | None = Field(default=None, description="organisation in the certificate; proves nothing by itself")
    claim_generator: Text | None = Field(default=None, description="the software that wrote the manifest")
    source_type: Text | None = Field(default=None, description="IPTC digital source type of the manifest's actions")


class FileMetadata(_Fact):
    """Marks in EXIF, XMP and text chunks. Anybody can write or remove them."""

    tool: Text | None = Field(default=None, description="slug of the generator whose own fields the file has")
    source_type: Text | None = Field(default=None, description="IPTC digital source type in XMP")
    aigc: Text | None = Field(
        default=None, description="`Label` of an AIGC mark (GB 45438-2025): 1 generated, 2 possibly, 3 suspected"
    )


class Neighbour(_Fact):
    """The nearest embedding of one side of the 1-NN bank."""

    distance: float | None = Field(default=None, description="cosine distance, from 0 to 2")
    label: Text | None = Field(default=None, description="the source or generator it came from")


class Nearest(_Fact):
    """What the image resembles most among the embeddings that the 1-NN head compares with."""

    real: Neighbour = Neighbour()
    fake: Neighbour = Neighbour()


class Evidence(_Fact):
    """What the file itself and its neighbours say. No field of it is ever a reason to reject."""

    declared: Declared | None = Field(default=None, description="the strongest claim of the file about its origin")
    c2pa: C2pa = C2pa()
    metadata: FileMetadata = FileMetadata()
    watermark: Watermark | None = Field(
        default=None, description="an open watermark found in the pixels; none found says nothing"
    )
    nearest: Nearest = Nearest()


# Of most images; one object, so that it is known at a glance.
NOTHING = Evidence()


def declare(c2pa: C2pa, metadata: FileMetadata, watermark: Watermark | None) -> Declared | None:
    """The strongest claim, `generated` before `edited` before `captured`.

    A manifest counts only when valid. Metadata and watermarks, which anybody can write, count against the writer's
    interest alone: for `generated` and `edited`, never for `captured`.
    """
    signed = c2pa.source_type if c2pa.state == "valid" else None
    types = {signed, metadata.source_type}
    if types & GENERATED_TYPES or metadata.tool or watermark or metadata.aigc == AIGC_GENERATED:
        return "generated"
    if types & EDITED_TYPES:
        return "edited"
    return "captured" if signed in CAPTURED_TYPES else None


def found(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """(kind, value) of what was found, for counting: few values, whatever a file says."""
    facts = (
        ("declared", evidence.declared),
        ("c2pa", evidence.c2pa.state),
        ("tool", evidence.metadata.tool),
        ("aigc", evidence.metadata.aigc),
        ("watermark", evidence.watermark),
    )
    yield from ((kind, value) for kind, value in facts if value)
    if source_type := evidence.metadata.source_type:
        named = GENERATED_TYPES | EDITED_TYPES | CAPTURED_TYPES
        yield "source_type", source_type if source_type in named else "other"


def parse_cached_evidence(text: str, nearest: str | None) -> Evidence | None:
    """The evidence of a cache entry with the neighbours that one model found, or None where it is not readable."""
    try:
        found = Evidence.model_validate_json(text)
        neighbours = Nearest.model_validate_json(nearest) if nearest else Nearest()
    except ValidationError:
        return None
    return found.model_copy(update={"nearest": neighbours})
