"""What the console does beside answering: a round after another, in a thread of its own, until it is stopped."""

from __future__ import annotations

import threading

import structlog

from worker.errors import AssayError

log = structlog.get_logger(__name__)
_AGAIN_S = 1.0
_PATIENCE_S = 15.0


class Rounds:
    """`start`, `stop`; `problem` says why it waits, empty where it does not."""

    def __init__(self, name: str, problem: str, pause_s: float = 0.0) -> None:
        self._name = name
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.problem = problem

    def round(self) -> str:
        """One round; returns what it waits for. Raises AssayError where it is to begin anew, after a moment."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Close what is held, if anything: after an error, and at the end."""

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self._stopping.set()
        self._wanted.set()
        self._thread.join(_PATIENCE_S)

    def hurry(self) -> None:
        """There may be something to do now."""
        self._wanted.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.problem = self.round()
                pause_s = self._pause_s
            except AssayError as error:
                if str(error) != self.problem:
                    log.warning("round_failed", what=self._name, error=str(error))
                self.problem = str(error)
                self.let_go()
                pause_s = _AGAIN_S
            self._wanted.wait(pause_s)
            self._wanted.clear()
        self.let_go()
