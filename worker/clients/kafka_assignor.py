"""Which member of the group gets which partitions: the cooperative sticky assignment, for each topic by itself.

kafka-python balances the number of partitions over all topics together: of three partitions of `images.incoming` and
three of `images.retry`, a second worker could get those of the retry topic alone and have nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment


@dataclass(frozen=True, slots=True)
class _Metadata:
    """The part of a member's subscription that concerns one topic, as the assignor reads it."""

    topics: list[str]
    owned_partitions: list[Any]
    generation_id: int


@dataclass(frozen=True, slots=True)
class _Member:
    member_id: str
    metadata: _Metadata


class PerTopicAssignor(CooperativeStickyAssignor):  # type: ignore[misc]
    """Goes by the same name: what members say of themselves, and the two rounds of a move, are the library's."""

    def assign(self, cluster: Any, members: Iterable[Any]) -> dict[str, Any]:
        """The leader's answer for all: member id -> its partitions, each topic spread over all that read it."""
        members = list(members)
        assigned: dict[str, list[tuple[str, list[int]]]] = {member.member_id: [] for member in members}
        for topic in sorted({topic for member in members for topic in member.metadata.topics}):
            readers = [_for_topic(member, topic) for member in members if topic in member.metadata.topics]
            # The least busy come first where a topic has fewer partitions than there are members.
            readers.sort(key=lambda reader: sum(len(parts) for _, parts in assigned[reader.member_id]))
            for member_id, assignment in super().assign(cluster, readers).items():
                assigned[member_id] += [_pair(partitions) for partitions in assignment.assigned_partitions]
        return {
            member_id: ConsumerProtocolAssignment(self.version, sorted(partitions), b"")
            for member_id, partitions in assigned.items()
        }


def _for_topic(member: Any, topic: str) -> _Member:
    metadata = member.metadata
    owned = [one for one in getattr(metadata, "owned_partitions", None) or () if one.topic == topic]
    return _Member(member.member_id, _Metadata([topic], owned, metadata.generation_id))


def _pair(partitions: Any) -> tuple[str, list[int]]:
    """Topic and numbers, whether the library holds them as a pair or as one of its structures."""
    if isinstance(partitions, tuple):
        return partitions[0], list(partitions[1])
    return partitions.topic, list(partitions.partitions)
