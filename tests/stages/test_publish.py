"""Publishing: Redis before Kafka, every acknowledgement waited for, nothing of a partition that was lost."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime

import pytest

from tests.twins import P0, P1, TOPIC, VERSION, Workbench, judged, record, scores, wait_for
from worker import __version__
from worker.contract import DetectorScores, Headers, ImageInfo, Parked, Record, Source, Verdict
from worker.errors import Rejected, RejectReason
from worker.evidence import Evidence
from worker.item import Encoded, Ended, Judgement
from worker.parking import Parking
from worker.rejections import REJECTION_HEADERS

TRACE = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
IMAGE = ImageInfo(format="png", width=640, height=480, bytes=1)  # as `judged` has it


def images(bench: Workbench, *records: Record, ids: str = "abcdefgh", shas: str = "12345678") -> list[Encoded]:
    """Identified images, one id and one hash each."""
    return bench.identified(*records, ids=ids, shas=shas)


def verdicts(encoded: list[Encoded]) -> list[Ended]:
    """The first scored 0.0, the next 0.1, and so on."""
    return [judged(one, number / 10) for number, one in enumerate(encoded)]


def items(bench: Workbench, *records: Record, ids: str = "abcdefgh", shas: str = "12345678") -> list[Ended]:
    """Judged images, one id and one hash each."""
    return verdicts(images(bench, *records, ids=ids, shas=shas))


def rejected(ended: Ended, reason: RejectReason = RejectReason.CORRUPT, stage: str = "decode") -> Ended:
    """The same image, rejected."""
    return replace(ended, outcome=Rejected(reason, "cut off", stage=stage, attempts=2))


def end(bench: Workbench, *pieces: list[Ended], ended: int) -> None:
    """Hand over each piece; returns once `ended` records are released."""
    there = bench.admission.items
    with bench.running("publish"):
        for piece in pieces:
            bench.queues.ended.put(piece, bench.stop)
        wait_for(lambda: bench.admission.items == there - ended, f"{ended} records end")


def test_redis_before_kafka() -> None:
    """A verdict is visible in Redis before its record appears."""
    bench = Workbench()
    end(bench, items(bench, record(0), record(1)), ended=2)
    assert bench.log == [("redis", "a"), ("redis", "b"), ("kafka", "a"), ("kafka", "b")]
    assert bench.tracker.committable() == {P0: 2}


def test_the_verdict_record() -> None:
    """Keyed by image id, the stored document as its value, the trace continued, the group as its source."""
    bench = Workbench()
    end(bench, items(bench, record(0, headers=[("traceparent", TRACE)])), ended=1)
    (sent,) = bench.producer.sent
    verdict = Verdict.model_validate_json(sent.value or b"")
    headers = dict(sent.headers)
    assert (sent.topic, sent.key) == ("images.verdicts", b"a")
    assert verdict == bench.store.verdicts["a"]
    assert verdict.timings_ms.queued == 1.0
    assert headers["ce_source"] == b"assay/assay-worker"
    assert headers["ce_id"] == str(verdict.verdict_id).encode()
    assert headers["traceparent"] == TRACE


def test_scores_go_into_the_cache_with_the_latest_id() -> None:
    """Whoever sends the same bytes again is answered from here; with what the file says, who read it, and what other
    detectors said.
    """
    bench = Workbench()
    [item] = items(bench, record(0))
    assert isinstance(item.outcome, Judgement)
    evidence, clip = Evidence(declared="edited"), DetectorScores(version="c" * 12, scores={"linear": 0.4})
    end(
        bench,
        [replace(item, outcome=replace(item.outcome, evidence=evidence, reader="r1", detectors={"clip": clip}))],
        ended=1,
    )
    stored = bench.store.images["1" * 64, VERSION]
    assert (stored.image_id, stored.scores, stored.image) == ("a", scores(0.0), IMAGE)
    assert (stored.evidence, stored.reader, stored.detectors) == (evidence, "r1", [clip])


OWN: Headers = [("ce_id", b"a"), ("x-tenant", b"\x00\xff"), ("x-tenant", None), ("reject_reason", b"too_large")]


@pytest.mark.parametrize(
    ("key", "value"), [(b"k", b"\x00bytes\xff"), (None, b"x"), (b"k", None), (None, None), (b"", b"")]
)
def test_a_rejection_is_the_record_as_it_came(key: bytes | None, value: bytes | None) -> None:
    """Key, value and headers byte for byte, with the reason, the stage and the origin added once."""
    bench = Workbench()
    (item,) = items(bench, record(5, value, key=key, partition=1, headers=OWN))
    end(bench, [rejected(item)], ended=1)
    (sent,) = bench.producer.sent
    assert (sent.topic, sent.key, sent.value) == ("images.rejected", key, value)
    assert sent.headers[:3] == OWN[:3]
    added = sent.headers[-sent.own_headers :]
    assert added == sent.headers[3:]
    assert {name for name, _ in added} == REJECTION_HEADERS
    assert dict(added) | {"sha256": b""} == {
        "reject_reason": b"corrupt",
        "reject_stage": b"decode",
        "reject_detail": b"cut off",
        "reject_attempts": b"2",
        "original_topic": b"images.incoming",
        "original_partition": b"1",
        "original_offset": b"5",
        "original_timestamp": str(item.item.record.timestamp_ms).encode(),
        "image_id": b"a",
        "sha256": b"",
        "worker_version": __version__.encode(),
        "model_version": VERSION.encode(),
    }
    assert bench.store.verdicts == {}
    assert bench.store.images == {}
    assert bench.tracker.committable() == {P1: 6}


def test_only_what_was_not_acknowledged_is_sent_again() -> None:
    """Of a batch with refusals the acknowledged records are not repeated."""
    bench = Workbench()
    bench.producer.refuse_next = 2
    end(bench, items(bench, record(0), record(1), record(2)), ended=3)
    assert sorted((one.key or b"").decode() for one in bench.producer.sent) == ["a", "b", "c"]
    assert bench.producer.calls == 2


def test_no_commit_before_the_acknowledgement() -> None:
    """While Kafka is away nothing is finished, although Redis has the verdict."""
    bench = Workbench()
    bench.producer.away = True
    made = items(bench, record(0))
    with bench.running("publish"):
        bench.queues.ended.put(made, bench.stop)
        wait_for(lambda: bench.kafka.is_away, "the breaker opens")
        assert "a" in bench.store.verdicts
        assert bench.tracker.committable() == {}
        bench.producer.away = False
        wait_for(lambda: bench.admission.items == 0, "the record ends")
    assert bench.tracker.committable() == {P0: 1}


def test_results_of_a_lost_partition_are_dropped() -> None:
    """No verdict, no rejection, no commit; the scores stay in the cache and the admission is freed."""
    bench = Workbench()
    first, second, kept = items(bench, record(0), record(1), record(0, partition=1))
    bench.tracker.revoke([P0])
    end(bench, [first, rejected(second), kept], ended=3)
    assert [one.key for one in bench.producer.sent] == [b"c"]
    assert set(bench.store.verdicts) == {"c"}
    assert ("1" * 64, VERSION) in bench.store.images
    assert bench.tracker.committable() == {P1: 1}
    assert bench.metric("assay_stale_results_total") == 2


def test_items_of_one_id_wait_for_the_one_before() -> None:
    """The later record is held until the earlier has ended, also where it was the faster one."""
    bench = Workbench()
    early, late, other = items(bench, record(0), record(1), record(2), ids="aab")
    with bench.running("publish"):
        bench.queues.ended.put([late, other], bench.stop)
        wait_for(lambda: bench.admission.items == 2, "the other id passes")
        assert [one.key for one in bench.producer.sent] == [b"b"]
        bench.queues.ended.put([early], bench.stop)
        wait_for(lambda: bench.admission.items == 0, "both end")
    order = [json.loads(one.value or b"")["scores"]["linear"] for one in bench.producer.sent if one.key == b"a"]
    assert order == [0.0, 0.1]
    assert bench.store.verdicts["a"].scores.linear == 0.1


def test_followers_end_with_their_leader() -> None:
    """Items with the same bytes get the leader's scores, as from the cache, each under its own id."""
    bench = Workbench()
    made = images(bench, record(0), record(1), record(2), shas="111")
    assert [bench.single_flight.join(one.image, bench.admission) for one in made] == [True, False, False]
    end(bench, verdicts(made[:1]), ended=3)
    assert {image_id: verdict.source for image_id, verdict in bench.store.verdicts.items()} == {
        "a": "model",
        "b": "cache",
        "c": "cache",
    }
    assert len({verdict.verdict_id for verdict in bench.store.verdicts.values()}) == 3
    assert {verdict.scores for verdict in bench.store.verdicts.values()} == {scores(0.0)}


def test_a_leader_does_not_wait_for_its_own_follower() -> None:
    """A reference that was sent twice: the second is fetched first and leads, the first follows it and stands before it
    in the line of its id.
    """
    bench = Workbench()
    first, second = images(bench, record(0), record(1), ids="aa", shas="11")
    assert [bench.single_flight.join(one.image, bench.admission) for one in (second, first)] == [True, False]
    with bench.running("publish"):
        bench.queues.ended.put(verdicts([second]), bench.stop)
        wait_for(lambda: bench.admission.items == 0, "both records end", patience_s=2)
    assert [one.key for one in bench.producer.sent] == [b"a", b"a"]
    assert bench.tracker.committable() == {P0: 2}


def test_what_was_set_aside_is_released_as_such() -> None:
    """Its share is free again for the next slow image."""
    bench = Workbench()
    slow, quick = items(bench, record(0), record(1))
    slow.item.set_aside(bench.admission)
    assert (bench.admission.items, bench.admission.aside) == (1, 1)
    with bench.running("publish"):
        bench.queues.ended.put([quick], bench.stop)
        bench.queues.ended.put([slow], bench.stop)
        wait_for(lambda: bench.admission.aside == 0, "the slow one ends")
    assert bench.admission.items == 0


def test_what_was_kept_for_a_detector_is_released_at_the_end() -> None:
    """Also where its bytes were fetched: a full admission would else wait for what nobody holds."""
    bench = Workbench()
    [item] = items(bench, record(0))
    item.item.hold_fetched(bench.admission, 500)
    item.item.kept = b"x" * 500
    end(bench, [item], ended=1)
    assert (bench.admission.bytes, bench.admission._fetched_bytes, item.item.kept) == (0, 0, None)


def test_the_first_of_an_id_does_not_wait_for_the_second() -> None:
    """Which is still on its way when the first has ended, and has its turn then."""
    bench = Workbench()
    first, second = items(bench, record(0), record(1), ids="aa")
    with bench.running("publish"):
        bench.queues.ended.put([first], bench.stop)
        wait_for(lambda: bench.admission.items == 1, "the first ends")
        bench.queues.ended.put([second], bench.stop)
        wait_for(lambda: bench.admission.items == 0, "the second ends")
    assert bench.tracker.committable() == {P0: 2}


def test_followers_of_several_leaders_end_with_them() -> None:
    """All of one batch."""
    bench = Workbench()
    one, follows_one, other, follows_other = images(bench, *map(record, range(4)), shas="1122")
    joined = [
        bench.single_flight.join(encoded.image, bench.admission) for encoded in (one, follows_one, other, follows_other)
    ]
    assert joined == [True, False, True, False]
    end(bench, [judged(one, 0.1), judged(other, 0.2)], ended=4)
    assert [bench.store.verdicts[name].scores.linear for name in "abcd"] == [0.1, 0.1, 0.2, 0.2]


def test_a_lost_partition_alone_asks_kafka_for_nothing() -> None:
    """Its scores go into the cache, and it ends although Kafka is away."""
    bench = Workbench()
    bench.producer.away = True
    lost = items(bench, record(0))
    bench.tracker.revoke([P0])
    end(bench, lost, ended=1)
    assert bench.producer.calls == 0
    assert ("1" * 64, VERSION) in bench.store.images


@pytest.mark.parametrize(
    ("key", "headers", "shown"),
    [
        (b"key", [("ce_id", b"bad\x00id")], "bad\x00id"),
        (b"key", [], "key"),
        (None, [], ""),
        (b"key", [("ce_id", b"\xff")], "\ufffd"),
        (b"k" * 300, [], "k" * 256),
    ],
)
def test_a_rejection_without_an_id_shows_what_there_was(key: bytes | None, headers: Headers, shown: str) -> None:
    """Who looks for the record finds it by what stood where the id should."""
    bench = Workbench()
    [item] = bench.admit(record(0, key=key, headers=headers))
    end(bench, [Ended(item, None, None, Rejected(RejectReason.BAD_IMAGE_ID, "no id", stage="intake"))], ended=1)
    [sent] = bench.producer.sent
    assert dict(sent.headers)["image_id"] == shown.encode()


def test_a_partition_lost_while_redis_is_away_is_not_written() -> None:
    """Whose the partition is, is asked in each attempt: the new owner's newer verdict is not overwritten by a late
    one.
    """
    bench = Workbench()
    bench.store.away = True
    with bench.running("publish"):
        bench.queues.ended.put(items(bench, record(0), record(0, partition=1)), bench.stop)
        wait_for(lambda: bench.redis.is_away, "both wait for Redis")
        bench.tracker.revoke([P0])
        bench.store.away = False
        wait_for(lambda: bench.admission.items == 0, "both end")
    assert set(bench.store.verdicts) == {"b"}
    assert [one.key for one in bench.producer.sent] == [b"b"]
    assert ("1" * 64, VERSION) in bench.store.images, "what was computed is kept for the new owner"


def test_a_partition_lost_while_kafka_is_away_is_not_produced() -> None:
    """The same before producing: a record that is somebody else's by now is theirs to publish."""
    bench = Workbench()
    bench.producer.away = True
    with bench.running("publish"):
        bench.queues.ended.put(items(bench, record(0), record(0, partition=1)), bench.stop)
        wait_for(lambda: bench.kafka.is_away, "both wait for Kafka")
        bench.tracker.revoke([P0])
        bench.producer.away = False
        wait_for(lambda: bench.admission.items == 0, "both end")
    assert [one.key for one in bench.producer.sent] == [b"b"]
    assert bench.metric("assay_stale_results_total") == 1


@pytest.mark.parametrize(("parked_offset", "wins"), [(3, 0.0), (9, 0.1)])
def test_a_parked_record_does_not_overwrite_a_later_one(parked_offset: int, wins: float) -> None:
    """It comes back after a minute; what has been judged of the same id since then stays in Redis, its record is
    produced.
    """
    bench = Workbench()
    parked = Parked(Source(TOPIC, 0, parked_offset, 1), attempt=1, since_ms=1, retry_at_ms=2)
    later, late = items(bench, record(5), replace(record(0, partition=1), parked=parked), ids="aa")
    end(bench, [later], [late], ended=2)
    assert bench.store.verdicts["a"].scores.linear == wins
    assert len(bench.producer.to("images.verdicts")) == 2
    assert bench.tracker.committable() == {P0: 6, P1: 1}


@pytest.mark.parametrize(("recorded", "wins"), [("before", 0.0), ("after", 0.1), ("never", 0.1)])
def test_a_record_that_is_judged_again_does_not_overwrite_a_later_one(recorded: str, wins: float) -> None:
    """A rewound worker may be ended before it comes to the later one again. What was judged before our record was there
    is of another topic by that name; a record without a time may be so too.
    """
    before, bench = Workbench(), Workbench()
    end(before, items(before, record(7), ids="a"), ended=1)
    bench.store.verdicts |= before.store.verdicts
    decided_ms = int(datetime.fromisoformat(before.store.verdicts["a"].decided_at).timestamp() * 1000)
    at_ms = {"before": decided_ms - 1000, "after": decided_ms + 1000, "never": -1}[recorded]
    [again] = images(bench, replace(record(5), timestamp_ms=at_ms), ids="a")
    end(bench, [judged(again, 0.1)], ended=1)
    assert bench.store.verdicts["a"].scores.linear == wins
    assert len(bench.producer.to("images.verdicts")) == 1


def test_a_parked_record_goes_to_the_retry_topic() -> None:
    """With where it came from; and with the rejection that takes its place where that topic refuses it."""
    bench = Workbench()
    (judged,) = items(bench, record(5, b"{}", key=b"k", partition=1, headers=[("ce_id", b"a")]))
    parking = Parking(at_ms=2_000, since_ms=1_000, attempt=3, detail="s3 is away")
    end(bench, [Ended(judged.item, "a", None, parking)], ended=1)
    (sent,) = bench.producer.sent
    assert (sent.topic, sent.key, sent.value) == ("images.retry", b"k", b"{}")
    headers = dict(sent.headers)
    assert (headers["retry_at"], headers["retry_attempt"]) == (b"2000", b"3")
    assert (headers["original_topic"], headers["original_offset"]) == (b"images.incoming", b"5")
    assert sent.instead is not None and sent.instead.topic == "images.rejected"
    instead = dict(sent.instead.headers)
    found = (instead["reject_reason"], instead["reject_stage"], instead["reject_attempts"])
    assert found == (b"fetch_failed", b"intake", b"3")
    assert bench.tracker.committable() == {P1: 6}
    assert bench.metric("assay_records_parked_total") == 1
