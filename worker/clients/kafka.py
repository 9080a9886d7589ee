"""Kafka through kafka-python: the options that all clients share, and the consumer, owned by the poll thread.

kafka-python's consumer is not thread-safe: only the poll thread may touch `Consumer`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import structlog
from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.base import MemberState
from kafka.errors import (
    AuthorizationError,
    CommitFailedError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    RebalanceInProgressError,
    SaslAuthenticationFailedError,
)
from kafka.structs import OffsetAndMetadata

from worker.clients.kafka_fetcher import RecordConsumer
from worker.clients.kafka_probe import diagnose, key_password
from worker.contract import Record
from worker.errors import Unavailable
from worker.settings import KafkaSettings

log = structlog.get_logger(__name__)
_BOOTSTRAP_TIMEOUT_MS = 15_000
# A guard against ports that speak something else; whatever batch its topic has allowed must get through.
_MAX_ANSWER_BYTES = 1024 * 1024 * 1024
_WHO_MAY = "docs/deploy.md lists the permissions that the worker's user needs"


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """Options that every client shares."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "client_id": settings.client_id,
        "security_protocol": settings.security_protocol,
        "request_timeout_ms": settings.request_timeout_ms,
        "bootstrap_timeout_ms": _BOOTSTRAP_TIMEOUT_MS,
        "reconnect_backoff_max_ms": 1_000,
    }
    if "SSL" in settings.security_protocol:
        options |= {
            "ssl_cafile": settings.ssl_ca_path,
            "ssl_certfile": settings.ssl_cert_path,
            "ssl_keyfile": settings.ssl_key_path,
            "ssl_password": key_password(settings),
            "ssl_check_hostname": settings.ssl_check_hostname,
        }
    if settings.security_protocol.startswith("SASL"):
        assert settings.sasl_password is not None
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password.get_secret_value(),
        }
    return options


def explain(settings: KafkaSettings, error: BaseException) -> str:
    """The error in one line that says what to change, as far as that can be found out."""
    text = str(error) or type(error).__name__
    if isinstance(error, (KafkaTimeoutError, KafkaConnectionError, SaslAuthenticationFailedError)) and (
        objection := diagnose(settings)
    ):
        return objection
    if isinstance(error, AuthorizationError):
        text += f" ({_WHO_MAY})"
    return f"{', '.join(settings.bootstrap_servers)}: {text}"


def missing_topic(topic: str) -> str:
    """For an operator: brokers answer alike for a topic that is not there and one that the user may not see."""
    return f"topic {topic} is not there, or hidden by ACLs ({_WHO_MAY})"


@contextlib.contextmanager
def as_unavailable(settings: KafkaSettings) -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError) as error:
        raise Unavailable("kafka", explain(settings, error)) from error


def consumer_options(settings: KafkaSettings) -> dict[str, Any]:
    """Options of everything that reads, beside those that every client shares."""
    return connection_options(settings) | {
        "enable_auto_commit": False,
        "metrics_enabled": False,
        "isolation_level": settings.isolation_level,
        # A topic that is misspelt or was deleted must not be made anew with the broker's defaults.
        "allow_auto_create_topics": False,
        "fetch_max_bytes": settings.fetch_max_bytes,
        "max_partition_fetch_bytes": settings.max_partition_fetch_bytes,
        "receive_message_max_bytes": _MAX_ANSWER_BYTES,
        "max_record_bytes": settings.max_record_bytes,
    }


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Passes rebalances on as partition numbers. Runs on the client's I/O thread: the callbacks must not block."""

    def __init__(self, on_assigned: Callable[[list[int]], None], on_revoked: Callable[[list[int]], None]) -> None:
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._on_assigned(sorted(tp.partition for tp in assigned))

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._on_revoked(sorted(tp.partition for tp in revoked))


class Consumer:
    """The group's consumer of the incoming topic. Every method belongs to the poll thread.

    `on_assigned` and `on_revoked` get partition numbers, from inside `poll` and `close`.
    Raises Unavailable where no broker answers.
    """

    def __init__(
        self, settings: KafkaSettings, on_assigned: Callable[[list[int]], None], on_revoked: Callable[[list[int]], None]
    ) -> None:
        self._settings = settings
        self._topic = settings.incoming_topic
        self._paused = False
        self._on_assigned = on_assigned
        with as_unavailable(settings):
            self._consumer = RecordConsumer(
                **consumer_options(settings),
                group_id=settings.group_id,
                group_instance_id=settings.group_instance_id,
                auto_offset_reset=settings.auto_offset_reset,
                session_timeout_ms=settings.session_timeout_ms,
                heartbeat_interval_ms=settings.heartbeat_interval_ms,
                max_poll_interval_ms=settings.max_poll_interval_ms,
                # Named alone: a group cannot mix cooperative and eager assignors.
                partition_assignment_strategy=(CooperativeStickyAssignor,),
                metadata_max_age_ms=30_000,
            )
            self._consumer.subscribe([self._topic], listener=_Listener(self._assigned, on_revoked))

    def _assigned(self, partitions: list[int]) -> None:
        if self._paused and partitions:  # new partitions start un-paused, whatever the back-pressure says
            self._consumer.pause(*[TopicPartition(self._topic, partition) for partition in partitions])
        self._on_assigned(partitions)

    def poll(self, timeout_ms: int, max_records: int, max_bytes: int | None = None) -> list[Record]:
        """Up to `max_records` records, in order within each partition; also drives heartbeats and rebalances.

        No more once `max_bytes` are reached: a batch of a few kB may hold records of many MB.
        """
        with as_unavailable(self._settings):
            records = self._consumer.poll_records(timeout_ms, max_records, max_bytes)
            self._collect_join()
        return records

    def _collect_join(self) -> None:
        """Have a join that outlived its poll collected by the next one.

        kafka-python 3.0.12 forgets it where the leader re-joins because the topic's partitions changed (also when it
        first
        hears of them): making the assignment removes the reason to re-join, later polls see none, and the member stays
        without partitions and heartbeats for ever.
        """
        coordinator = self._consumer._coordinator  # noqa: SLF001  # there is no public way to ask or to request
        if coordinator.rejoining and not coordinator.need_rejoin():
            coordinator.request_rejoin()

    @property
    def is_joined(self) -> bool:
        """Is this member part of a stable group, as far as it knows?"""
        return bool(self._consumer.group_metadata().state == MemberState.STABLE)

    def obstacle(self) -> str:
        """Why this member has no partitions or lost its group; nothing where none is to be seen (more workers than
        partitions).

        kafka-python tells of neither a topic that ACLs hide nor a password that is refused on reconnecting. May take
        seconds.
        """
        if objection := diagnose(self._settings):
            return objection
        with as_unavailable(self._settings):
            there = self._consumer.partitions_for_topic(self._topic)
        return "" if there else missing_topic(self._topic)

    def set_paused(self, paused: bool) -> None:
        """Stop or go on fetching; polling goes on either way, so the group keeps us."""
        self._paused = paused
        assigned = self._consumer.assignment()
        if assigned:
            (self._consumer.pause if paused else self._consumer.resume)(*assigned)

    def waiting(self) -> dict[int, int]:
        """Records of each assigned partition that have not been polled yet, as far as the last fetch told."""
        waiting = {}
        for tp in self._consumer.assignment():
            end = self._consumer.highwater(tp)
            if end is not None:
                with contextlib.suppress(KafkaError):  # no position yet: the next look will have it
                    position = self._consumer.position(tp, timeout_ms=0)
                    waiting[tp.partition] = max(0, end - (end if position is None else position))
        return waiting

    def commit(self, offsets: Mapping[int, int], timeout_ms: int) -> bool:
        """Commit one past the last finished offset of each partition. False where the group has moved on without us."""
        wanted = {
            TopicPartition(self._topic, partition): OffsetAndMetadata(offset, "", -1)
            for partition, offset in offsets.items()
        }
        try:
            with as_unavailable(self._settings):
                self._consumer.commit(wanted, timeout_ms=timeout_ms)
        except Unavailable as error:
            if isinstance(error.__cause__, (CommitFailedError, RebalanceInProgressError)):
                log.info(
                    "commit_refused",
                    reason="the group rebalanced; the new owner redoes the records",
                    offsets=dict(offsets),
                )
                return False
            raise
        return True

    def close(self) -> None:
        """Leave the group at once, so that others take over without waiting for the session to end."""
        self._consumer.close(autocommit=False, timeout_ms=2_000)
