"""Partitions are spread topic by topic, and moves still take two rounds."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from kafka.protocol.consumer.metadata import ConsumerProtocolSubscription

from tests.properties import given
from worker.clients.kafka_assignor import PerTopicAssignor

TOPICS = ("images.incoming", "images.retry")
Assigned = dict[str, dict[str, list[int]]]


class Cluster:
    """As many partitions for each topic."""

    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts

    def topics(self) -> set[str]:
        return set(self._counts)

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(range(self._counts[topic]))


class Member:
    """A member that owns `owned` by topic."""

    def __init__(self, member_id: str, owned: dict[str, list[int]]) -> None:
        pairs = ConsumerProtocolSubscription.TopicPartition
        partitions = [pairs(topic=topic, partitions=numbers) for topic, numbers in owned.items()]
        self.member_id = member_id
        self.metadata = ConsumerProtocolSubscription(
            version=1, topics=list(TOPICS), user_data=b"", owned_partitions=partitions
        )


def assign(counts: dict[str, int], owned: Assigned) -> Assigned:
    """One round."""
    assignor: Any = PerTopicAssignor()
    assert isinstance(assignor, AbstractPartitionAssignor)
    answer = assignor.assign(Cluster(counts), [Member(name, parts) for name, parts in owned.items()])
    found: Assigned = {}
    for name, assignment in answer.items():
        found[name] = {}
        for one in assignment.assigned_partitions:
            topic, numbers = (one.topic, one.partitions) if hasattr(one, "topic") else one
            found[name][topic] = list(numbers)
    return found


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(0, 5))
def test_each_topic_is_spread_over_all_members(incoming: int, retry: int, before: int, joining: int) -> None:
    """After two rounds every partition has one owner, and no member has two more of a topic than another."""
    counts = dict(zip(TOPICS, (incoming, retry), strict=True))
    owned: Assigned = {f"m{number}": {} for number in range(before)}
    owned = assign(counts, assign(counts, owned))
    owned |= {f"n{number}": {} for number in range(joining)}
    for _ in range(2):
        owned = assign(counts, owned)
    for topic, count in counts.items():
        shares = [owned[name].get(topic, []) for name in owned]
        assert sorted(number for share in shares for number in share) == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_second_worker_gets_work() -> None:
    """Of three and three partitions it never gets those of the retry topic alone."""
    counts = dict.fromkeys(TOPICS, 3)
    owned: Assigned = {"first": {topic: [0, 1, 2] for topic in TOPICS}, "second": {}}
    first_round = assign(counts, owned)
    assert first_round["second"] == {}, "what moves is given up first"
    assert assign(counts, first_round)["second"].keys() == set(TOPICS)
