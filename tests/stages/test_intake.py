"""Intake: ids, limits, the cache, and batches by count, bytes or time."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from tests.odd_images import red_png as image
from tests.twins import VERSION, Workbench, judged, record, scores, settings, wait_for
from worker.clients.redis import ScoredImage
from worker.contract import REFERENCE_CONTENT_TYPE, Headers, ImageInfo, Omitted, Record
from worker.errors import Rejected, RejectReason
from worker.evidence import Evidence
from worker.examine.provenance.trust import reader_version
from worker.item import Encoded, Ended, Judgement

READER = reader_version(None)
EVIDENCE = Evidence(declared="generated", watermark="sdxl")


def rejected(bench: Workbench, one: Record) -> Ended:
    """What becomes of one record that is not good."""
    with bench.running("intake"):
        (item,) = bench.take(one)
        wait_for(lambda: len(bench.queues.ended), "the item is handed to the publisher")
    (ended,) = bench.published()
    assert ended.item is item
    return ended


def accepted(bench: Workbench, one: Record) -> Encoded:
    """What one good record is handed on as."""
    with bench.running("intake"):
        (item,) = bench.take(one)
        wait_for(lambda: len(bench.queues.encoded), "the image is handed to decoding")
    (encoded,) = bench.encoded()
    assert encoded.image.item is item
    return encoded


def test_an_item_learns_what_it_is() -> None:
    """Id and hash are known before anything of the image is read."""
    data = image(1, size=20)
    encoded = accepted(Workbench(), record(0, data, key=b"a-key", headers=[("content-type", b"text/html")]))
    assert (encoded.image.image_id, encoded.image.sha256) == ("a-key", hashlib.sha256(data).hexdigest())
    assert encoded.data == data


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (None, [], RejectReason.EMPTY),
        (b"", [], RejectReason.EMPTY),
        (image(1) + bytes(2_000_000), [], RejectReason.TOO_LARGE),
        (image(1), [("ce_id", b"\xff")], RejectReason.BAD_IMAGE_ID),
        (image(1), [("ce_id", b"a\nb")], RejectReason.BAD_IMAGE_ID),
        (b"", [("content-type", REFERENCE_CONTENT_TYPE.encode())], RejectReason.EMPTY),
        (b"{", [("content-type", REFERENCE_CONTENT_TYPE.encode())], RejectReason.BAD_REFERENCE),
    ],
)
def test_what_is_bad_goes_straight_to_the_publisher(
    value: bytes | None, headers: Headers, reason: RejectReason
) -> None:
    """Each with its reason; the id is known to the rejection wherever the record has a good one."""
    bench = Workbench(settings(limits={"max_image_bytes": 1_000_000}))
    ended = rejected(bench, record(0, value, key=b"k", headers=headers))
    assert isinstance(ended.outcome, Rejected)
    assert (ended.outcome.reason, ended.outcome.stage) == (reason, "intake")
    assert ended.outcome.detail
    assert ended.image_id == (None if reason is RejectReason.BAD_IMAGE_ID else "k")
    assert len(bench.queues.encoded) == 0


def test_a_batch_leaves_by_count() -> None:
    """Of nine that came together, two full batches leave and one with what is left."""
    bench = Workbench(settings(intake={"batch_max_items": 4}))
    with bench.running("intake"):
        bench.take(*[record(offset, image(offset)) for offset in range(9)])
        wait_for(lambda: len(bench.queues.encoded) == 3, "three batches leave")
    assert [len(batch) for batch in bench.queues.encoded.get_all(0)] == [4, 4, 1]


def test_a_batch_leaves_by_bytes() -> None:
    """An image that would take the batch beyond its bytes begins the next one; a larger one travels alone."""
    bench = Workbench(settings(intake={"batch_max_bytes": 10_000}))
    sizes = [4_000, 4_000, 4_000, 30_000, 100]
    with bench.running("intake"):
        bench.take(*[record(offset, image(offset).ljust(size, b"\0")) for offset, size in enumerate(sizes)])
        wait_for(lambda: len(bench.queues.encoded) == 4, "four batches leave")
    sent = [[len(encoded.data) for encoded in batch] for batch in bench.queues.encoded.get_all(0)]
    assert sent == [[4_000, 4_000], [4_000], [30_000], [100]]


def test_a_batch_leaves_by_time() -> None:
    """A lone image does not wait for company for ever."""
    bench = Workbench(settings(intake={"batch_max_items": 100, "batch_max_wait_ms": 1}))
    assert accepted(bench, record(0, image(1))).image.image_id


def known(bench: Workbench, data: bytes, version: str = VERSION, reader: str = READER) -> str:
    """Put the scores of `data` into the cache; returns its hash."""
    sha256 = hashlib.sha256(data).hexdigest()
    info = ImageInfo(format="png", width=16, height=16, bytes=1)
    bench.store.images[sha256, version] = ScoredImage(sha256, "older", version, scores(0.123), info, EVIDENCE, reader)
    return sha256


def test_known_bytes_skip_the_model() -> None:
    """A hit takes scores and header from the cache, its own size from its own bytes, and goes straight to the
    publisher.
    """
    bench, data = Workbench(), image(1)
    known(bench, data)
    with bench.running("intake"):
        bench.take(record(0, data, key=b"newer"))
        wait_for(lambda: len(bench.queues.ended), "the hit is handed to the publisher")
    (ended,) = bench.published()
    info = ImageInfo(format="png", width=16, height=16, bytes=len(data))
    assert ended.image_id == "newer"
    assert ended.outcome == Judgement(info, scores(0.123), VERSION, from_cache=True, evidence=EVIDENCE, reader=READER)
    assert bench.metric("assay_cache_lookups_total", result="hit") == 1


def test_evidence_of_another_reader_is_read_anew_and_the_scores_stay() -> None:
    """After a new trust list a hit is examined again, and the model is not asked."""
    bench, data = Workbench(), image(1)
    known(bench, data, reader="another")
    with bench.running():
        bench.take(record(0, data, key=b"newer"))
        wait_for(lambda: "newer" in bench.store.verdicts, "the verdict is stored")
    verdict = bench.store.verdicts["newer"]
    assert (verdict.source, verdict.scores, verdict.evidence) == ("cache", scores(0.123), Evidence())
    assert bench.triton.batches == []
    assert bench.store.images[hashlib.sha256(data).hexdigest(), VERSION].reader == READER


def test_another_model_s_scores_are_a_miss() -> None:
    """The cache answers for one model version."""
    bench, data = Workbench(), image(1)
    known(bench, data, "ba9876543210")
    accepted(bench, record(0, data))
    assert bench.metric("assay_cache_lookups_total", result="miss") == 1


def test_the_cache_can_be_switched_off() -> None:
    """Then nothing is asked of Redis here."""
    bench, data = Workbench(settings(cache={"enabled": False})), image(1)
    known(bench, data)
    accepted(bench, record(0, data))
    assert bench.store.calls == 0


def test_equal_bytes_are_decoded_once() -> None:
    """Of three records with the same bytes one goes on; the others wait for its result."""
    bench, data = Workbench(), image(1)
    with bench.running("intake"):
        items = bench.take(*[record(offset, data, key=b"k%d" % offset) for offset in range(3)])
        wait_for(lambda: len(bench.queues.encoded), "one goes on")
    (leader,) = bench.encoded()
    assert leader.image.item is items[0]
    assert bench.metric("assay_coalesced_items_total") == 2
    assert [ended.item for ended in bench.single_flight.land(judged(leader, 0.5))] == items[1:]


def test_one_look_up_for_all_that_came_together() -> None:
    """Redis is asked once for a poll's worth of records."""
    bench = Workbench()
    items = bench.take(*[record(offset, image(offset)) for offset in range(20)])
    with bench.running("intake"):
        wait_for(lambda: len(bench.queues.encoded), "they go on")
    assert bench.store.calls == 1
    assert len(bench.encoded()) == len(items)


def test_a_record_that_could_not_be_read_says_so() -> None:
    """Its id is what could be had of it; what else is wrong with it does not count."""
    bench = Workbench()
    broken = replace(record(0, b"", headers=[("ce_id", b"known")]), unreadable="the record is damaged: 20000 headers")
    nameless = replace(record(1, b"", headers=[("ce_id", b"\xff")]), unreadable="its batch is damaged")
    with bench.running("intake"):
        bench.take(broken, nameless)
        wait_for(lambda: len(bench.queues.ended), "both are handed to the publisher")
    known, unknown = bench.published()
    for ended in (known, unknown):
        assert isinstance(ended.outcome, Rejected)
        assert (ended.outcome.reason, ended.outcome.stage) == (RejectReason.UNREADABLE_RECORD, "poll")
    assert (known.image_id, unknown.image_id) == ("known", None)


def test_a_value_that_was_passed_over_is_too_large() -> None:
    """With the hash of what was there, also where the limit of images would have let it through."""
    bench = Workbench(settings(limits={"max_image_bytes": 1_000_000_000}))
    with bench.running("intake"):
        bench.take(replace(record(0, b""), omitted=Omitted(200_000_000, "a" * 64)))
        wait_for(lambda: len(bench.queues.ended), "it is handed to the publisher")
    (ended,) = bench.published()
    assert isinstance(ended.outcome, Rejected)
    assert (ended.outcome.reason, ended.sha256) == (RejectReason.TOO_LARGE, "a" * 64)
    assert "ASSAY_KAFKA__MAX_RECORD_BYTES" in ended.outcome.detail
