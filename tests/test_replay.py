"""Replay: which rejected records go back, and how they look when they do. Reading the topic itself is an integration
test's.
"""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from tests.properties import given
from tests.twins import ProducerTwin
from worker import replay
from worker.clients.kafka_producer import Outgoing
from worker.contract import Headers, Record
from worker.errors import Rejected, RejectReason, SettingsError, Unavailable
from worker.rejections import rejection_headers
from worker.settings import KafkaSettings

NOW_S = 1_795_262_400.0  # 2026-11-21T12:00:00Z
SENT: Headers = [("ce_id", b"a"), ("x-tenant", b"7"), ("x-empty", b"")]


def rejected(
    offset: int,
    *,
    reason: RejectReason = RejectReason.TOO_LARGE,
    image_id: str | None = "a",
    value: bytes | None = b"x",
    at: int = 0,
) -> Record:
    """A record of images.rejected; `at` is the offset that it first had."""
    origin = Record("images.incoming", 1, at, 0, b"key", value, SENT)
    headers = rejection_headers(
        origin,
        Rejected(reason, "detail", stage="intake"),
        image_id=image_id,
        sha256=None,
        worker_version="1",
        model_version=None,
    )
    return Record("images.rejected", 0, offset, 0, b"key", value, headers)


class ReaderTwin:
    """worker.clients.kafka_topics.Reader over a list."""

    records: list[Record] = []
    asked: list[int | None] = []
    closed = 0

    def __init__(self, _settings: KafkaSettings, topic: str, since_ms: int | None) -> None:
        assert topic == "images.rejected"
        ReaderTwin.asked.append(since_ms)

    def until_end(self) -> list[Record]:
        return ReaderTwin.records

    def close(self) -> None:
        ReaderTwin.closed += 1


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> type[ReaderTwin]:
    ReaderTwin.records, ReaderTwin.asked, ReaderTwin.closed = [], [], 0
    monkeypatch.setattr(replay, "Reader", ReaderTwin)
    return ReaderTwin


def found(
    reason: RejectReason | None = None, limit: int | None = None, since_ms: int | None = None
) -> list[replay.Candidate]:
    return list(replay.candidates(KafkaSettings(), reason=reason, since_ms=since_ms, limit=limit))


def test_each_image_goes_back_once(topic: type[ReaderTwin]) -> None:
    """However often the same bytes under the same id were rejected; other bytes or another id are another image."""
    topic.records = [rejected(0), rejected(1), rejected(2, value=b"y"), rejected(3, image_id="b"), rejected(4)]
    assert [candidate.record.offset for candidate in found()] == [0, 2, 3]
    assert topic.closed == 1


def test_images_without_an_id_are_told_apart_by_their_origin(topic: type[ReaderTwin]) -> None:
    """A bad id leaves none: then the place the record came from counts."""
    topic.records = [
        rejected(0, image_id=None, at=5),
        rejected(1, image_id=None, at=6),
        rejected(2, image_id=None, at=5),
    ]
    assert [candidate.origin for candidate in found()] == ["images.incoming/1/5", "images.incoming/1/6"]


def test_only_the_reason_asked_for(topic: type[ReaderTwin]) -> None:
    """Others stay where they are."""
    topic.records = [rejected(0, reason=RejectReason.CORRUPT, image_id="a"), rejected(1, image_id="b")]
    assert [candidate.image_id for candidate in found(RejectReason.TOO_LARGE)] == ["b"]


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (2, 2), (3, 3), (9, 3), (None, 3)])
def test_the_limit_counts_images(limit: int | None, count: int, topic: type[ReaderTwin]) -> None:
    """Repeats do not use it up, and the reader is closed also when it stops early."""
    topic.records = [rejected(0), rejected(1), rejected(2, image_id="b"), rejected(3, image_id="c")]
    assert len(found(limit=limit)) == count
    assert topic.closed == 1


@pytest.mark.parametrize("value", [b"x", b"", None])
def test_foreign_records_are_left_alone(value: bytes | None, topic: type[ReaderTwin]) -> None:
    """A record without a reason was not rejected by us, a tombstone neither."""
    topic.records = [Record("images.rejected", 0, 0, 0, None, value, [("x", b"y")])]
    assert found() == []


class ProducerOf(ProducerTwin):
    """The twin, closed once."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> ProducerOf:
    twin = ProducerOf([])
    monkeypatch.setattr(replay, "Producer", lambda _settings: twin)
    return twin


def replayed(*, dry_run: bool = False) -> list[replay.Candidate]:
    return list(replay.replay(KafkaSettings(), reason=None, since_ms=None, limit=None, dry_run=dry_run))


def test_a_record_that_is_not_acknowledged_goes_again(topic: type[ReaderTwin], producer: ProducerOf) -> None:
    """A refusal is no reason to count it as replayed."""
    topic.records = [rejected(0), rejected(1, image_id="b")]
    producer.refuse_next = 1
    assert len(replayed()) == 2
    assert len(producer.sent) == 2
    assert producer.closed == 1


def test_a_record_that_is_never_acknowledged_is_told(topic: type[ReaderTwin], producer: ProducerOf) -> None:
    """Nobody is told that it went back."""
    topic.records = [rejected(0)]
    producer.refuse_next = 10**9
    with pytest.raises(Unavailable, match="1 of 1 records were not acknowledged"):
        replayed()
    assert producer.closed == 1


def test_dry_run_sends_nothing(topic: type[ReaderTwin], producer: ProducerOf) -> None:
    """It shows the same."""
    topic.records = [rejected(0)]
    assert len(replayed(dry_run=True)) == 1
    assert producer.sent == []


def test_a_record_without_its_bytes_stays(topic: type[ReaderTwin], producer: ProducerOf) -> None:
    """A rejection that was too large for its topic came without its value: an empty image must not go back in its
    place.
    """
    whole, empty = rejected(0), rejected(1, image_id="b", value=b"")
    empty.headers.append(("value_omitted", b"50000000"))
    topic.records = [whole, empty]
    told = replayed()
    assert [candidate.complete for candidate in told] == [True, False]
    assert len(producer.sent) == 1
    assert "send them again" in told[1].on_one_line()


def test_the_start_is_passed_on(topic: type[ReaderTwin]) -> None:
    """`--since` is a place in the topic, not a filter over all of it."""
    found(since_ms=42)
    assert topic.asked == [42]


@pytest.mark.parametrize("value", [b"\x00image\xff", None, b""])
def test_a_record_goes_back_as_it_was_sent(value: bytes | None, topic: type[ReaderTwin]) -> None:
    """Key, value and the producer's headers; nothing of ours."""
    topic.records = [rejected(0, value=value)]
    (candidate,) = found()
    assert replay.restored(candidate, "images.incoming") == Outgoing("images.incoming", b"key", value, SENT)


@pytest.mark.parametrize(
    ("text", "seconds_ago"),
    [
        ("90s", 90),
        ("15m", 900),
        ("2h", 7200),
        (" 3d ", 259_200),
        ("2026-11-21T12:00:00Z", 0),
        ("2026-11-21T12:00:00", 0),
        ("2026-11-21T13:00:00+02:00", 3600),
        ("2026-11-20", 129_600),
    ],
)
def test_since(text: str, seconds_ago: int) -> None:
    """An age, or an ISO 8601 time that is UTC where it has no zone."""
    assert replay.parse_since(text, NOW_S) == (NOW_S - seconds_ago) * 1000


@given(st.text(max_size=12))
def test_any_other_time_is_refused_with_an_example(text: str) -> None:
    """Whatever is typed: milliseconds, or one line that shows what is expected."""
    problems = []
    try:
        assert isinstance(replay.parse_since(text, NOW_S), int)
    except SettingsError as error:
        problems = error.problems
    assert all(problem.startswith("--since ") and "2026-11-21T12:00:00Z" in problem for problem in problems)


def test_reasons() -> None:
    """A reason of the closed list, or none; a misspelt one is refused with the list."""
    assert replay.check_reason(None) is None
    assert replay.check_reason("too_large") is RejectReason.TOO_LARGE
    with pytest.raises(SettingsError, match=r"--reason 'to_large': one of empty, .* is expected"):
        replay.check_reason("to_large")
