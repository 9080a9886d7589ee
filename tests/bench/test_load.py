"""The load of the benchmarks: what the broker has not taken is not measured as if it had."""

from __future__ import annotations

import pytest

from tests.twins import ProducerTwin
from worker import settings
from worker.bench import load
from worker.bench.load import BATCH, produce
from worker.errors import Unavailable


def test_every_image_is_acknowledged_once() -> None:
    """Those that were refused at first go again, over several batches."""
    producer = ProducerTwin([])
    producer.refuse_next = 3
    produce(producer, "t", ((f"{number}", b"x") for number in range(BATCH + 5)))  # type: ignore[arg-type]
    assert sorted(int(one.key or b"") for one in producer.sent) == list(range(BATCH + 5))


def test_a_benchmark_touches_no_topic_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each topic that a worker reads or writes is one of its own, made before and deleted after."""
    made: list[str] = []
    deleted: list[str] = []
    monkeypatch.setattr(load, "create_topics", lambda _settings, names, *_: made.extend(names))
    monkeypatch.setattr(load, "delete_topics", lambda _settings, names: deleted.extend(names))
    mine = settings.load(environ={})
    with load.own_topics(mine) as environment:
        kafka = settings.load(environ=environment).kafka
        used = {name: getattr(kafka, name) for name in type(kafka).model_fields if name.endswith("_topic")}
    assert len(used) >= 4
    assert all(topic != getattr(mine.kafka, name) for name, topic in used.items())
    assert sorted(made) == sorted(deleted) == sorted(used.values())


def test_images_that_are_never_taken_end_the_benchmark() -> None:
    """A worker would wait in vain for them, and the rate would be wrong."""
    producer = ProducerTwin([])
    producer.refuse_next = 10**9
    with pytest.raises(Unavailable, match="2 of 2 records"):
        produce(producer, "t", iter([("a", b"x"), ("b", b"x")]))  # type: ignore[arg-type]
