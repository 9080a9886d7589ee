"""From where each partition of the verdicts has been read into this Redis, and from where it is read again.

A mark in Redis says of a partition which server process it was looked at under: none, where Redis lost everything;
another's, where it was started anew and may have lost its last second. The commit in Kafka carries the first offset
that consoles ever took (`from=…`), so that a wiped Redis is filled again from there, whatever
ASSAY_KAFKA__AUTO_OFFSET_RESET says of a first start. A place is committed before it is marked: a console that dies
while it reads again has its work taken up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from worker.clients.kafka import as_unavailable
from worker.clients.kafka_fetcher import RecordConsumer
from worker.clock import Clock
from worker.console.board import Board
from worker.contract import Record
from worker.settings import KafkaSettings

log = structlog.get_logger(__name__)
LOOK_BACK_MS = 15 * 60 * 1000
_FROM = "from="


class Places:
    """Of one consumer. Raises Unavailable where Kafka or Redis does not answer."""

    def __init__(self, kafka: KafkaSettings, board: Board, clock: Clock) -> None:
        self._kafka = kafka
        self._board = board
        self._clock = clock
        self._first: dict[TopicPartition, int] = {}  # of those that were looked at under `_run_id`
        self._run_id = ""

    def know(self, records: Sequence[Record]) -> bool:
        """Was each record's partition looked at?"""
        return all(TopicPartition(one.topic, one.partition) in self._first for one in records)

    def look(self, consumer: RecordConsumer, polled: Sequence[Record]) -> set[TopicPartition]:
        """Go back where this Redis may not know what was read. The partitions that are read again: what was polled of
        them comes once more.
        """
        run_id = self._board.scripts.run_id()
        if run_id != self._run_id:
            self._first.clear()
            self._run_id = run_id
        mine = set(consumer.assignment())
        for gone in self._first.keys() - mine:
            del self._first[gone]
        start: dict[TopicPartition, int] = {}
        for record in polled:
            start.setdefault(TopicPartition(record.topic, record.partition), record.offset)
        marks: dict[str, str] = self._board.scripts.do("hgetall", "fed")
        new = {place for place in mine if place not in self._first or marks.get(_name(place)) != run_id}
        again: dict[TopicPartition, int] = {}
        with as_unavailable(self._kafka):
            for place in sorted(new):
                known = consumer.committed(place, metadata=True)
                begin = consumer.beginning_offsets([place])[place]
                here = start.get(place, consumer.position(place))
                first = here if known is None else _first_of(known)
                mark = marks.get(_name(place), "")
                if mark == run_id:
                    back = here
                elif mark:
                    back = max(first, self._a_while_ago(consumer, place, here))
                else:
                    back = first  # of a first start too: there it is where it stands already
                back = min(here, max(begin, back))
                if back < here:
                    consumer.seek(place, back)
                    again[place] = back
                consumer.commit({place: _at(back, first)})
                self._board.scripts.do("hset", "fed", _name(place), run_id)
                self._first[place] = first
        if again:
            wiped = [place.partition for place in again if _name(place) not in marks]
            log.warning("verdicts_read_again", partitions={p.partition: back for p, back in again.items()}, wiped=wiped)
        return set(again)

    def _a_while_ago(self, consumer: RecordConsumer, place: TopicPartition, here: int) -> int:
        since_ms = int(self._clock.time() * 1000) - LOOK_BACK_MS
        found = consumer.offsets_for_times({place: since_ms})[place]
        return here if found is None else int(found.offset)

    def commit(self, consumer: RecordConsumer, offsets: Mapping[TopicPartition, int]) -> None:
        """Everything below these is in Redis, or need not be."""
        with as_unavailable(self._kafka):
            consumer.commit({place: _at(offset, self._first.get(place, 0)) for place, offset in offsets.items()})


def _name(place: TopicPartition) -> str:
    return f"{place.topic}/{place.partition}"


def _at(offset: int, first: int) -> OffsetAndMetadata:
    return OffsetAndMetadata(offset, f"{_FROM}{first}", -1)


def _first_of(known: OffsetAndMetadata) -> int:
    """Where nothing says it (the offsets were set by hand): the beginning, as far as it is kept."""
    text = known.metadata or ""
    return int(text.removeprefix(_FROM)) if text.startswith(_FROM) and text.removeprefix(_FROM).isdigit() else 0
