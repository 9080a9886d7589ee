"""Who else is under way: the same bytes are inferred once, and records of one id are published in the order they came.

Both are about items inside this process at this moment; across processes and time the hash cache and Kafka's
partitioning by id do the same.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

from worker.admission import Admission
from worker.item import Ended, Identified, Item, Judgement
from worker.offsets import OffsetTracker


class SingleFlight:
    """Lets one image lead for each SHA-256; the others wait for its outcome instead of being decoded and inferred
    again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[str, tuple[Item, list[Identified]]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, image: Identified, admission: Admission) -> bool:
        """True where `image` leads and must be worked on; False where it now follows another, aside if that one is."""
        with self._lock:
            flight = self._flights.get(image.sha256)
            if flight is None:
                self._flights[image.sha256] = (image.item, [])
                return True
            flight[1].append(image)
            if flight[0].aside:
                image.item.set_aside(admission)
            return False

    def set_aside(self, leader: Identified, admission: Admission) -> None:
        """`leader` is slow: it and those that follow it keep nobody else out."""
        with self._lock:
            leader.item.set_aside(admission)
            flight = self._flights.get(leader.sha256)
            if flight is not None and flight[0] is leader.item:
                for follower in flight[1]:
                    follower.item.set_aside(admission)

    def land(self, ended: Ended) -> list[Ended]:
        """The followers, ended with the same outcome; none where `ended` was not leading. The next one with these bytes
        leads anew.
        """
        with self._lock:
            flight = self._flights.get(ended.sha256) if ended.sha256 else None
            if flight is None or flight[0] is not ended.item:
                return []
            del self._flights[ended.sha256 or ""]
        outcome = ended.outcome.shared() if isinstance(ended.outcome, Judgement) else ended.outcome
        return [Ended.of(follower, outcome) for follower in flight[1]]


class PublishOrder:
    """Keeps items of one image id in order of arrival: the later record must win in Redis, also when it was the faster
    one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[str, deque[Item]] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def enter(self, image_id: str, item: Item) -> None:
        """`item` has its id now; called in order of arrival within a partition."""
        with self._lock:
            self._lines.setdefault(image_id, deque()).append(item)

    def is_first(self, ended: Ended) -> bool:
        """May it be published now? Items without an id (their id was bad) may always."""
        with self._lock:
            line = self._lines.get(ended.image_id) if ended.image_id is not None else None
            return line is None or line[0] is ended.item

    def leave(self, ended: Ended) -> Item | None:
        """It is published or dropped; the next of its id, which is first now, or None."""
        with self._lock:
            line = self._lines.get(ended.image_id) if ended.image_id is not None else None
            if not line or line[0] is not ended.item:
                return None
            line.popleft()
            if line:
                return line[0]
            del self._lines[ended.image_id or ""]
            return None


@dataclass(frozen=True, slots=True)
class UnderWay:
    """All books about what is in work in this process: how much, which offsets, whose turn, which bytes.

    `keeps_images`: fetched images are held until their verdict, because detectors beside `code` may want them.
    """

    admission: Admission
    tracker: OffsetTracker = field(default_factory=OffsetTracker)
    order: PublishOrder = field(default_factory=PublishOrder)
    single_flight: SingleFlight = field(default_factory=SingleFlight)
    keeps_images: bool = False
