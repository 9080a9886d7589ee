"""Looks at the pictures of what waits, before people do, and puts near duplicates into groups: one thread of each
console, one picture at a time, each decoded in a confined process of its own. The next to be given out come first.
"""

from __future__ import annotations

import hashlib

from worker.console.board import Board
from worker.console.images import NoImage, Renderers
from worker.console.originals import Originals
from worker.console.rounds import Rounds
from worker.settings import Settings

_LEASE_MS = 120_000
_IDLE_S = 1.0


class Grouper(Rounds):
    """Without it there are no groups, and all else is the same."""

    def __init__(self, settings: Settings, board: Board, renderers: Renderers) -> None:
        super().__init__("grouper", problem="", pause_s=_IDLE_S)
        self._settings = settings.console
        self._board = board
        self._renderers = renderers
        self._originals = Originals(settings)  # a connection of its own: no page waits for it
        self.looked_at = 0

    def stop(self) -> None:
        super().stop()
        self._originals.close()

    def round(self) -> str:
        """Look at one. Raises Unavailable."""
        if self._one():
            self.hurry()  # there may be more
        return ""

    def _one(self) -> bool:
        """Whether there was something to look at. Raises Unavailable."""
        task_id = self._board.next_unhashed(_LEASE_MS)
        task = self._board.task(task_id) if task_id else None
        if task is None:
            return bool(task_id)
        try:
            data = self._originals.read(task.verdict.origin)
            found = self._renderers.phash(data) if hashlib.sha256(data).hexdigest() == task.verdict.sha256 else ""
        except NoImage:
            found = ""
        self._board.join(task_id, found)
        self.looked_at += 1
        return True
