"""Stored verdicts on disk: the latest of each image, in any number, and nothing else."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from tests.policy.test_comparison import scored
from worker import backtest
from worker.backtest import LatestVerdicts, labels_of
from worker.bench.backtest import stored_verdicts
from worker.contract import Record, Verdict
from worker.errors import SettingsError
from worker.policy import load_policy
from worker.policy.comparison import Comparison


def stored(verdict: Verdict, offset: int, partition: int = 0, timestamp_ms: int = 0) -> Record:
    value = verdict.to_json().encode()
    return Record("images.verdicts", partition, offset, timestamp_ms, verdict.image_id.encode(), value, [])


def latest(*records: Record, expected: int = 0) -> tuple[list[Verdict], LatestVerdicts]:
    with LatestVerdicts(expected) as verdicts:
        for record in records:
            verdicts.add(record)
        return list(verdicts.latest()), verdicts


def named(verdict: Verdict, decision: str) -> Verdict:
    return verdict.model_copy(update={"decision": decision})


@pytest.mark.parametrize("expected", [0, 100_000, 10_000_000])
def test_the_latest_verdict_of_each_image(expected: int) -> None:
    """By offset within a partition, whatever the clocks say; over as many files as the topic asks for."""
    verdicts = scored(*[0.5] * 50)
    records = [stored(named(verdict, "real"), offset, timestamp_ms=900) for offset, verdict in enumerate(verdicts)]
    records += [stored(named(verdict, "fake"), 50 + offset) for offset, verdict in enumerate(verdicts[:20])]
    found, counts = latest(*records, expected=expected)
    assert len(found) == 50
    assert {verdict.image_id for verdict in found if verdict.decision == "fake"} == {f"id-{n}" for n in range(20)}
    assert (counts.replaced, counts.unreadable) == (20, 0)


def test_an_image_in_two_partitions() -> None:
    """After the partitions of the topic were made more, only the clocks tell which verdict is the later."""
    (verdict,) = scored(0.5)
    early = stored(named(verdict, "real"), 7, partition=0, timestamp_ms=1000)
    late = stored(named(verdict, "fake"), 3, partition=1, timestamp_ms=2000)
    for records in ((early, late), (late, early)):
        assert [one.decision for one in latest(*records)[0]] == ["fake"]


def test_what_is_no_verdict_is_counted() -> None:
    """Tombstones and other people's records stop nothing."""
    (verdict,) = scored(0.5)
    good = stored(verdict, 0)
    bad = Record("images.verdicts", 0, 1, 0, b"b", b"{}", [])
    gone = Record("images.verdicts", 0, 2, 0, b"c", None, [])
    found, counts = latest(good, bad, gone)
    assert ([one.image_id for one in found], counts.unreadable) == (["id-0"], 2)


def test_the_order_is_that_of_the_ids(tmp_path: Path) -> None:
    """A limit takes the same images whatever the order in which they were judged."""
    verdicts = scored(*[0.5] * 30)
    records = [stored(verdict, offset) for offset, verdict in enumerate(verdicts)]
    forwards = [one.image_id for one in latest(*records, expected=50_000)[0]]
    assert forwards == [one.image_id for one in latest(*reversed(records), expected=50_000)[0]]
    assert forwards != sorted(forwards)


def peak_bytes(count: int) -> int:
    """Of Python's memory, of laying down and deciding anew `count` stored verdicts that are made one by one."""
    comparison = Comparison(load_policy(None))
    tracemalloc.start()
    try:
        with LatestVerdicts(count) as verdicts:
            for offset, verdict in enumerate(stored_verdicts(count)):
                verdicts.add(stored(verdict, offset))
            for verdict in verdicts.latest():
                comparison.add(verdict)
        assert comparison.judged == count
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the verdicts, hardly more memory: what is held is a file of them, and the counts.

    1,000,000 on a broker, by `bench backtest`: docs/policy.md.
    """
    monkeypatch.setattr(backtest, "_PER_FILE", 256)
    peak_bytes(100)  # what is made once
    small, large = peak_bytes(512), peak_bytes(2048)
    assert large < 1.5 * small


def test_labels_are_folders(tmp_path: Path) -> None:
    """What lies in real/ and fake/, by the hash of its bytes; a folder without either is refused."""
    for name, content in (("real/a/x.jpg", b"r"), ("fake/y.png", b"f")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(content)
    assert sorted(labels_of(tmp_path).values()) == [False, True]
    with pytest.raises(SettingsError, match=r"--labels .* real/ and fake/"):
        labels_of(tmp_path / "real")
