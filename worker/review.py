"""A review: what a person decided of a verdict, as it stands on `images.reviews` and in Redis. Pure: no I/O."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from worker.contract import Decision, Headers, ModelRef, PolicyRef, Scores, Sha256Hex, Verdict
from worker.moments import Moment

REVIEW_TYPE = "assay.review.v1"
MAX_NOTE_CHARACTERS = 2000
Judgement = Literal["real", "fake", "unsure"]


class ReviewedVerdict(BaseModel):
    """Of the verdict what its reviewer was shown."""

    model_config = ConfigDict(frozen=True)

    decision: Decision
    scores: Scores
    model: ModelRef
    policy: PolicyRef

    @classmethod
    def of(cls, verdict: Verdict) -> ReviewedVerdict:
        return cls(decision=verdict.decision, scores=verdict.scores, model=verdict.model, policy=verdict.policy)


def _with_schema_required(schema: dict[str, Any]) -> None:
    schema["required"].insert(0, "schema")


class Review(BaseModel):
    """One decision of one person on one verdict.

    Of a verdict with a second opinion there are two, of one that is contested a third by a lead, of an appeal one more:
    all are kept, the latest that is no golden item counts.
    """

    model_config = ConfigDict(title="Assay review", populate_by_name=True, json_schema_extra=_with_schema_required)

    schema_: Literal["assay.review/1"] = Field(default="assay.review/1", alias="schema")
    review_id: uuid.UUID
    verdict_id: uuid.UUID
    image_id: str = Field(min_length=1)
    sha256: Sha256Hex
    decision: Judgement
    reason: str | None = Field(description="a key of the settings' list, or null")
    note: str = Field(max_length=MAX_NOTE_CHARACTERS)
    reviewer: str = Field(min_length=1)
    queue: str
    verdict: ReviewedVerdict
    golden: bool = Field(default=False, description="a hidden test whose truth was known: it decides nothing")
    truth: Literal["real", "fake"] | None = Field(default=None, description="of a golden item, else null")
    appeal: bool = Field(default=False, description="overrules what was decided before")
    opinion: int = Field(default=1, ge=1, description="1 for the first on this verdict, 2 for the second, …")
    share: float = Field(
        default=1.0, gt=0, le=1, description="share of the verdicts like this one that came into the queue"
    )
    group: uuid.UUID | None = Field(
        default=None, description="the same for images that look alike; null where none was known to"
    )
    together: int = Field(default=1, ge=1, description="images of the group that this act decided, this one included")
    decided_at: Moment
    seconds: float = Field(ge=0, description="from the image on the screen to the decision, shared out over `together`")

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True)


def review_id(task: str, token: str) -> uuid.UUID:
    """The deterministic id: one image given to one person once is one review, however often it is sent."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"assay-review:{task}\n{token}")


def review_headers(review: Review, group_id: str) -> Headers:
    """CloudEvents 1.0 headers (Kafka binary mode) of a review record."""
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", str(review.review_id).encode()),
        ("ce_source", f"assay/{group_id}".encode()),
        ("ce_type", REVIEW_TYPE.encode()),
        ("ce_time", review.decided_at.encode()),
        ("content-type", b"application/json"),
    ]


def review_hash(review: Review, as_json: str) -> dict[str, str]:
    """The Redis hash `assay:review:<image_id>`."""
    return {
        "decision": review.decision,
        "reason": review.reason or "",
        "reviewer": review.reviewer,
        "decided_at": review.decided_at,
        "review_id": str(review.review_id),
        "verdict_id": str(review.verdict_id),
        "json": as_json,
    }
