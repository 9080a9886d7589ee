"""Intake: ids, limits, references, the cache, and batches by count, bytes or time."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest
from PIL import Image

from tests.odd_images import encode, png
from tests.twins import VERSION, Workbench, record, scores, settings, wait_for
from worker.clients.redis import ScoredImage
from worker.contract import REFERENCE_CONTENT_TYPE, Headers, ImageInfo, ImageReference
from worker.errors import Rejected, RejectReason, Unavailable
from worker.item import Item


def image(red: int, size: int = 16) -> bytes:
    return encode(Image.new("RGB", (size, size), (red, 0, 0)), "PNG")


def reference(offset: int, document: object, headers: Headers | None = None) -> object:
    value = document if isinstance(document, bytes) else json.dumps(document).encode()
    return record(offset, value, headers=[("content-type", REFERENCE_CONTENT_TYPE.encode()), *(headers or [])])


def batched(bench: Workbench) -> list[Item]:
    items = []
    while (batch := bench.decode_inbox.get(0)) is not None:
        items += batch.items
    return items


def rejected(bench: Workbench, one: object) -> tuple[Item, Rejected]:
    """What becomes of one record that is not good."""
    with bench.running(bench.intake().run):
        (item,) = bench.take(one)  # type: ignore[arg-type]
        wait_for(lambda: len(bench.publish_inbox), "the item is handed to the publisher")
    assert bench.published() == [item]
    assert item.rejected is not None
    assert item.rejected.stage == "intake"
    return item, item.rejected


def accepted(bench: Workbench, one: object, fetcher: object = None) -> Item:
    with bench.running(bench.intake(fetcher).run):
        (item,) = bench.take(one)  # type: ignore[arg-type]
        wait_for(lambda: len(bench.decode_inbox), "the item is handed to decoding")
    assert batched(bench) == [item]
    return item


def test_an_item_learns_what_it_is() -> None:
    """Id, hash, format and size are known before anything is decoded."""
    data = image(1, size=20)
    item = accepted(Workbench(), record(0, data, key=b"a-key", headers=[("content-type", b"text/html")]))
    assert (item.image_id, item.sha256, item.data) == ("a-key", hashlib.sha256(data).hexdigest(), data)
    assert item.image == ImageInfo(format="png", width=20, height=20, bytes=len(data))


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (None, [], RejectReason.EMPTY),
        (b"", [], RejectReason.EMPTY),
        (b"<html>", [], RejectReason.UNSUPPORTED_FORMAT),
        (png(20_000, 20_000), [], RejectReason.TOO_MANY_PIXELS),
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
    item, why = rejected(bench, record(0, value, key=b"k", headers=headers))
    assert why.reason is reason
    assert why.detail
    assert item.image_id == (None if reason is RejectReason.BAD_IMAGE_ID else "k")
    assert len(bench.decode_inbox) == 0


def test_a_batch_leaves_by_count() -> None:
    """Of nine that came together, two full batches leave and one with what is left."""
    bench = Workbench(settings(intake={"batch_max_items": 4}))
    with bench.running(bench.intake().run):
        bench.take(*[record(offset, image(offset)) for offset in range(9)])
        wait_for(lambda: len(bench.decode_inbox) == 3, "three batches leave")
    assert [len(batch.items) for batch in list(bench.decode_inbox._pieces)] == [4, 4, 1]


def test_a_batch_leaves_by_bytes() -> None:
    """An image that would take the batch beyond its bytes begins the next one; a larger one travels alone."""
    bench = Workbench(settings(intake={"batch_max_bytes": 10_000}))
    sizes = [4_000, 4_000, 4_000, 30_000, 100]
    with bench.running(bench.intake().run):
        bench.take(*[record(offset, image(offset).ljust(size, b"\0")) for offset, size in enumerate(sizes)])
        wait_for(lambda: len(bench.decode_inbox) == 4, "four batches leave")
    sent = [[len(item.data) for item in batch.items] for batch in list(bench.decode_inbox._pieces)]
    assert sent == [[4_000, 4_000], [4_000], [30_000], [100]]


def test_a_batch_leaves_by_time() -> None:
    """A lone image does not wait for company for ever."""
    bench = Workbench(settings(intake={"batch_max_items": 100, "batch_max_wait_ms": 1}))
    assert accepted(bench, record(0, image(1))).image_id is not None


def known(bench: Workbench, data: bytes, version: str = VERSION) -> str:
    """Put the scores of `data` into the cache; returns its hash."""
    sha256 = hashlib.sha256(data).hexdigest()
    info = ImageInfo(format="png", width=16, height=16, bytes=1)
    bench.store.images[sha256, version] = ScoredImage(sha256, "older", version, scores(0.123), info)
    return sha256


def test_known_bytes_skip_the_model() -> None:
    """A hit takes scores and header from the cache, its own size from its own bytes, and goes straight to the publisher."""
    bench, data = Workbench(), image(1)
    known(bench, data)
    with bench.running(bench.intake().run):
        (item,) = bench.take(record(0, data, key=b"newer"))
        wait_for(lambda: len(bench.publish_inbox), "the hit is handed to the publisher")
    assert (item.scores, item.model_version, item.from_cache, item.image_id) == (scores(0.123), VERSION, True, "newer")
    assert item.image == ImageInfo(format="png", width=16, height=16, bytes=len(data))
    assert (item.decode_ms, item.infer_ms) == (None, None)
    assert bench.metric("assay_cache_lookups_total", result="hit") == 1


def test_another_model_s_scores_are_a_miss() -> None:
    """The cache answers for one model version."""
    bench, data = Workbench(), image(1)
    known(bench, data, "ba9876543210")
    assert accepted(bench, record(0, data)).scores is None
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
    with bench.running(bench.intake().run):
        items = bench.take(*[record(offset, data, key=b"k%d" % offset) for offset in range(3)])
        wait_for(lambda: len(bench.decode_inbox), "one goes on")
    assert batched(bench) == items[:1]
    assert bench.metric("assay_coalesced_items_total") == 2
    assert bench.single_flight.land(items[0]) == items[1:]


def test_one_look_up_for_all_that_came_together() -> None:
    """Redis is asked once for a poll's worth of records."""
    bench = Workbench()
    intake = bench.intake()
    items = bench.take(*[record(offset, image(offset)) for offset in range(20)])
    with bench.running(intake.run):
        wait_for(lambda: len(bench.decode_inbox), "they go on")
    assert bench.store.calls == 1
    assert len(batched(bench)) == len(items)


# References.


def allowing(root: Path) -> Workbench:
    return Workbench(
        settings(references={"schemes": ["file"], "file_roots": [str(root)]}, limits={"max_image_bytes": 100_000})
    )


def test_a_reference_becomes_the_image_behind_it(tmp_path: Path) -> None:
    """Its hash and size are those of the image, its id is its own, and the flow counts what was fetched."""
    data = image(1)
    (tmp_path / "a.png").write_bytes(data)
    document = {"uri": f"file://{tmp_path}/a.png", "sha256": hashlib.sha256(data).hexdigest(), "id": "named"}
    bench = allowing(tmp_path)
    item = accepted(bench, reference(0, document))
    assert (item.image_id, item.data, item.sha256) == ("named", data, document["sha256"])
    assert item.held_bytes == bench.flow.bytes == len(item.record.value or b"") + len(data)
    assert bench.metric("assay_fetches_total", scheme="file", outcome="ok") == 1


@pytest.mark.parametrize(
    ("document", "reason", "image_id"),
    [
        ({"uri": "ROOT/missing.png", "id": "n"}, RejectReason.FETCH_FAILED, "n"),
        ({"uri": "file:///etc/hostname", "id": "n"}, RejectReason.FETCH_DENIED, "n"),
        ({"uri": "https://example.org/a.png", "id": "n"}, RejectReason.FETCH_DENIED, "n"),
        ({"uri": "ROOT/a.png", "sha256": "0" * 64}, RejectReason.HASH_MISMATCH, None),
        ({"uri": "ROOT/large.png"}, RejectReason.TOO_LARGE, None),
        ({"uri": "ROOT/text.png"}, RejectReason.UNSUPPORTED_FORMAT, None),
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
    (tmp_path / "text.png").write_bytes(b"text")
    (tmp_path / "empty.png").write_bytes(b"")
    one = reference(0, {name: value.replace("ROOT", f"file://{tmp_path}") for name, value in document.items()})
    item, why = rejected(allowing(tmp_path), one)
    assert why.reason is reason
    if image_id is not None:
        assert item.image_id == image_id


def test_schemes_are_off_by_default(tmp_path: Path) -> None:
    """Without a setting that allows it nothing is read on a producer's word."""
    (tmp_path / "a.png").write_bytes(image(1))
    _, why = rejected(Workbench(), reference(0, {"uri": f"file://{tmp_path}/a.png"}))
    assert why.reason is RejectReason.FETCH_DENIED


class FetcherTwin:
    """Away for the first `failures` fetches, then `answer`; `release` lets a fetch go on."""

    def __init__(self, answer: bytes | Rejected, failures: int = 0) -> None:
        self._answer = answer
        self.failures = failures
        self.release = threading.Event()
        self.release.set()

    def fetch(self, _reference: ImageReference) -> bytes:
        self.release.wait(30)
        if self.failures:
            self.failures -= 1
            raise Unavailable("storage", "twin: away")
        if isinstance(self._answer, Rejected):
            raise self._answer
        return self._answer


def test_a_storage_that_is_away_is_waited_for() -> None:
    """It gets a breaker of its own, and the image is fetched once it is back."""
    bench = Workbench()
    item = accepted(bench, reference(0, {"uri": "s3://Bucket/key"}), FetcherTwin(image(1), failures=8))
    assert item.rejected is None
    assert {place: storage.is_away for place, storage in bench.storages.items()} == {"s3://bucket": False}


def test_a_defect_in_a_fetch_ends_the_room() -> None:
    """What a fetch breaks with unexpectedly leaves the room like any other defect: no record is lost in silence."""

    class Broken:
        def fetch(self, _reference: ImageReference) -> bytes:
            raise ZeroDivisionError

    bench = Workbench()
    intake = bench.intake(Broken())
    bench.take(reference(0, {"uri": "s3://bucket/key"}))  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        intake.run()


def test_a_storage_that_comes_back_with_a_refusal_is_back() -> None:
    """After an outage the object turns out to be gone: the image is rejected, and consumption does not stay paused for it."""
    bench = Workbench()
    gone = Rejected(RejectReason.FETCH_FAILED, "no such key", stage="intake")
    with bench.running(bench.intake(FetcherTwin(gone, failures=8)).run):  # type: ignore[arg-type]
        bench.take(reference(0, {"uri": "s3://bucket/key"}))  # type: ignore[arg-type]
        wait_for(lambda: len(bench.publish_inbox), "the item is rejected")
    assert not any(storage.is_away for storage in bench.storages.values())


def test_a_slow_fetch_holds_nobody_up() -> None:
    """While a reference is being fetched the images behind it go on."""
    bench, fetcher = Workbench(), FetcherTwin(image(9))
    fetcher.release.clear()
    with bench.running(bench.intake(fetcher).run):
        slow, quick = bench.take(reference(0, {"uri": "s3://b/k"}), record(1, image(1)))  # type: ignore[arg-type]
        wait_for(lambda: len(bench.decode_inbox), "the image goes on")
        assert batched(bench) == [quick]
        fetcher.release.set()
        wait_for(lambda: len(bench.decode_inbox), "the reference goes on")
    assert batched(bench) == [slow]


def test_a_made_up_scheme_is_no_label() -> None:
    """A producer cannot grow the metrics by inventing schemes."""
    bench = Workbench()
    rejected(bench, reference(0, {"uri": "gopher://x/y"}))
    assert "gopher" not in str(list(bench.metrics.registry.collect()))
