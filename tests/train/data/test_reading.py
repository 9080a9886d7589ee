"""The order in which shards are read, and the files that stay open for it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.reading import OpenShards, effective_sources, reading_order
from train.data.records import Key

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=12).map(np.array)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(1, 8), st.integers(1, 15), st.integers(0, 99))
def test_every_record_comes_once(counts: np.ndarray, at_once: int, window: int, seed: int) -> None:
    """An epoch is a permutation however many shards are read side by side, and the same for the same seed."""
    orders = [
        reading_order(counts, np.random.default_rng(seed), window=window, at_once=at_once, resample=False)
        for _ in range(2)
    ]
    assert sorted(orders[0].tolist()) == list(range(counts.sum()))
    assert orders[0].tolist() == orders[1].tolist()


@settings(max_examples=60, deadline=None)
@given(COUNTS.filter(lambda counts: counts.sum() > 0), st.integers(0, 99))
def test_resampled_shards_give_as_many_records(counts: np.ndarray, seed: int) -> None:
    """Drawn with replacement there are as many records as without, all of them of the shards."""
    order = reading_order(counts, np.random.default_rng(seed), window=5, at_once=2, resample=True)
    assert len(order) == counts.sum()
    assert set(order.tolist()) <= set(range(counts.sum()))


def test_resampling_repeats_some_shards_and_leaves_out_others() -> None:
    """About 1 - 1/e of the shards come in an epoch."""
    order = reading_order(np.full(400, 5), np.random.default_rng(1), window=50, at_once=8, resample=True)
    assert 0.57 < len(np.unique(order // 5)) / 400 < 0.69


@pytest.mark.slow
def test_side_by_side_a_batch_has_many_sources_and_files_are_read_forwards() -> None:
    """Of 60 shards of 5,000 records a batch of 1,024 has the records of as many shards as are read together, where one
    after the other it has one or two; within each shard the places go up, but for the window.
    """
    counts = np.full(60, 5000)
    for at_once, least, most in ((1, 1.0, 2.5), (16, 14.0, 18.0)):
        order = reading_order(counts, np.random.default_rng(3), window=1000, at_once=at_once, resample=False)
        batches = (order // 5000)[: 200 * 1024].reshape(200, 1024)
        assert least <= np.mean([effective_sources(batch) for batch in batches]) <= most
    unshuffled = reading_order(counts, np.random.default_rng(3), window=1, at_once=16, resample=False)
    for shard in range(60):
        places = unshuffled[unshuffled // 5000 == shard]
        assert np.all(np.diff(places) == 1)


def test_parts_of_files_are_read_with_few_files_open(tmp_path: Path) -> None:
    """The bytes are those of the key, no more files stay open than asked, and one that is not there is an OSError."""
    for number in range(5):
        (tmp_path / f"{number}.tar").write_bytes(bytes([number]) * 100 + b"end")
    before = open_files()
    files = OpenShards(most=2)
    for number in (0, 1, 2, 3, 4, 0, 4):
        assert files.read(Key(str(tmp_path / f"{number}.tar"), 98, 5)) == bytes([number]) * 2 + b"end"
        assert open_files() <= before + 2
    assert files.read(Key(str(tmp_path / "1.tar"))) == bytes([1]) * 100 + b"end"
    with pytest.raises(OSError, match=r"none\.tar"):
        files.read(Key(str(tmp_path / "none.tar"), 0, 5))
    files.close()
    assert open_files() == before
