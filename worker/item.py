"""An item: one record on its way through the stages, and what has been found out about it so far."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from worker.contract import ImageInfo, Record, Scores
from worker.errors import Rejected
from worker.flow import Flow
from worker.telemetry.tracing import ItemTrace

Pixels = npt.NDArray[np.uint8]


@dataclass(slots=True, eq=False)
class Item:
    """One record on its way. Times are seconds of the monotonic clock, `_ms` fields milliseconds.

    It ends with `scores` (a verdict) or `rejected` (a rejection), never with both.
    """

    record: Record
    epoch: int
    touched_at: float
    queued_ms: float
    data: bytes = b""  # the encoded image: the value, or what the reference led to; dropped once decoded
    trace: ItemTrace = field(default_factory=lambda: ItemTrace(None))
    held_bytes: int = 0  # what the flow counts for this item
    image_id: str | None = None
    sha256: str | None = None
    image: ImageInfo | None = None
    scores: Scores | None = None
    model_version: str | None = None
    from_cache: bool = False
    rejected: Rejected | None = None
    decode_ms: float | None = None
    infer_ms: float | None = None

    def hold_fetched(self, flow: Flow) -> None:
        """Count the bytes that a reference led to; they are held beside the record's own."""
        self.held_bytes += len(self.data)
        flow.hold_fetched(len(self.data))

    def let_go_fetched(self, flow: Flow) -> None:
        """The encoded image is no longer needed; the record itself stays, a rejection carries it."""
        fetched = self.held_bytes - len(self.record.value or b"")
        self.data = b""
        self.held_bytes -= fetched
        flow.let_go_fetched(fetched)

    @property
    def origin(self) -> str:
        """Where it came from, for logs."""
        return f"{self.record.topic}/{self.record.partition}/{self.record.offset}"


@dataclass(slots=True)
class Batch:
    """Items that travel together; `pixels` uint8 [N, 224, 224, 3] RGB, row i of item i, once decoded."""

    items: list[Item] = field(default_factory=list)
    pixels: Pixels | None = None
