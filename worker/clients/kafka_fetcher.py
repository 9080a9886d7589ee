"""The seam in kafka-python where fetched bytes become records: its consumer with a fetcher that uses our parser.

kafka-python 3.0.12 makes the records of a partition in `Fetcher.PartitionRecords`; one that raises is never left again
and the consumer stands still. Here that class is ours (kafka_batches.py), which never raises; beside it, a poll is
bounded in bytes, because a batch of a few kB may hold records of many MB.

The seam is private to that version: `pyproject.toml` pins it, and `RecordConsumer` refuses another.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import kafka
import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import RequestTimedOutError
from kafka.protocol.consumer import IsolationLevel

from worker.clients.kafka_batches import Batch, Place, aborts, batch_records, read_batch, split
from worker.contract import Record

log = structlog.get_logger(__name__)
VERSION = "3.0.12"
FETCHES_OF_A_DAMAGED_BATCH = 3
_LEAST_FETCH_BYTES = 64 * 1024


class RecordConsumer(KafkaConsumer):  # type: ignore[misc]
    """kafka-python's consumer with `poll_records`. A record beyond `max_record_bytes` comes without its value."""

    def __init__(self, *, max_record_bytes: int, **configs: Any) -> None:
        if kafka.__version__ != VERSION:
            raise RuntimeError(
                f"kafka-python {kafka.__version__} is installed, {VERSION} is what this worker is made for: "
                "pip install 'kafka-python==" + VERSION + "'"
            )
        super().__init__(**configs)
        # 3.0.12 takes this option and does not hand it on; before the first topic is named it costs nothing to be late.
        self._cluster.config["allow_auto_create_topics"] = self.config["allow_auto_create_topics"]
        self._fetcher = _RecordFetcher(
            self._client, self._subscription, metrics=self._metrics, max_record_bytes=max_record_bytes, **self.config
        )

    def poll_records(self, timeout_ms: int, max_records: int, max_bytes: int | None = None) -> list[Record]:
        """Records, in order in each partition: at least one if there is one, none once `max_bytes` are reached."""
        self._fetcher.budget_bytes = max_bytes
        polled = self.poll(timeout_ms=timeout_ms, max_records=max_records)
        return [record for records in polled.values() for record in records]


class _RecordFetcher(Fetcher):  # type: ignore[misc]
    def __init__(self, client: Any, subscriptions: Any, *, max_record_bytes: int, **configs: Any) -> None:
        super().__init__(client, subscriptions, **configs)
        self._next_partition_records: Any = None
        self.max_record_bytes = max_record_bytes
        self.budget_bytes: int | None = None
        self._end = -1
        self._most = {name: self.config[name] for name in ("fetch_max_bytes", "max_partition_fetch_bytes")}
        self._share = 1.0
        self._damaged: dict[TopicPartition, tuple[int, int]] = {}

    def take(self, size_bytes: int) -> bool:
        """Count a record against this poll. True where another may be taken."""
        if self.budget_bytes is None:
            return True
        self.budget_bytes -= size_bytes
        return self.budget_bytes > 0

    def is_worth_another_fetch(self, tp: TopicPartition, position: int) -> bool:
        """What damaged a batch on its way may not do so again; a broker whose copy is damaged sends it so each time."""
        before, times = self._damaged.get(tp, (position, 0))
        times = times + 1 if before == position else 1
        self._damaged[tp] = (position, times)
        return times < FETCHES_OF_A_DAMAGED_BATCH

    def _handle_fetch_error(self, node_id: Any, exception: BaseException) -> None:
        """An answer that was too long for its deadline would be so each time: the next ones are asked to be shorter."""
        super()._handle_fetch_error(node_id, exception)
        if isinstance(exception, RequestTimedOutError):
            self._ask_for(self._share / 4)

    def _handle_fetch_response(self, node_id: Any, fetch_offsets: Any, send_time: float, response: Any) -> None:
        super()._handle_fetch_response(node_id, fetch_offsets, send_time, response)
        if self._share < 1 and (time.monotonic() - send_time) * 1000 < self.config["request_timeout_ms"] / 4:
            self._ask_for(self._share * 2)

    def _ask_for(self, share: float) -> None:
        """So much of what the settings allow; a record that is longer still comes, alone."""
        self._share = min(1.0, max(share, _LEAST_FETCH_BYTES / max(self._most.values())))
        for name, most in self._most.items():
            self.config[name] = int(most * self._share)

    def fetched_records(self, max_records: int | None = None, update_offsets: bool = True) -> tuple[Any, bool]:
        """kafka-python 3.0.12 puts the fetched records of a paused partition aside, does not fetch them again, and
        takes them up only where the one in line is None: one that was read to its end is not. Its partition would
        stand still for good.
        """
        if not self._next_partition_records:
            self._next_partition_records = None
        fetched: tuple[Any, bool] = super().fetched_records(max_records, update_offsets)
        return fetched

    def _parse_fetched_data(self, completed_fetch: Any) -> _PartitionRecords | None:
        self._end = completed_fetch.partition_data.high_watermark
        parsed: _PartitionRecords | None = super()._parse_fetched_data(completed_fetch)
        return parsed

    def PartitionRecords(  # noqa: N802  # kafka-python's name, where it has a class
        self, fetch_offset: int, tp: TopicPartition, records: Any, **options: Any
    ) -> _PartitionRecords:
        data = memoryview(records._buffer or b"")  # noqa: SLF001
        if not records.has_next():  # no whole batch: kafka-python would raise, each time
            records._next_slice = data  # noqa: SLF001
        place = Place(tp.topic, tp.partition, fetch_offset, self._end)
        transactions = options["aborted_transactions"] if self._isolation_level == IsolationLevel.READ_COMMITTED else ()
        return _PartitionRecords(self, tp, place, data, transactions or (), options["on_drain"])

    def _append(self, drained: Any, part: Any, max_records: int, update_offsets: bool) -> int:
        taken: int = super()._append(drained, part, max_records, update_offsets)
        is_spent = self.budget_bytes is not None and self.budget_bytes <= 0
        return max_records if is_spent and drained else taken


class _PartitionRecords:
    """The records of one fetch of one partition, read as they are taken; with the names that Fetcher uses."""

    def __init__(
        self,
        fetcher: _RecordFetcher,
        tp: TopicPartition,
        place: Place,
        data: memoryview,
        aborted: Sequence[Any],
        on_drain: Callable[[_PartitionRecords], None],
    ) -> None:
        self.topic_partition = tp
        self.next_fetch_offset = place.position
        self.leader_epoch = -1
        self.bytes_read = len(data)
        self._fetcher = fetcher
        self._place = place
        self._on_drain = on_drain
        self._aborted = deque(sorted(aborted, key=lambda transaction: transaction.first_offset))
        self._aborted_producers: set[int] = set()
        self._records: Iterator[Record] | None = self._read(data)

    def __bool__(self) -> bool:
        return self._records is not None

    def drain(self) -> None:
        if self._records is not None:
            self._records = None
            self._on_drain(self)

    def take(self, n: int) -> list[Record]:
        taken: list[Record] = []
        while self._records is not None and len(taken) < n:
            try:
                record = next(self._records, None)
            except BaseException:
                self.drain()  # or the fetcher asks this dead iterator for ever
                raise
            if record is None:
                self.drain()
                break
            taken.append(record)
            if not self._fetcher.take(record.size_bytes):
                break
        return taken

    def _read(self, data: memoryview) -> Iterator[Record]:
        for piece in split(data):
            place = replace(self._place, position=self.next_fetch_offset)
            batch = read_batch(piece, place)
            if batch.problem:
                if batch.may_heal and self._fetcher.is_worth_another_fetch(self.topic_partition, place.position):
                    return
                log.warning("batch_unreadable", topic=place.topic, partition=place.partition, first=batch.first,
                            last=batch.last, problem=batch.problem)  # fmt: skip
            self.leader_epoch = batch.leader_epoch
            if not self._is_skipped(batch):
                for record in batch_records(batch, place, self._fetcher.max_record_bytes):
                    self.next_fetch_offset = record.offset + 1
                    yield record
            # Also where compaction took the last records of a batch away, or it has none to show.
            self.next_fetch_offset = max(self.next_fetch_offset, batch.last + 1)

    def _is_skipped(self, batch: Batch) -> bool:
        """Markers of transactions, and what aborted ones have written (KIP-98)."""
        if batch.problem or batch.producer_id < 0:
            return batch.is_control
        while self._aborted and self._aborted[0].first_offset <= batch.last:
            self._aborted_producers.add(self._aborted.popleft().producer_id)
        if batch.is_control:
            if aborts(batch):
                self._aborted_producers.discard(batch.producer_id)
            return True
        return batch.is_transactional and batch.producer_id in self._aborted_producers
