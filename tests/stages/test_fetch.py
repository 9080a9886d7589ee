"""References: fetched beside everything else, rejected for reasons of their own, waited for while a storage is away."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.odd_images import red_png as image
from tests.twins import Workbench, record, settings, wait_for
from worker.contract import REFERENCE_CONTENT_TYPE, ImageReference, Parked, Record, Source
from worker.errors import Rejected, RejectReason, Unavailable
from worker.item import Address, Encoded, Ended
from worker.parking import Parking
from worker.retry import BreakerState


def reference(offset: int, document: object) -> Record:
    value = json.dumps(document).encode()
    return record(offset, value, headers=[("content-type", REFERENCE_CONTENT_TYPE.encode())])


def rejected(bench: Workbench, one: Record) -> Ended:
    """What becomes of a reference that is not good."""
    with bench.running("intake", "fetch"):
        (item,) = bench.take(one)
        wait_for(lambda: len(bench.queues.ended), "the item is handed to the publisher")
    (ended,) = bench.published()
    assert ended.item is item
    return ended


def accepted(bench: Workbench, one: Record) -> Encoded:
    """What one good reference is handed on as."""
    with bench.running("intake", "fetch"):
        bench.take(one)
        wait_for(lambda: len(bench.queues.encoded), "the image is handed to decoding")
    (encoded,) = bench.encoded()
    return encoded


def allowing(root: Path) -> Workbench:
    return Workbench(
        settings(references={"schemes": ["file"], "file_roots": [str(root)]}, limits={"max_image_bytes": 100_000})
    )


def test_a_reference_becomes_the_image_behind_it(tmp_path: Path) -> None:
    """Its hash is that of the image, its id is its own, and what was fetched is counted."""
    data = image(1)
    (tmp_path / "a.png").write_bytes(data)
    document = {"uri": f"file://{tmp_path}/a.png", "sha256": hashlib.sha256(data).hexdigest(), "id": "named"}
    bench = allowing(tmp_path)
    encoded = accepted(bench, reference(0, document))
    item = encoded.image.item
    assert (encoded.image.image_id, encoded.data, encoded.image.sha256) == ("named", data, document["sha256"])
    assert bench.admission.bytes == item.record.size_bytes + len(data) == item.record.size_bytes + item.fetched_bytes
    assert bench.metric("assay_fetches_total", scheme="file", outcome="ok") == 1


@pytest.mark.parametrize(
    ("document", "reason", "image_id"),
    [
        ({"uri": "ROOT/missing.png", "id": "n"}, RejectReason.FETCH_FAILED, "n"),
        ({"uri": "file:///etc/hostname", "id": "n"}, RejectReason.FETCH_DENIED, "n"),
        ({"uri": "https://example.org/a.png", "id": "n"}, RejectReason.FETCH_DENIED, "n"),
        ({"uri": "ROOT/a.png", "sha256": "0" * 64}, RejectReason.HASH_MISMATCH, None),
        ({"uri": "ROOT/large.png"}, RejectReason.TOO_LARGE, None),
        ({"uri": "ROOT/empty.png"}, RejectReason.EMPTY, None),
        ({"url": "ROOT/a.png"}, RejectReason.BAD_REFERENCE, None),
        ({"uri": "ROOT/a.png", "id": "a\nb"}, RejectReason.BAD_IMAGE_ID, None),
    ],
)
def test_a_bad_reference_is_rejected(
    document: dict[str, str], reason: RejectReason, image_id: str | None, tmp_path: Path
) -> None:
    """Whatever is wrong with it or behind it, it gets its own reason and costs nobody else anything."""
    (tmp_path / "a.png").write_bytes(image(1))
    (tmp_path / "large.png").write_bytes(image(1).ljust(200_000, b"\0"))
    (tmp_path / "empty.png").write_bytes(b"")
    one = reference(0, {name: value.replace("ROOT", f"file://{tmp_path}") for name, value in document.items()})
    ended = rejected(allowing(tmp_path), one)
    assert isinstance(ended.outcome, Rejected)
    assert (ended.outcome.reason, ended.outcome.stage) == (reason, "intake")
    if image_id is not None:
        assert ended.image_id == image_id


def test_schemes_are_off_by_default(tmp_path: Path) -> None:
    """Without a setting that allows it nothing is read on a producer's word."""
    (tmp_path / "a.png").write_bytes(image(1))
    outcome = rejected(Workbench(), reference(0, {"uri": f"file://{tmp_path}/a.png"})).outcome
    assert isinstance(outcome, Rejected)
    assert outcome.reason is RejectReason.FETCH_DENIED


class FetcherTwin:
    """Away for the first `failures` fetches, then `answer`; `release` lets a fetch of a host go on."""

    def __init__(self, answer: bytes | Rejected, failures: int = 0) -> None:
        self._answer = answer
        self.failures = failures
        self.hold: dict[str, threading.Event] = {}
        self.asked: list[str] = []

    allowed = ("s3://bucket",)

    def address(self, reference: ImageReference) -> Address:
        host = "/".join(reference.uri.split("/", 3)[:3])
        return Address(host, host)

    def fetch(self, reference: ImageReference) -> bytes:
        host = self.address(reference).host
        self.asked.append(host)
        if host in self.hold:
            self.hold[host].wait(30)
        if self.failures:
            self.failures -= 1
            raise Unavailable("storage", "twin: away")
        if isinstance(self._answer, Rejected):
            raise self._answer
        return self._answer


def test_a_storage_that_is_away_for_a_moment_is_waited_for() -> None:
    """It gets a breaker of its own, the image is fetched once it is back, and nobody else pauses for it."""
    bench = Workbench(fetcher=FetcherTwin(image(1), failures=8))
    assert accepted(bench, reference(0, {"uri": "s3://bucket/key"})).data == image(1)
    assert bench.storages.states() == {"s3://bucket": BreakerState.CLOSED}
    assert bench.metric("assay_storage_state", storage="s3://bucket") == 0
    assert (len(bench.storages), bench.admission.references) == (0, 0)


def away(bench: Workbench, *records: Record) -> list[Ended]:
    """What becomes of references to a storage that stays away."""
    with bench.running("intake", "fetch"):
        bench.take(*records)
        wait_for(lambda: len(bench.queues.ended) == len(records), "each is handed to the publisher")
    assert bench.admission.references == 0
    return bench.published()


QUICKLY = {"wait_ms": 500, "retry_delay_s": 60, "give_up_s": 3600}


@pytest.mark.slow
def test_a_storage_that_stays_away_parks_its_references() -> None:
    """Until the delay has passed, with why and how often."""
    bench = Workbench(settings(references=QUICKLY), fetcher=FetcherTwin(image(1), failures=10_000))
    (ended,) = away(bench, reference(0, {"uri": "s3://bucket/key", "id": "r"}))
    assert isinstance(ended.outcome, Parking)
    assert (ended.image_id, ended.outcome.attempt, ended.outcome.detail) == ("r", 1, "twin: away")
    assert 0 <= ended.outcome.at_ms - ended.outcome.since_ms - 60_000 < 30_000
    assert bench.metric("assay_storage_state", storage="s3://bucket") == BreakerState.OPEN


def test_a_storage_that_is_back_is_asked_even_where_nothing_waits_for_it() -> None:
    """With no time to wait in place the first reference after the outage is the one that finds it back."""
    impatient = settings(references=QUICKLY | {"wait_ms": 0}, retry={"breaker_failures": 1})
    fetcher = FetcherTwin(image(1), failures=10_000)
    bench = Workbench(impatient, fetcher=fetcher)
    with bench.running("intake", "fetch"):
        bench.take(reference(0, {"uri": "s3://bucket/key"}))
        wait_for(lambda: len(bench.queues.ended), "the first is parked")
        fetcher.failures = 0
        bench.storages._storages["s3://bucket"].answered_at -= 60  # silent for a minute, and its breaker open
        time.sleep(0.01)  # the back-off is 5 ms at most
        bench.take(reference(1, {"uri": "s3://bucket/key"}))
        wait_for(lambda: len(bench.queues.encoded), "the second is fetched")
    (found,) = bench.encoded()
    assert (found.image.item.record.offset, found.data) == (1, image(1))


@pytest.mark.slow
def test_a_parked_reference_is_given_up_in_the_end() -> None:
    """Rejected with the number of attempts, counted from when it first came."""
    bench = Workbench(settings(references=QUICKLY), fetcher=FetcherTwin(image(1), failures=10_000))
    source = Source("images.incoming", 3, 42, 1)
    old = replace(reference(0, {"uri": "s3://bucket/key"}), parked=Parked(source, attempt=9, since_ms=1, retry_at_ms=2))
    young = replace(
        reference(1, {"uri": "s3://bucket/key"}),
        parked=Parked(source, attempt=2, since_ms=int(time.time() * 1000), retry_at_ms=2),
    )
    outcomes = {ended.item.record.offset: ended.outcome for ended in away(bench, old, young)}
    assert isinstance(outcomes[0], Rejected)
    assert (outcomes[0].reason, outcomes[0].attempts) == (RejectReason.FETCH_FAILED, 10)
    assert isinstance(outcomes[1], Parking)
    assert (outcomes[1].attempt, outcomes[1].since_ms) == (3, young.parked.since_ms if young.parked else 0)


@pytest.mark.slow
def test_without_a_retry_topic_a_reference_still_has_an_end() -> None:
    """It is rejected, and the setting is named."""
    bench = Workbench(settings(references=QUICKLY), fetcher=FetcherTwin(image(1), failures=10_000))
    bench.can_park = False
    (ended,) = away(bench, reference(0, {"uri": "s3://bucket/key"}))
    assert isinstance(ended.outcome, Rejected) and ended.outcome.reason is RejectReason.FETCH_FAILED
    assert "ASSAY_KAFKA__RETRY_TOPIC" in ended.outcome.detail


def test_a_slow_storage_leaves_the_others_their_fetchers() -> None:
    """However many references lead to it; it comes to an end itself."""
    fetcher = FetcherTwin(image(1))
    fetcher.hold["s3://slow"] = threading.Event()
    two = {"schemes": ["s3"], "s3_buckets": ["slow", "quick"], "concurrency": 4, "s3_region": "us-east-1"}
    bench = Workbench(settings(references=two), fetcher=fetcher)
    slow = [reference(number, {"uri": f"s3://slow/{number}"}) for number in range(20)]
    quick = [reference(100 + number, {"uri": f"s3://quick/{number}"}) for number in range(20)]
    with bench.running("intake", "fetch"):
        bench.take(*slow, *quick)
        wait_for(lambda: fetcher.asked.count("s3://quick") == 20, "the quick ones are fetched")
        assert fetcher.asked.count("s3://slow") <= 2
        fetcher.hold["s3://slow"].set()
        wait_for(lambda: fetcher.asked.count("s3://slow") == 20, "the slow ones are fetched")
        wait_for(lambda: bench.admission.references == 0, "nothing is left")


def test_a_defect_in_a_fetch_ends_the_stage() -> None:
    """What a fetch breaks with unexpectedly leaves the stage like any other defect: no record is lost in silence."""

    class Broken:
        allowed = ()

        def address(self, _reference: ImageReference) -> Address:
            return Address("s3://bucket", "s3://bucket")

        def fetch(self, _reference: ImageReference) -> bytes:
            raise ZeroDivisionError

    bench = Workbench(fetcher=Broken())
    bench.take(reference(0, {"uri": "s3://bucket/key"}))
    with pytest.raises(ZeroDivisionError), bench.running("intake", "fetch") as threads:
        wait_for(lambda: not all(thread.is_alive() for thread in threads), "the thread ends")


def test_a_storage_that_comes_back_with_a_refusal_is_back() -> None:
    """After an outage the object turns out to be gone: the image is rejected, and consumption does not stay paused for
    it.
    """
    gone = Rejected(RejectReason.FETCH_FAILED, "no such key", stage="intake")
    bench = Workbench(fetcher=FetcherTwin(gone, failures=8))
    assert rejected(bench, reference(0, {"uri": "s3://bucket/key"})).outcome is gone
    assert bench.storages.states() == {"s3://bucket": BreakerState.CLOSED}


def test_a_slow_fetch_holds_nobody_up() -> None:
    """While a reference is being fetched the images behind it go on."""
    fetcher = FetcherTwin(image(9))
    bench = Workbench(fetcher=fetcher)
    fetcher.hold["s3://b"] = threading.Event()
    with bench.running("intake", "fetch"):
        slow, quick = bench.take(reference(0, {"uri": "s3://b/k"}), record(1, image(1)))
        wait_for(lambda: len(bench.queues.encoded), "the image goes on")
        assert [encoded.image.item for encoded in bench.encoded()] == [quick]
        fetcher.hold["s3://b"].set()
        wait_for(lambda: len(bench.queues.encoded), "the reference goes on")
    assert [encoded.image.item for encoded in bench.encoded()] == [slow]


def test_a_made_up_scheme_is_no_label() -> None:
    """A producer cannot grow the metrics by inventing schemes."""
    bench = Workbench()
    rejected(bench, reference(0, {"uri": "gopher://x/y"}))
    assert "gopher" not in str(list(bench.metrics.registry.collect()))
