"""What worker and child say to each other, as JSON: a job, and what became of each of its images.

Never pickle: a child may have been taken over by what it read, so its answer is checked like any other input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from worker.contract import ImageInfo
from worker.errors import AssayError, Rejected, RejectReason
from worker.evidence import NOTHING, Evidence
from worker.examine.findings import Cost, Findings

# here: all are decoded by this child; apart: those that suit the GPU come back; device: this child has the GPU, and
# these suit it; pillow: whatever else fails, Pillow has the last word.
Route = Literal["here", "apart", "device", "pillow"]
# What a child says over its channel; DONE is followed by the size of its findings.
READY, NO_DEVICE, DONE = b"ready", b"no device", b"done"
JOB_BYTES = 65_536
MAX_DETAIL_CHARS = 500


class Garbled(AssayError):
    """A child's answer that makes no sense: it is treated like its death."""


@dataclass(frozen=True, slots=True)
class Job:
    """Images for one child. `places`: offset and size of each in its block.

    `region`: where pixels go, image i to row `first_row + i`; None for the block's own place, which holds one.
    What costs more than `most` comes back as it is; None: nothing does. `with_evidence`: read what the files say of
    their origin; not where doing so may have ended a child, for evidence is no reason to reject an image.
    """

    places: Sequence[tuple[int, int]]
    region: int | None
    first_row: int
    most: Cost | None
    route: Route = "here"
    with_evidence: bool = True

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, message: bytes) -> Job:
        """In the child: the worker's word is trusted."""
        fields = json.loads(message)
        most = Cost(**fields.pop("most")) if fields["most"] else fields.pop("most")
        return cls(**fields, most=most)


@dataclass(frozen=True, slots=True)
class TooDear:
    """Not decoded: the header says that it costs more than the job allows."""

    cost: Cost


@dataclass(frozen=True, slots=True)
class ForDevice:
    """Not decoded: the child that owns the GPU does it better."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The child could not go on with this image: it ran out of memory, or into a defect of ours."""

    cause: Literal["memory", "defect"]
    detail: str


Outcome = Findings | Rejected | TooDear | ForDevice | Failed


def to_json(outcomes: Sequence[Outcome]) -> bytes:
    """What a child answers to a job."""
    return json.dumps([_to_fields(outcome) for outcome in outcomes]).encode()


def _to_fields(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Findings():
            evidence = None if outcome.evidence is NOTHING else outcome.evidence.model_dump()
            return {"info": outcome.info.model_dump(), "evidence": evidence, "reader": outcome.reader}
        case Rejected():
            return {"reason": outcome.reason.value, "detail": outcome.detail, "stage": outcome.stage}
        case TooDear():
            return {"cost": asdict(outcome.cost)}
        case ForDevice():
            return {"device": True}
        case Failed():
            return {"cause": outcome.cause, "detail": outcome.detail}


def parse(answer: bytes, sizes: Sequence[int]) -> list[Outcome]:
    """In the worker: one outcome for each image of the job, whose sizes in bytes are `sizes`. Raises Garbled."""
    try:
        images = json.loads(answer)
        if len(images) != len(sizes):
            raise Garbled(f"{len(images)} answers to {len(sizes)} images")
        return [_from_fields(fields, size) for fields, size in zip(images, sizes, strict=True)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Garbled(f"{type(error).__name__}: {error}"[:MAX_DETAIL_CHARS]) from None


def _from_fields(fields: Mapping[str, Any], size_bytes: int) -> Outcome:
    if "info" in fields:
        info = ImageInfo.model_validate({**fields["info"], "bytes": size_bytes}, strict=True)
        found = fields["evidence"]
        evidence = NOTHING if found is None else Evidence.model_validate(found, strict=True)
        return Findings(info, evidence, str(fields["reader"])[:64])
    if "reason" in fields:
        stage: Literal["intake", "decode"] = "intake" if fields["stage"] == "intake" else "decode"
        return Rejected(RejectReason(fields["reason"]), str(fields["detail"])[:MAX_DETAIL_CHARS], stage=stage)
    if "cost" in fields:
        cost = fields["cost"]
        return TooDear(Cost(float(cost["effort_ms"]), max(0, int(cost["decoded_bytes"]))))
    if "device" in fields:
        return ForDevice()
    return Failed("memory" if fields["cause"] == "memory" else "defect", str(fields["detail"])[:MAX_DETAIL_CHARS])
