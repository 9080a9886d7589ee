"""Send: which files get which id, what a record carries, and what `--wait` waits for."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import pytest

from tests.test_replay import rejected
from tests.twins import ProducerTwin, scores
from worker import send as sending
from worker.contract import Headers, ImageInfo, Record
from worker.errors import SettingsError, Unavailable
from worker.item import Ended, Item, Judgement
from worker.policy import Policy
from worker.send import Sent, Source, find_sources, send
from worker.settings import KafkaSettings, Settings
from worker.stages.decide import make_verdict


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """photos/ with a nested and two hidden files, and a file beside it."""
    for name in (
        "photos/b.png",
        "photos/a.jpg",
        "photos/holiday/ü 1.jpg",
        "photos/.hidden.jpg",
        "photos/.cache/c.jpg",
        "lone.webp",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def test_ids_are_relative_to_the_folder_named(folder: Path) -> None:
    """Sorted, nested, without hidden files; a file named by itself has its own name."""
    found = find_sources([folder / "photos", folder / "lone.webp"])
    assert [source.image_id for source in found] == ["a.jpg", "b.png", "holiday/ü 1.jpg", "lone.webp"]
    assert found[2].path == folder / "photos" / "holiday" / "ü 1.jpg"


def test_all_wrong_paths_come_at_once(folder: Path) -> None:
    """Each with its own line: missing, empty folder."""
    (folder / "empty").mkdir()
    with pytest.raises(SettingsError) as caught:
        find_sources([folder / "nowhere", folder / "empty"])
    assert len(caught.value.problems) == 2
    assert "no such file or folder" in caught.value.problems[0]
    assert "no files in this folder" in caught.value.problems[1]


def test_a_file_that_cannot_be_sent_does_not_stop_the_others(folder: Path) -> None:
    """A name that is no image id and a file that went away are told, each on one line; the rest is sent."""
    (folder / "bad\nname.jpg").write_bytes(b"x")
    gone = Source(folder / "gone.jpg", "gone.jpg")
    sources = [*find_sources([folder / "bad\nname.jpg"]), gone, *find_sources([folder / "lone.webp"])]
    producer = ProducerTwin([])
    sent = {one.image_id: one for one in send(KafkaSettings(), producer, sources)}  # type: ignore[arg-type]
    assert [record.key for record in producer.sent] == [b"lone.webp"]
    assert "control characters" in (sent["bad\nname.jpg"].error or "")
    assert "\n" not in sent["bad\nname.jpg"].path
    assert "No such file" in (sent["gone.jpg"].error or "")
    assert sent["lone.webp"].error is None


def test_a_record_is_a_cloud_event(folder: Path) -> None:
    """Id as key and header, the bytes as they are, the content type by the name."""
    producer = ProducerTwin([])
    (sent,) = send(KafkaSettings(), producer, find_sources([folder / "lone.webp"]))  # type: ignore[arg-type]
    (record,) = producer.sent
    headers = dict(record.headers)
    assert (record.topic, record.key, record.value) == ("images.incoming", b"lone.webp", b"lone.webp")
    assert (headers["ce_id"], headers["ce_specversion"], headers["content-type"]) == (
        b"lone.webp",
        b"1.0",
        b"image/webp",
    )
    assert sent == Sent("lone.webp", str(folder / "lone.webp"), hashlib.sha256(b"lone.webp").hexdigest(), 9)


def test_a_file_that_is_too_large_is_told_and_the_rest_is_sent(tmp_path: Path) -> None:
    """What no broker would take is named with the setting; the files after it still go."""
    settings = KafkaSettings(max_request_bytes=1024 * 1024)
    for name, size in (("a", 10), ("b", 1024 * 1024), ("c", 10)):
        (tmp_path / name).write_bytes(b"x" * size)
    producer = ProducerTwin([])
    found = {sent.image_id: sent.error for sent in send(settings, producer, find_sources([tmp_path]))}  # type: ignore[arg-type]
    assert [one.key for one in producer.sent] == [b"a", b"c"]
    assert found["a"] is found["c"] is None
    assert "ASSAY_KAFKA__MAX_REQUEST_BYTES=1048576" in (found["b"] or "")


def test_unacknowledged_records_are_sent_again(tmp_path: Path) -> None:
    """A broker that refuses some at first gets those again; each file is told of once."""
    for number in range(5):
        (tmp_path / f"{number}").write_bytes(b"x")
    producer = ProducerTwin([])
    producer.refuse_next = 3
    assert len(list(send(KafkaSettings(), producer, find_sources([tmp_path])))) == 5  # type: ignore[arg-type]
    assert sorted(one.key or b"" for one in producer.sent) == [b"0", b"1", b"2", b"3", b"4"]


def test_a_broker_that_never_acknowledges_is_unavailable(tmp_path: Path) -> None:
    """It is not asked for ever."""
    (tmp_path / "a").write_bytes(b"x")
    producer = ProducerTwin([])
    producer.refuse_next = 10**9
    with pytest.raises(Unavailable, match="1 of 1 records were not acknowledged"):
        list(send(KafkaSettings(), producer, [Source(tmp_path / "a", "a")]))  # type: ignore[arg-type]


def verdict_record(image_id: str, sha256: str) -> Record:
    item = Item(Record("t", 0, 0, 0, None, b"x", []), epoch=1, touched_at=0.0, queued_ms=0.0)
    judgement = Judgement(ImageInfo(format="png", width=1, height=1, bytes=1), scores(0.9), "0123456789ab")
    ended = Ended(item, image_id, sha256, judgement)
    verdict = make_verdict(ended, judgement, Policy(), "code", now_s=0.0, total_ms=1.0)
    return Record("images.verdicts", 0, 0, 0, image_id.encode(), verdict.to_json().encode(), [])


def rejection_record(image_id: str, sha256: str) -> Record:
    record = rejected(0, image_id=image_id)
    headers: Headers = [*record.headers, ("sha256", sha256.encode())]
    return Record("images.rejected", 0, 0, 0, None, b"x", headers)


class ReaderTwin:
    """worker.clients.kafka_topics.Reader: one list of records a poll, from the script of its topic."""

    scripts: dict[str, list[list[Record]]] = {}

    def __init__(self, _settings: KafkaSettings, topic: str, *, from_end: bool) -> None:
        assert from_end
        self._script = ReaderTwin.scripts.get(topic, [])

    def poll(self, timeout_ms: int) -> list[Record]:
        return self._script.pop(0) if self._script else []

    def close(self) -> None:
        self._script = []


SHA_A, SHA_B = "a" * 64, "b" * 64


def wait(
    monkeypatch: pytest.MonkeyPatch, wanted: list[Sent], scripts: dict[str, list[list[Record]]], timeout_s: float = 10
) -> list[sending.Result]:
    """The results, on a clock that moves a second with each look."""
    monkeypatch.setattr(sending, "Reader", ReaderTwin)
    ReaderTwin.scripts = scripts
    ticks = itertools.count()
    waiter = sending.Waiter(Settings())
    try:
        return list(waiter.results(wanted, timeout_s=timeout_s, clock=lambda: float(next(ticks))))
    finally:
        waiter.close()


def test_waiting_ends_with_a_result_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts and rejections alike, in the order in which they come; what others sent is passed over, repeats count
    once.
    """
    wanted = [Sent("a", "a", SHA_A, 1), Sent("b", "b", SHA_B, 1), Sent("c", "c", SHA_A, 1, error="too large")]
    mine, other = verdict_record("b", SHA_B), verdict_record("stranger", SHA_A)
    scripts = {"images.verdicts": [[other], [mine, mine]], "images.rejected": [[], [], [rejection_record("a", SHA_A)]]}
    results = wait(monkeypatch, wanted, scripts)
    assert [(result.image_id, result.verdict is not None, result.reject_reason) for result in results] == [
        ("b", True, None),
        ("a", False, "too_large"),
    ]


@pytest.mark.parametrize("value", [None, b"", b"not ours", b"[]", b'{"schema": "another/2"}', b"\xff"])
def test_what_is_no_verdict_is_passed_over(value: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tombstone (somebody's data were erased) or another program's record: the verdicts are still awaited."""
    foreign = Record("images.verdicts", 0, 0, 0, b"a", value, [])
    (result,) = wait(
        monkeypatch,
        [Sent("a", "a", SHA_A, 1)],
        {"images.verdicts": [[foreign, verdict_record("a", SHA_A)]], "images.rejected": [[foreign]]},
    )
    assert result.verdict is not None


def test_an_older_verdict_on_the_same_id_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same id with other bytes is another image."""
    scripts = {"images.verdicts": [[verdict_record("a", SHA_B)], [verdict_record("a", SHA_A)]]}
    (result,) = wait(monkeypatch, [Sent("a", "a", SHA_A, 1)], scripts)
    assert result.verdict is not None
    assert result.verdict.sha256 == SHA_A


def test_silence_ends_the_wait_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """When nothing has come for the time-out the user is told what is probably missing."""
    with pytest.raises(
        Unavailable, match=r"1 images have no verdict for 10 s: is a worker running\? \(python -m worker run\)"
    ):
        wait(monkeypatch, [Sent("a", "a", SHA_A, 1)], {})


def test_each_result_renews_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time-out is for silence, not for the whole."""
    wanted = [Sent(f"{number}", "x", SHA_A, 1) for number in range(5)]
    slow: list[list[Record]] = [
        batch for number in range(5) for batch in ([], [], [], [verdict_record(f"{number}", SHA_A)])
    ]
    assert len(wait(monkeypatch, wanted, {"images.verdicts": slow}, timeout_s=8)) == 5


def test_what_was_sent_is_plain_data() -> None:
    """`send --json` prints it."""
    from dataclasses import asdict

    assert json.loads(json.dumps(asdict(Sent("a", "p", SHA_A, 3))))["error"] is None
