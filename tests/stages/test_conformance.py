"""What every stage owes the others, as one suite over all four, and the four together as a line.

A bad item leaves its batch with a reason and the others go on; a full queue makes a stage wait; a stop ends every wait;
a dependency that is away is waited for and costs no image; what belongs to a revoked partition is dropped.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image

from tests.odd_images import encode
from tests.twins import VERSION, Workbench, record, scores, settings, tensor, wait_for
from worker.contract import ImageInfo, Verdict
from worker.errors import Rejected, RejectReason
from worker.item import Batch, Item

CROP = (224, 224)


def image(red: int) -> bytes:
    return encode(Image.new("RGB", CROP, (red, 0, 0)), "PNG")


GOOD, OTHER = image(10), image(20)
CUT = image(30)[:-40]


@dataclass(frozen=True)
class Stage:
    """`body` makes it; `feed` hands it one piece of three items, the middle one bad; `outlet` is where good ones come out."""

    body: Callable[[Workbench], Callable[[], None]]
    feed: Callable[[Workbench], list[Item]]
    reason: RejectReason
    good_out: Callable[[Workbench], int]


def feed_intake(bench: Workbench) -> list[Item]:
    return bench.take(record(0, GOOD), record(1, b"this is no picture"), record(2, OTHER))


def identified(bench: Workbench, *values: bytes) -> list[Item]:
    """Items as intake leaves them."""
    items = bench.admit(*[record(offset, value) for offset, value in enumerate(values)])
    for number, item in enumerate(items):
        item.image_id, item.sha256 = f"id-{number}", f"{number:064x}"
        item.data = item.record.value or b""
        item.image = ImageInfo(format="png", width=224, height=224, bytes=len(item.data))
        bench.order.enter(item)
        assert bench.single_flight.join(item)
    return items


def feed_decode(bench: Workbench) -> list[Item]:
    items = identified(bench, GOOD, CUT, OTHER)
    bench.decode_inbox.put(Batch(items), bench.stop)
    return items


def feed_infer(bench: Workbench) -> list[Item]:
    bench.triton.poison = {66}
    items = identified(bench, GOOD, GOOD, GOOD)
    bench.infer_inbox.put(Batch(items, tensor(10, 66, 20)), bench.stop)
    return items


def feed_publish(bench: Workbench) -> list[Item]:
    items = identified(bench, GOOD, GOOD, GOOD)
    for item in items:
        item.scores, item.model_version = scores(0.9), VERSION
    items[1].scores, items[1].rejected = None, Rejected(RejectReason.CORRUPT, "cut", stage="decode")
    bench.publish_inbox.put(items, bench.stop)
    return items


def batched(bench: Workbench) -> int:
    return sum(len(batch.items) for batch in list(bench.decode_inbox._pieces))


def inferable(bench: Workbench) -> int:
    return sum(len(batch.items) for batch in list(bench.infer_inbox._pieces))


def scored(bench: Workbench) -> int:
    return sum(item.scores is not None for piece in list(bench.publish_inbox._pieces) for item in piece)


def stored(bench: Workbench) -> int:
    return len(bench.producer.to("images.verdicts"))


STAGES = {
    "intake": Stage(lambda bench: bench.intake().run, feed_intake, RejectReason.UNSUPPORTED_FORMAT, batched),
    "decode": Stage(lambda bench: bench.decode().run, feed_decode, RejectReason.CORRUPT, inferable),
    "infer": Stage(lambda bench: bench.infer().run, feed_infer, RejectReason.INFERENCE_FAILED, scored),
    "publish": Stage(lambda bench: bench.publish().run, feed_publish, RejectReason.CORRUPT, stored),
}
EACH = pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES.keys())


@EACH
def test_a_bad_item_leaves_its_batch_and_the_others_go_on(stage: Stage) -> None:
    """One of three is bad: it gets its reason, and the two beside it go their way unharmed."""
    bench = Workbench()
    with bench.running(stage.body(bench)):
        items = stage.feed(bench)
        wait_for(lambda: stage.good_out(bench) == 2, "two good items come out")
        wait_for(lambda: items[1].rejected is not None, "the bad one is rejected")
    assert items[1].rejected is not None
    assert items[1].rejected.reason is stage.reason
    assert items[1].rejected.detail
    assert items[1].scores is None
    assert items[0].rejected is None and items[2].rejected is None


@EACH
def test_an_idle_stage_ends_on_stop(stage: Stage) -> None:
    """A stage that waits for work hears the stop (the workbench asserts that its thread ends)."""
    bench = Workbench()
    with bench.running(stage.body(bench)):
        pass


@pytest.mark.parametrize("name", ["intake", "decode"])
def test_a_full_queue_makes_the_stage_wait(name: str) -> None:
    """With the queue behind it full, a stage holds its piece; it goes on once there is room, and loses nothing."""
    stage = STAGES[name]
    bench = Workbench(settings(intake={"batch_max_items": 1}), decode_capacity=1, infer_capacity=1)
    outlet = bench.decode_inbox if name == "intake" else bench.infer_inbox
    blocker: Batch = Batch([])
    outlet.put(blocker, bench.stop)
    with bench.running(stage.body(bench)) as (thread,):
        stage.feed(bench)
        wait_for(lambda: outlet._changed._waiters, "the stage waits for room")
        assert len(outlet) == 1
        assert thread.is_alive()
        assert outlet.get(0) is blocker
        seen = 0
        while seen < 2:
            piece = outlet.get(30)
            assert piece is not None
            seen += len(piece.items)
    assert seen == 2


@pytest.mark.parametrize("name", ["intake", "decode"])
def test_a_stop_ends_the_wait_for_room(name: str) -> None:
    """A stage that cannot hand over ends on stop without an error; its items stay uncommitted."""
    bench = Workbench(settings(intake={"batch_max_items": 1}), decode_capacity=1, infer_capacity=1)
    outlet = bench.decode_inbox if name == "intake" else bench.infer_inbox
    outlet.put(Batch([]), bench.stop)
    with bench.running(STAGES[name].body(bench)):
        STAGES[name].feed(bench)
        wait_for(lambda: outlet._changed._waiters, "the stage waits for room")
    assert bench.tracker.unfinished() == 3
    assert bench.tracker.committable() == {}


WAITS = pytest.mark.parametrize(
    ("name", "client"), [("intake", "store"), ("infer", "triton"), ("publish", "store"), ("publish", "producer")]
)


@WAITS
def test_a_dependency_that_is_away_is_waited_for(name: str, client: str) -> None:
    """Nothing comes out and nothing is rejected while it is away; afterwards all goes on by itself."""
    bench, stage = Workbench(), STAGES[name]
    dependency = {"store": bench.redis, "triton": bench.triton_server, "producer": bench.kafka}[client]
    getattr(bench, client).away = True
    with bench.running(stage.body(bench)):
        items = stage.feed(bench)
        wait_for(lambda: dependency.is_away, "the breaker opens")
        assert stage.good_out(bench) == 0
        assert items[0].rejected is None and items[2].rejected is None
        assert bench.tracker.committable() == {}
        getattr(bench, client).away = False
        wait_for(lambda: stage.good_out(bench) == 2, "the good items come out")
    assert not dependency.is_away
    assert items[0].rejected is None and items[2].rejected is None


@WAITS
def test_a_stop_ends_the_wait_for_a_dependency(name: str, client: str) -> None:
    """A worker can be stopped while something is away; what is unfinished stays uncommitted."""
    bench, stage = Workbench(), STAGES[name]
    dependency = {"store": bench.redis, "triton": bench.triton_server, "producer": bench.kafka}[client]
    getattr(bench, client).away = True
    with bench.running(stage.body(bench)):
        stage.feed(bench)
        wait_for(lambda: dependency.is_away, "the breaker opens")
    assert bench.tracker.committable() == {}
    assert bench.tracker.unfinished() == 3


def test_the_whole_line_ends_every_record_exactly_once() -> None:
    """Good, bad, repeated and poisonous images in random order, with every server away now and then: one outcome each."""
    rng = random.Random(7)
    bench = Workbench(
        settings(intake={"batch_max_items": 8}, triton={"max_attempts": 2}), decode_capacity=2, infer_capacity=1
    )
    bench.triton.poison, bench.triton.nan = {66}, {77}
    pool = {
        GOOD: None,
        OTHER: None,
        CUT: "corrupt",
        b"text": "unsupported_format",
        b"": "empty",
        image(66): "inference_failed",
        image(77): "inference_failed",
    }
    values = [rng.choice(list(pool)) for _ in range(120)]
    records = [
        record(offset // 2, value, partition=offset % 2, headers=[("ce_id", f"id-{rng.randrange(60)}".encode())])
        for offset, value in enumerate(values)
    ]
    with bench.running(*bench.line()):
        for start in range(0, 120, 10):
            client: Any = rng.choice([bench.store, bench.producer, bench.triton])
            client.away = True
            bench.take(*records[start : start + 10])
            bench.stop.wait(0.01)
            client.away = False
            bench.producer.refuse_next = rng.randrange(3)
        wait_for(lambda: bench.tracker.unfinished() == 0, "every record ends")
    assert bench.tracker.committable() == {0: 60, 1: 60}
    assert (bench.flow.items, bench.flow.bytes) == (0, 0)
    verdicts, rejected = bench.producer.to("images.verdicts"), bench.producer.to("images.rejected")
    assert len(verdicts) == sum(pool[value] is None for value in values)
    assert sorted((dict(one.headers)["reject_reason"] or b"").decode() for one in rejected) == sorted(
        why for value in values if (why := pool[value])
    )
    assert len({id(one) for one in bench.producer.sent}) == 120
    origins = [(dict(one.headers)["original_partition"], dict(one.headers)["original_offset"]) for one in rejected]
    assert len(set(origins)) == len(origins)
    assert bench.metric("assay_records_consumed_total") == 0  # counted by the poll loop, which is not part of the line
    assert sum(
        bench.metric("assay_rejections_total", reason=reason.value, stage=stage)
        for reason in RejectReason
        for stage in STAGES
    ) == len(rejected)


def test_the_later_record_of_an_id_wins() -> None:
    """Two images under one id: both verdicts are published, Redis keeps that of the later record."""
    bench = Workbench(settings(intake={"batch_max_items": 1}))
    records = [
        record(offset, value, headers=[("ce_id", b"same")])
        for offset, value in enumerate([image(red) for red in (250, 1, 200, 30)])
    ]
    with bench.running(*bench.line()):
        bench.take(*records)
        wait_for(lambda: bench.tracker.unfinished() == 0, "every record ends")
    assert len(bench.producer.to("images.verdicts")) == 4
    assert bench.store.verdicts["same"].decision == "real"
    assert bench.store.verdicts["same"].scores.linear == pytest.approx(30 / 255)


def test_a_revoked_partition_is_dropped_and_not_committed() -> None:
    """Results of a partition that is someone else's by now are not published; the other partition goes on."""
    bench = Workbench()
    bench.triton.away = True
    with bench.running(*bench.line()):
        items = bench.take(record(0, GOOD, partition=0), record(0, OTHER, partition=1))
        wait_for(lambda: bench.triton_server.is_away, "both wait for the model")
        bench.tracker.revoke([0])
        bench.triton.away = False
        wait_for(lambda: bench.flow.items == 0, "both have ended")
    assert [item.image_id for item in items if item.image_id in bench.store.verdicts] == [items[1].image_id]
    assert len(bench.producer.sent) == 1
    assert bench.tracker.committable() == {1: 1}
    assert (items[0].sha256, VERSION) in bench.store.images, (
        "its scores are kept, so that the new owner's redo is cheap"
    )
    assert bench.metric("assay_stale_results_total") == 1


def test_a_redelivered_record_gives_the_same_verdict() -> None:
    """Redone after a revocation, from the cache: the same id, the same scores digit for digit."""
    bench = Workbench()
    with bench.running(*bench.line()):
        for _ in range(2):
            bench.take(record(0, GOOD))
            wait_for(lambda: bench.tracker.unfinished() == 0, "the record ends")
            bench.tracker.revoke([0])
            bench.tracker.assign([0])
    first, second = (Verdict.model_validate_json(one.value or b"") for one in bench.producer.to("images.verdicts"))
    assert first.verdict_id == second.verdict_id
    assert first.scores == second.scores
    assert (first.source, second.source) == ("model", "cache")
    assert len(bench.triton.batches) == 1


def test_a_new_model_version_misses_the_cache() -> None:
    """Cached scores belong to one model version; another one judges anew."""
    bench = Workbench()
    with bench.running(*bench.line()):
        for offset in range(2):
            bench.take(record(offset, GOOD))
            wait_for(lambda: bench.tracker.unfinished() == 0, "the record ends")
            bench.triton.version = "ba9876543210"
            bench.watch.refresh()
    assert [len(batch) for batch in bench.triton.batches] == [1, 1]
    assert {version for _, version in bench.store.images} == {VERSION, "ba9876543210"}
