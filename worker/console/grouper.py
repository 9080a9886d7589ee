"""Looks at the pictures of what waits, before people do, and puts near duplicates into groups: one thread of each
console, one picture at a time, each decoded in a confined process of its own. The next to be given out come first.
"""

from __future__ import annotations

import hashlib
import threading

import structlog

from worker.console.board import Board
from worker.console.images import NoImage, Renderers
from worker.console.originals import Originals
from worker.errors import AssayError
from worker.settings import Settings

log = structlog.get_logger(__name__)
_LEASE_MS = 120_000
_IDLE_S = 1.0
_AGAIN_S = 2.0


class Grouper:
    """`start`, `stop`. Without it there are no groups, and all else is the same."""

    def __init__(self, settings: Settings, board: Board, renderers: Renderers) -> None:
        self._settings = settings.console
        self._board = board
        self._renderers = renderers
        self._originals = Originals(settings)  # a connection of its own: no page waits for it
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="grouper", daemon=True)
        self.problem = ""
        self.looked_at = 0

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=15)
        self._originals.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                pause_s = 0.0 if self._one() else _IDLE_S
                self.problem = ""
            except AssayError as error:
                if str(error) != self.problem:
                    log.warning("grouper_waits", error=str(error))
                self.problem = str(error)
                pause_s = _AGAIN_S
            self._stopping.wait(pause_s)

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
