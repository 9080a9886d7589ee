"""What is found out about an image, and the narrow waist between the Decode stage and whoever examines: child processes
in a worker, a twin in the simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from worker.contract import ImageInfo
from worker.crop import Lease, Pixels
from worker.errors import Rejected
from worker.evidence import Evidence

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cost:
    """What decoding may take, judged by the header alone; better too high than too low.

    `effort_ms`: milliseconds of one core; it chooses the lane. `decoded_bytes`: memory held at once, above the encoded
    bytes and the crop; it is reserved before the decoder begins.
    """

    effort_ms: float
    decoded_bytes: int


@dataclass(frozen=True, slots=True)
class Findings:
    """A readable image: what its header says, what the file says of its origin, and the version of who read that."""

    info: ImageInfo
    evidence: Evidence = field(default_factory=Evidence)
    reader: str = ""


@dataclass(frozen=True, slots=True)
class Examined(Generic[T]):
    """Images that are done, in the order of their batch; a slow one comes apart from those it was submitted with.

    `good[i]` has its crop in `pixels[i]`, uint8 [len(good), 224, 224, 3], which lies in `lease`.
    """

    good: Sequence[tuple[T, Findings]]
    bad: Sequence[tuple[T, Rejected]]
    pixels: Pixels
    lease: Lease | None


class Examiner(Protocol[T]):
    """Examines images apart from the worker. One thread calls it, except for `wake`.

    Every image submitted comes back once, in an `Examined`, whatever it does to the process that reads it.
    """

    @property
    def trouble(self) -> str:
        """Why nothing can be examined; empty while something can. Any thread may ask."""

    @property
    def may_submit(self) -> bool:
        """May another batch be submitted now?"""

    def submit(self, batch: Sequence[tuple[T, bytes]]) -> None:
        """Examine these images; each with what it is handed back with."""

    def tell_slow(self, told: Callable[[T], None]) -> None:
        """Call `told`, inside of `wait` or `submit`, once for each image that leaves its batch because it is slow."""

    def wait(self, timeout_s: float) -> list[Examined[T]]:
        """What is done, something where it comes within `timeout_s`; nothing after `wake`, or when time is up."""

    def wake(self) -> None:
        """End a `wait` that is under way, or else the next; any thread may call it."""

    def close(self) -> None:
        """End the processes. What is under way does not come back."""
