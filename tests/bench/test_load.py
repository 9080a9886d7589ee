"""The load of the benchmarks: what the broker has not taken is not measured as if it had."""

from __future__ import annotations

import pytest

from tests.twins import ProducerTwin
from worker.bench.load import BATCH, produce
from worker.errors import Unavailable


def test_every_image_is_acknowledged_once() -> None:
    """Those that were refused at first go again, over several batches."""
    producer = ProducerTwin([])
    producer.refuse_next = 3
    produce(producer, "t", ((f"{number}", b"x") for number in range(BATCH + 5)))  # type: ignore[arg-type]
    assert sorted(int(one.key or b"") for one in producer.sent) == list(range(BATCH + 5))


def test_images_that_are_never_taken_end_the_benchmark() -> None:
    """A worker would wait in vain for them, and the rate would be wrong."""
    producer = ProducerTwin([])
    producer.refuse_next = 10**9
    with pytest.raises(Unavailable, match="2 of 2 records"):
        produce(producer, "t", iter([("a", b"x"), ("b", b"x")]))  # type: ignore[arg-type]
