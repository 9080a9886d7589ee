"""Who else is under way: the same bytes are inferred once, and records of one id are published in the order they came.

Both are about items inside this process at this moment; across processes and time the hash cache and Kafka's
partitioning by id do the same.
"""

from __future__ import annotations

import threading
from collections import deque

from worker.item import Item


class SingleFlight:
    """Lets one item lead for each SHA-256; the others wait for its result instead of being decoded and inferred again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[str, tuple[Item, list[Item]]] = {}

    def join(self, item: Item) -> bool:
        """True where `item` leads and must be worked on; False where it now follows another."""
        assert item.sha256 is not None
        with self._lock:
            flight = self._flights.get(item.sha256)
            if flight is None:
                self._flights[item.sha256] = (item, [])
                return True
            flight[1].append(item)
            return False

    def land(self, item: Item) -> list[Item]:
        """The followers of `item`, given its result; none where it was not leading. The next item with these bytes
        leads anew.
        """
        with self._lock:
            flight = self._flights.get(item.sha256) if item.sha256 else None
            if flight is None or flight[0] is not item:
                return []
            del self._flights[flight[0].sha256 or ""]
        for follower in flight[1]:
            follower.scores, follower.model_version = item.scores, item.model_version
            follower.rejected, follower.image = item.rejected, item.image
            follower.from_cache = item.scores is not None
        return flight[1]


class PublishOrder:
    """Keeps items of one image id in order of arrival: the later record must win in Redis, also when it was the faster
    one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[str, deque[Item]] = {}

    def enter(self, item: Item) -> None:
        """`item` has its id now; called in order of arrival within a partition."""
        assert item.image_id is not None
        with self._lock:
            self._lines.setdefault(item.image_id, deque()).append(item)

    def is_first(self, item: Item) -> bool:
        """May `item` be published now? Items without an id (their id was bad) may always."""
        with self._lock:
            line = self._lines.get(item.image_id) if item.image_id is not None else None
            return line is None or line[0] is item

    def leave(self, item: Item) -> Item | None:
        """`item` is published or dropped; the next of its id, which is first now, or None."""
        with self._lock:
            line = self._lines.get(item.image_id) if item.image_id is not None else None
            if not line or line[0] is not item:
                return None
            line.popleft()
            if line:
                return line[0]
            assert item.image_id is not None
            del self._lines[item.image_id]
            return None
