"""Records of the retry topic: what they say, and back to what was received."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from tests.properties import given
from tests.twins import record
from worker.contract import Headers, Parked, Source
from worker.parking import RETRY_HEADERS, Parking, parked_headers, unparked

PARKING = Parking(at_ms=1_796_000_060_000, since_ms=1_796_000_000_000, attempt=2, detail="away: \ud800")
NAMES = st.one_of(st.text(max_size=5), st.sampled_from(RETRY_HEADERS))
HEADERS = st.lists(st.tuples(NAMES, st.one_of(st.none(), st.binary(max_size=5))), max_size=12)


@given(HEADERS)
def test_what_was_received_comes_back(headers: Headers) -> None:
    """Whatever names the producer used, ours among them; and it knows where it first came from."""
    received = record(7, headers=headers, partition=1)
    parked = replace(received, topic="images.retry", offset=99, headers=parked_headers(received, PARKING))
    again = unparked(parked)
    assert again.headers == headers
    source = Source(received.topic, 1, 7, received.timestamp_ms)
    assert again.parked == Parked(source, 2, PARKING.since_ms, PARKING.at_ms)
    assert again.source == source
    assert again.place == ("images.retry", 1)


def test_parked_again_it_still_knows_its_source() -> None:
    """The second time it is read from the retry topic, and does not come from there."""
    first = record(7)
    second = unparked(replace(first, topic="images.retry", offset=3, headers=parked_headers(first, PARKING)))
    third = unparked(
        replace(second, offset=4, headers=parked_headers(second, replace(PARKING, attempt=3)), parked=None)
    )
    assert third.source == first.source
    assert third.parked is not None and third.parked.attempt == 3
    assert third.headers == first.headers


@given(HEADERS)
def test_a_foreign_record_stays_as_it_is(headers: Headers) -> None:
    """Nobody else's headers are taken for ours unless all are there and make sense."""
    foreign = record(1, headers=headers)
    assert unparked(foreign) == foreign
    ours = parked_headers(foreign, PARKING)
    for position, value in ((-8, b"soon"), (-7, b"0"), (-3, b"-1"), (-2, b"\xff")):
        broken = list(ours)
        broken[position] = (broken[position][0], value)
        assert unparked(replace(foreign, headers=broken)).parked is None
