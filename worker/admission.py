"""How much may be under way: admission in items and bytes, with a high and a low mark.

Every record is admitted once and released once, wherever its way ends, so the marks bound the whole pipeline.
"""

from __future__ import annotations

import threading

from worker.clock import SYSTEM_CLOCK, Clock, StopSignal
from worker.errors import Stopping
from worker.settings import FlowSettings

# So many times `max_items` may be aside: small slow images by the hundred would else keep all others out.
_ASIDE = 8
_LISTEN_S = 0.1  # how long a fetch waits before it looks at the stop


class Admission:
    """Counts what is under way. `is_full` has hysteresis: true from a high mark on until all counts are below the low
    marks.
    """

    def __init__(self, settings: FlowSettings, clock: Clock = SYSTEM_CLOCK) -> None:
        self.max_items = settings.max_items
        self.max_bytes = settings.max_bytes
        self.max_references = settings.max_references
        self._low_items = max(1, int(settings.max_items * settings.low_water))
        self._low_references = max(1, int(settings.max_references * settings.low_water))
        self._low_bytes = max(1, int(settings.max_bytes * settings.low_water))
        self._clock = clock
        self._changed = threading.Condition()
        self._full = False
        self._fetched_bytes = 0
        self.max_aside = _ASIDE * settings.max_items
        self.aside = 0
        self.items = 0
        self.bytes = 0
        self.references = 0

    def admit(self, size_bytes: int) -> None:
        """Count one record of `size_bytes`. Never blocks: whoever admits looks at `is_full` and `free_items` first."""
        with self._changed:
            self.items += 1
            self._add_bytes(size_bytes)

    def admit_reference(self) -> None:
        """Count one more item that waits for its image, or is fetching it."""
        with self._changed:
            self.references += 1
            self._update()

    def release_reference(self) -> None:
        """Its image is here, or it has ended."""
        with self._changed:
            self.references -= 1
            self._update()

    def hold_fetched(self, size_bytes: int) -> None:
        """Count the bytes that a reference led to. They are released once decoded, whatever else waits."""
        with self._changed:
            self._fetched_bytes += size_bytes
            self._add_bytes(size_bytes)

    def release_fetched(self, size_bytes: int) -> None:
        """Count fetched bytes no longer, of a record that goes on."""
        with self._changed:
            self._fetched_bytes -= size_bytes
            self.bytes -= size_bytes
            self._update()

    def set_aside(self) -> bool:
        """One record is slow: from now on it counts among those aside, and otherwise by its bytes alone. False, and it
        counts as before, where as many are aside as may be.
        """
        with self._changed:
            if self.aside >= self.max_aside:
                return False
            self.aside += 1
            self.items -= 1
            self._update()
            return True

    def release(self, size_bytes: int, *, aside: bool = False) -> None:
        """One record has ended; `size_bytes` is all that is still counted for it. `aside`: it was set aside."""
        with self._changed:
            if aside:
                self.aside -= 1
            else:
                self.items -= 1
            self.bytes -= size_bytes
            self._update()

    @property
    def is_full(self) -> bool:
        return self._full

    @property
    def free_items(self) -> int:
        """Records that may still be admitted before the high mark."""
        return max(0, self.max_items - self.items)

    def wait_to_fetch(self, stop: StopSignal) -> None:
        """Wait while the high mark is reached and fetched images are part of it. Raises Stopping once `stop` is set.

        Only those, because they go away by themselves: the records under way may be waiting for this very fetch.
        """
        with self._changed:
            while not self._may_fetch():
                if stop.is_set():
                    raise Stopping("stopped while waiting to fetch")
                self._clock.wait_for(self._changed, self._may_fetch, _LISTEN_S)

    def _may_fetch(self) -> bool:
        return self.bytes < self.max_bytes or self._fetched_bytes <= 0

    def _add_bytes(self, size_bytes: int) -> None:
        self.bytes += size_bytes
        self._update()

    def _update(self) -> None:
        held = (
            (self.items, self.max_items, self._low_items),
            (self.bytes, self.max_bytes, self._low_bytes),
            (self.references, self.max_references, self._low_references),
        )
        if any(count >= high for count, high, _ in held):
            self._full = True
        elif all(count <= low for count, _, low in held):
            self._full = False
        self._changed.notify_all()
