"""Decisions to Kafka, each once: one thread of each console.

The topic is read before anything is written to it, and everything on it is applied to Redis: what is there already is
not written again, whatever Redis has forgotten. A decision that somebody took is not taken by another for a while, and
is not written by its taker after half of that: a process that was stopped in between comes too late for its own lease.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import structlog

from worker.clients.kafka_producer import Outgoing, Producer
from worker.clients.kafka_topics import Reader
from worker.clock import SYSTEM_CLOCK, Clock
from worker.console.board import Board, Due
from worker.console.rounds import Rounds
from worker.errors import Unavailable
from worker.review import Review, review_headers
from worker.settings import Settings

log = structlog.get_logger(__name__)
_LEASE_MS = 60_000
_LOOK_BACK_MS = 15 * 60 * 1000
_REMEMBERED = 200_000
_IDLE_S = 0.25


class Outbox(Rounds):
    """`heard` is told of every review it sees."""

    def __init__(
        self,
        settings: Settings,
        board: Board,
        heard: Callable[[Review, str], None] = lambda *_: None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__("outbox", problem="it has not looked yet", pause_s=_IDLE_S)
        self._settings = settings
        self._board = board
        self._heard = heard
        self._clock = clock
        self._reader: Reader | None = None
        self._producer: Producer | None = None
        self._run_id = ""
        self._seen: OrderedDict[str, tuple[int, int] | None] = OrderedDict()

    def round(self) -> str:
        """Apply what is new on the topic, write what is due. Raises Unavailable."""
        run_id = self._board.scripts.run_id()
        if run_id != self._run_id or not self._board.is_born():  # at the start, and where Redis lost something
            self.let_go()
        if self._reader is None:
            self._reader = Reader(self._settings.kafka, self._settings.kafka.reviews_topic, self._since_ms())
        self._catch_up(self._reader)
        if run_id != self._run_id:
            self._board.caught_up(run_id)
            self._run_id = run_id
        taken_at = self._clock.monotonic()
        due = self._board.take_due(_LEASE_MS)
        if due:
            self._catch_up(self._reader)  # what others wrote before this was taken
            self._write([one for one in due if one.review_id not in self._seen], taken_at)
            for one in due:
                if one.review_id in self._seen:  # it is there, and was not applied, or not to the Redis of now
                    self._applied(one.event)
        return ""

    def _since_ms(self) -> int | None:
        """From where the topic has to be known: all of it where Redis knows nothing."""
        if not self._board.is_born():
            return None
        now_ms = int(self._clock.time() * 1000)
        oldest = self._board.oldest_outgoing_ms()
        return min(now_ms, oldest if oldest is not None else now_ms) - _LOOK_BACK_MS

    def _catch_up(self, reader: Reader) -> None:
        for record in reader.until_now():
            try:
                review = Review.model_validate_json(record.value or b"")
            except ValueError:
                log.warning("review_unreadable", partition=record.partition, offset=record.offset)
                continue
            name, place = str(review.review_id), (record.partition, record.offset)
            if self._seen.get(name) not in (None, place):
                log.error("review_doubled", review_id=name, partition=record.partition, offset=record.offset)
            self._remember(name, place)
            self._applied((record.value or b"").decode("utf-8", "replace"))

    def _applied(self, event: str) -> None:
        review = Review.model_validate_json(event)
        if became := self._board.apply(review, event):
            self._heard(review, became)

    def _remember(self, review_id: str, place: tuple[int, int] | None = None) -> None:
        self._seen[review_id] = place
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    def _write(self, due: list[Due], taken_at: float) -> None:
        if not due:
            return
        if (self._clock.monotonic() - taken_at) * 1000 > _LEASE_MS / 2:
            raise Unavailable("kafka", "it took too long to look whether the decisions are there already")
        if self._producer is None:
            self._producer = Producer(self._settings.kafka)
        records = [self._record(one) for one in due]
        failed = set(self._producer.produce(records))
        for index, one in enumerate(due):
            if index not in failed:
                self._remember(one.review_id)
                self._applied(one.event)
        if failed:
            raise Unavailable("kafka", f"{len(failed)} of {len(due)} reviews were not acknowledged")

    def _record(self, due: Due) -> Outgoing:
        review = Review.model_validate_json(due.event)
        return Outgoing(
            topic=self._settings.kafka.reviews_topic,
            key=review.image_id.encode(),
            value=due.event.encode(),
            headers=review_headers(review, self._settings.console.group_id),
        )

    def let_go(self) -> None:
        """Connections, and what was seen on the topic: it is looked at again from a while ago."""
        for connection in (self._reader, self._producer):
            if connection is not None:
                connection.close()
        self._reader = self._producer = None
        self._run_id = ""
        self._seen.clear()
