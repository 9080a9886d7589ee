"""References: fetched beside everything else, rejected for reasons of their own, waited for while a storage is away."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest
from PIL import Image

from tests.odd_images import encode
from tests.twins import Workbench, record, settings, wait_for
from worker.contract import REFERENCE_CONTENT_TYPE, ImageReference, Record
from worker.errors import Rejected, RejectReason, Unavailable
from worker.item import Encoded, Ended


def image(red: int, size: int = 16) -> bytes:
    return encode(Image.new("RGB", (size, size), (red, 0, 0)), "PNG")


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
    assert item.held_bytes == bench.admission.bytes == item.record.size_bytes + len(data)
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
    bench = Workbench(fetcher=FetcherTwin(image(1), failures=8))
    assert accepted(bench, reference(0, {"uri": "s3://Bucket/key"})).data == image(1)
    assert {place: storage.is_away for place, storage in bench.storages.breakers().items()} == {"s3://bucket": False}


def test_a_defect_in_a_fetch_ends_the_stage() -> None:
    """What a fetch breaks with unexpectedly leaves the stage like any other defect: no record is lost in silence."""

    class Broken:
        def fetch(self, _reference: ImageReference) -> bytes:
            raise ZeroDivisionError

    bench = Workbench(fetcher=Broken())
    bench.take(reference(0, {"uri": "s3://bucket/key"}))
    with pytest.raises(ZeroDivisionError), bench.running("intake", "fetch") as threads:
        wait_for(lambda: not all(thread.is_alive() for thread in threads), "the thread ends")


def test_a_storage_that_comes_back_with_a_refusal_is_back() -> None:
    """After an outage the object turns out to be gone: the image is rejected, and consumption does not stay paused for it."""
    gone = Rejected(RejectReason.FETCH_FAILED, "no such key", stage="intake")
    bench = Workbench(fetcher=FetcherTwin(gone, failures=8))
    assert rejected(bench, reference(0, {"uri": "s3://bucket/key"})).outcome is gone
    assert not any(storage.is_away for storage in bench.storages.breakers().values())


def test_a_slow_fetch_holds_nobody_up() -> None:
    """While a reference is being fetched the images behind it go on."""
    fetcher = FetcherTwin(image(9))
    bench = Workbench(fetcher=fetcher)
    fetcher.release.clear()
    with bench.running("intake", "fetch"):
        slow, quick = bench.take(reference(0, {"uri": "s3://b/k"}), record(1, image(1)))
        wait_for(lambda: len(bench.queues.encoded), "the image goes on")
        assert [encoded.image.item for encoded in bench.encoded()] == [quick]
        fetcher.release.set()
        wait_for(lambda: len(bench.queues.encoded), "the reference goes on")
    assert [encoded.image.item for encoded in bench.encoded()] == [slow]


def test_a_made_up_scheme_is_no_label() -> None:
    """A producer cannot grow the metrics by inventing schemes."""
    bench = Workbench()
    rejected(bench, reference(0, {"uri": "gopher://x/y"}))
    assert "gopher" not in str(list(bench.metrics.registry.collect()))
