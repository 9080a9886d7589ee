"""The headers of a rejection: what is added, replaced, stripped by a replay, and left out."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.contents import SHA, record
from tests.properties import given
from worker.contract import (
    Headers,
    Record,
)
from worker.errors import Rejected, RejectReason
from worker.rejections import REJECTION_HEADERS, rejection_headers, without_rejection_headers

OWN_HEADERS = st.lists(
    st.tuples(st.text(min_size=1).filter(lambda name: name not in REJECTION_HEADERS), st.none() | st.binary()),
    max_size=5,
)


REJECTED = Rejected(RejectReason.CORRUPT, "cannot be decoded: ü", stage="decode", attempts=2)


def rejection(
    received: Record, rejected: Rejected = REJECTED, *, image_id: str | None = "a", sha256: str | None = SHA
) -> Headers:
    return rejection_headers(
        received, rejected, image_id=image_id, sha256=sha256, worker_version="1.2.3", model_version="0123456789ab"
    )


def test_the_rejection_headers() -> None:
    """Why, where, how often, and where the record came from."""
    assert dict(rejection(record())) == {
        "reject_reason": b"corrupt",
        "reject_stage": b"decode",
        "reject_detail": "cannot be decoded: ü".encode(),
        "reject_attempts": b"2",
        "original_topic": b"images.incoming",
        "original_partition": b"3",
        "original_offset": b"42",
        "original_timestamp": b"1795262400000",
        "image_id": b"a",
        "sha256": SHA.encode(),
        "worker_version": b"1.2.3",
        "model_version": b"0123456789ab",
    }


@given(OWN_HEADERS)
def test_received_headers_come_first_and_as_they_were(headers: Headers) -> None:
    """Repeated names, empty and null values and their order are the producer's business."""
    assert rejection(record(headers=headers))[: len(headers)] == headers


@given(OWN_HEADERS)
def test_a_second_rejection_replaces_the_first(headers: Headers) -> None:
    """Rejected again after a replay, a record carries one set of our headers: the latest."""
    once = rejection(record(headers=headers), Rejected(RejectReason.TOO_LARGE, "too large", stage="intake"))
    twice = rejection(record(headers=once))
    assert twice == rejection(record(headers=headers))
    names = [name for name, _ in twice if name in REJECTION_HEADERS]
    assert sorted(names) == sorted(set(names))


@given(OWN_HEADERS)
def test_what_replay_puts_back_is_what_was_sent(headers: Headers) -> None:
    """Stripping a rejection's headers gives the producer's own."""
    assert without_rejection_headers(rejection(record(headers=headers))) == headers


def test_what_is_not_known_is_left_out() -> None:
    """A reference that could not be fetched has no hash, a bad id no id: no header says `None`."""
    headers = dict(
        rejection_headers(record(), REJECTED, image_id=None, sha256=None, worker_version="1", model_version=None)
    )
    assert not {"image_id", "sha256", "model_version"} & set(headers)


def test_a_long_detail_is_cut_and_odd_text_survives() -> None:
    """A decoder's message of any length or kind cannot make the rejection fail."""
    headers = dict(rejection(record(), Rejected(RejectReason.CORRUPT, "\ud800" * 5000, stage="decode")))
    assert headers["reject_detail"] == b"?" * 1024


def test_every_header_we_add_is_stripped() -> None:
    """The list that replay strips by is the list that a rejection adds."""
    assert {name for name, _ in rejection(record())} == REJECTION_HEADERS
