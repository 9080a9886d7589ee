"""What every stage owes the others, as one suite over all of them, and all together as a line.

A bad item leaves its batch with a reason and the others go on; a full queue makes a stage wait; a stop ends every wait;
a dependency that is away is waited for and costs no image; what belongs to a revoked partition is dropped.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from PIL import Image

from tests.odd_images import encode
from tests.twins import P0, P1, PATIENCE_S, VERSION, Workbench, judged, record, settings, tensor, wait_for
from worker.contract import ImageInfo, ImageReference, Verdict
from worker.errors import Rejected, RejectReason, Unavailable
from worker.item import Address, Decoded, DecodedBatch, Encoded, Item, Judgement, Referenced
from worker.queues import StageQueue

CROP = (224, 224)


def image(red: int) -> bytes:
    return encode(Image.new("RGB", CROP, (red, 0, 0)), "PNG")


GOOD, OTHER = image(10), image(20)
CUT = image(30)[:-40]


@dataclass(frozen=True)
class Case:
    """`feed` hands it one piece of three items, the middle one bad; `good_out` counts the good ones that came out."""

    feed: Callable[[Workbench], list[Item]]
    reason: RejectReason
    good_out: Callable[[Workbench], int]


def feed_intake(bench: Workbench) -> list[Item]:
    return bench.take(record(0, GOOD), record(1, b""), record(2, OTHER))


def identified(bench: Workbench, *values: bytes) -> list[Encoded]:
    """Images as Intake leaves them."""
    images = bench.identified(*[record(offset, value) for offset, value in enumerate(values)])
    assert all(bench.single_flight.join(encoded.image, bench.admission) for encoded in images)
    return images


def feed_fetch(bench: Workbench) -> list[Item]:
    values = [f"file://{name}" for name in ("good", "bad", "other")]
    items = bench.admit(*[record(offset, value.encode()) for offset, value in enumerate(values)])
    for item, uri in zip(items, values, strict=True):
        bench.order.enter(uri, item)
        bench.admission.admit_reference()
        bench.queues.references.put(Referenced(item, uri, ImageReference(uri=uri)), bench.stop)
    return items


def feed_decode(bench: Workbench) -> list[Item]:
    images = identified(bench, GOOD, CUT, OTHER)
    bench.queues.encoded.put(images, bench.stop)
    return [encoded.image.item for encoded in images]


def feed_infer(bench: Workbench) -> list[Item]:
    bench.triton.poison = {66}
    info = ImageInfo(format="png", width=224, height=224, bytes=1)
    images = [Decoded(encoded.image, info, 1.0) for encoded in identified(bench, GOOD, GOOD, GOOD)]
    bench.queues.decoded.put(DecodedBatch(images, tensor(10, 66, 20)), bench.stop)
    return [decoded.image.item for decoded in images]


def feed_publish(bench: Workbench) -> list[Item]:
    ended = [judged(encoded, 0.9) for encoded in identified(bench, GOOD, GOOD, GOOD)]
    ended[1] = replace(ended[1], outcome=Rejected(RejectReason.CORRUPT, "cut", stage="decode"))
    bench.queues.ended.put(ended, bench.stop)
    return [one.item for one in ended]


def fetched(bench: Workbench) -> int:
    return sum(len(piece) for piece in list(bench.queues.arrivals._pieces))


def batched(bench: Workbench) -> int:
    return sum(len(batch) for batch in list(bench.queues.encoded._pieces))


def inferable(bench: Workbench) -> int:
    return sum(len(batch.images) for batch in list(bench.queues.decoded._pieces))


def scored(bench: Workbench) -> int:
    waiting = [ended for piece in list(bench.queues.ended._pieces) for ended in piece]
    return sum(isinstance(ended.outcome, Judgement) for ended in waiting)


def stored(bench: Workbench) -> int:
    return len(bench.producer.to("images.verdicts"))


class FetcherTwin:
    """Two images behind references; `bad` leads nowhere."""

    allowed = ("file://",)

    def __init__(self) -> None:
        self.away = False

    def address(self, _reference: ImageReference) -> Address:
        return Address("file://", "file://")

    def fetch(self, reference: ImageReference) -> bytes:
        if self.away:
            raise Unavailable("storage", "twin: switched off")
        if reference.uri == "file://bad":
            raise Rejected(RejectReason.FETCH_FAILED, "no such file", stage="intake")
        return GOOD if reference.uri == "file://good" else OTHER


STAGES = {
    "intake": Case(feed_intake, RejectReason.EMPTY, batched),
    "fetch": Case(feed_fetch, RejectReason.FETCH_FAILED, fetched),
    "decode": Case(feed_decode, RejectReason.CORRUPT, inferable),
    "infer": Case(feed_infer, RejectReason.INFERENCE_FAILED, scored),
    "publish": Case(feed_publish, RejectReason.CORRUPT, stored),
}
EACH = pytest.mark.parametrize("name", STAGES)


def rejections(bench: Workbench) -> dict[Item, str]:
    """The reason of each rejected item, waiting for the publisher or published."""
    waiting = [ended for piece in list(bench.queues.ended._pieces) for ended in piece]
    return {ended.item: ended.outcome.reason for ended in waiting if isinstance(ended.outcome, Rejected)}


@EACH
def test_a_bad_item_leaves_its_batch_and_the_others_go_on(name: str) -> None:
    """One of three is bad: it gets its reason, and the two beside it go their way unharmed."""
    bench, case = Workbench(fetcher=FetcherTwin()), STAGES[name]
    with bench.running(name):
        items = case.feed(bench)
        wait_for(lambda: case.good_out(bench) == 2, "two good items come out")
        if name == "publish":
            wait_for(lambda: bench.admission.items == 0, "all end")
            (rejected,) = bench.producer.to("images.rejected")
            assert dict(rejected.headers)["reject_reason"] == case.reason.encode()
            return
        wait_for(lambda: rejections(bench), "the bad one is rejected")
    assert rejections(bench) == {items[1]: case.reason}


@EACH
def test_an_idle_stage_ends_on_stop(name: str) -> None:
    """A stage that waits for work hears the stop, and has made nothing up meanwhile."""
    bench = Workbench()
    with bench.running(name) as threads:
        assert all(thread.is_alive() for thread in threads)
    assert not any(thread.is_alive() for thread in threads)
    assert STAGES[name].good_out(bench) == 0 and not rejections(bench)


@EACH
def test_a_step_without_work_returns(name: str) -> None:
    """With nothing waiting, a step comes back by itself: the loop that drives it looks at the stop in between."""
    bench = Workbench()
    stage = bench.driven(name).stage
    thread = threading.Thread(target=stage.step, args=(0.0,), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the step waits for more than it was given"
    stage.close()
    assert STAGES[name].good_out(bench) == 0 and not rejections(bench)


@pytest.mark.parametrize("name", ["intake", "decode"])
def test_a_full_queue_makes_the_stage_wait(name: str) -> None:
    """With the queue behind it full, a stage holds its piece; it goes on once there is place, and loses nothing."""
    bench = Workbench(settings(intake={"batch_max_items": 1}), encoded_capacity=1, decoded_capacity=1)
    outlet: StageQueue[Any] = bench.queues.encoded if name == "intake" else bench.queues.decoded
    blocker: Any = object()
    outlet.put(blocker, bench.stop)
    with bench.running(name) as (thread,):
        STAGES[name].feed(bench)
        wait_for(lambda: outlet._changed._waiters, "the stage waits for a free place")
        assert len(outlet) == 1
        assert thread.is_alive()
        assert outlet.get(0) is blocker
        seen = 0
        while seen < 2:
            piece = outlet.get(30)
            assert piece is not None
            seen += len(piece) if name == "intake" else len(piece.images)
    assert seen == 2


@pytest.mark.parametrize("name", ["intake", "decode"])
def test_a_stop_ends_the_wait_at_a_full_queue(name: str) -> None:
    """A stage that cannot hand over ends on stop without an error; its items stay uncommitted."""
    bench = Workbench(settings(intake={"batch_max_items": 1}), encoded_capacity=1, decoded_capacity=1)
    outlet: StageQueue[Any] = bench.queues.encoded if name == "intake" else bench.queues.decoded
    outlet.put(object(), bench.stop)
    with bench.running(name):
        STAGES[name].feed(bench)
        wait_for(lambda: outlet._changed._waiters, "the stage waits for a free place")
    assert bench.tracker.unfinished() == 3
    assert bench.tracker.committable() == {}


WAITS = pytest.mark.parametrize(
    ("name", "client"), [("intake", "store"), ("infer", "triton"), ("publish", "store"), ("publish", "producer")]
)


@WAITS
def test_a_dependency_that_is_away_is_waited_for(name: str, client: str) -> None:
    """Nothing comes out and nothing is rejected while it is away; afterwards all goes on by itself."""
    bench, case = Workbench(), STAGES[name]
    dependency = {"store": bench.redis, "triton": bench.triton_server, "producer": bench.kafka}[client]
    getattr(bench, client).away = True
    with bench.running(name):
        items = case.feed(bench)
        wait_for(lambda: dependency.is_away, "the breaker opens")
        assert case.good_out(bench) == 0
        assert not rejections(bench).keys() & {items[0], items[2]}
        assert bench.tracker.committable() == {}
        getattr(bench, client).away = False
        wait_for(lambda: case.good_out(bench) == 2, "the good items come out")
    assert not dependency.is_away
    assert not rejections(bench).keys() & {items[0], items[2]}


@WAITS
def test_a_stop_ends_the_wait_for_a_dependency(name: str, client: str) -> None:
    """A worker can be stopped while something is away; what is unfinished stays uncommitted."""
    bench, case = Workbench(), STAGES[name]
    dependency = {"store": bench.redis, "triton": bench.triton_server, "producer": bench.kafka}[client]
    getattr(bench, client).away = True
    with bench.running(name):
        case.feed(bench)
        wait_for(lambda: dependency.is_away, "the breaker opens")
    assert bench.tracker.committable() == {}
    assert bench.tracker.unfinished() == 3


def test_the_whole_line_ends_every_record_exactly_once() -> None:
    """Good, bad, repeated and poisonous images in random order, with every server away now and then: one outcome
    each.
    """
    rng = random.Random(7)
    bench = Workbench(
        settings(intake={"batch_max_items": 8}, triton={"max_attempts": 2}), encoded_capacity=2, decoded_capacity=1
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
    with bench.running():
        for start in range(0, 120, 10):
            client: Any = rng.choice([bench.store, bench.producer, bench.triton])
            client.away = True
            bench.take(*records[start : start + 10])
            bench.stop.wait(0.01)
            client.away = False
            bench.producer.refuse_next = rng.randrange(3)
        wait_for(lambda: bench.tracker.unfinished() == 0, "every record ends")
    assert bench.tracker.committable() == {P0: 60, P1: 60}
    assert (bench.admission.items, bench.admission.bytes) == (0, 0)
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
    with bench.running():
        bench.take(*records)
        wait_for(lambda: bench.tracker.unfinished() == 0, "every record ends")
    assert len(bench.producer.to("images.verdicts")) == 4
    assert bench.store.verdicts["same"].decision == "real"
    assert bench.store.verdicts["same"].scores.linear == pytest.approx(30 / 255)


def test_a_revoked_partition_is_dropped_and_not_committed() -> None:
    """Results of a partition that is someone else's by now are not published; the other partition goes on."""
    bench = Workbench()
    bench.triton.away = True
    with bench.running():
        bench.take(record(0, GOOD, partition=0), record(0, OTHER, partition=1))
        wait_for(lambda: bench.triton_server.is_away, "both wait for the model")
        bench.tracker.revoke([P0])
        bench.triton.away = False
        wait_for(lambda: bench.admission.items == 0, "both have ended")
    assert set(bench.store.verdicts) == {hashlib.sha256(OTHER).hexdigest()}
    assert len(bench.producer.sent) == 1
    assert bench.tracker.committable() == {P1: 1}
    assert (hashlib.sha256(GOOD).hexdigest(), VERSION) in bench.store.images, (
        "its scores are kept, so that the new owner's redo is cheap"
    )
    assert bench.metric("assay_stale_results_total") == 1


def test_a_redelivered_record_gives_the_same_verdict() -> None:
    """Redone after a revocation, from the cache: the same id, the same scores digit for digit."""
    bench = Workbench()
    with bench.running():
        for _ in range(2):
            bench.take(record(0, GOOD))
            wait_for(lambda: bench.tracker.unfinished() == 0, "the record ends")
            bench.tracker.revoke([P0])
            bench.tracker.assign([P0])
    first, second = (Verdict.model_validate_json(one.value or b"") for one in bench.producer.to("images.verdicts"))
    assert first.verdict_id == second.verdict_id
    assert first.scores == second.scores
    assert (first.source, second.source) == ("model", "cache")
    assert len(bench.triton.batches) == 1


def test_a_new_model_version_misses_the_cache() -> None:
    """Cached scores belong to one model version; another one judges anew."""
    bench = Workbench()
    with bench.running():
        for offset in range(2):
            bench.take(record(offset, GOOD))
            wait_for(lambda: bench.tracker.unfinished() == 0, "the record ends")
            bench.triton.version = "ba9876543210"
            bench.model.refresh()
    assert [len(batch) for batch in bench.triton.batches] == [1, 1]
    assert {version for _, version in bench.store.images} == {VERSION, "ba9876543210"}
