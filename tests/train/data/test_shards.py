"""WebDataset shards: bytes kept, readable by the webdataset library, indexed, ordered."""

import errno
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset

from train.data.images import DataError
from train.data.open import open_source
from train.data.shards import SLOTS, D3Record, Mixing, open_shards, write_shard
from train.data.synthetic import synthetic_record


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(3):
        write_shard(tmp_path, number, (synthetic_record(number * 10 + index) for index in range(5)))
    return tmp_path


def test_original_bytes_come_back_at_their_offsets(shards: Path) -> None:
    """Every image of every record is read by offset exactly as it was given."""
    source = open_shards(shards)
    assert len(source.ids) == 15
    for record, identity in enumerate(source.ids):
        original = synthetic_record(int(str(identity).rsplit("_", maxsplit=1)[1]))
        for slot, name in enumerate(SLOTS):
            assert source.key(record, slot).read() == original.images[name]


def test_the_webdataset_library_reads_them(shards: Path) -> None:
    """webdataset sees one sample a record, with images, caption, URL and details under their names."""
    samples = list(webdataset.WebDataset(str(shards / "shard-000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [synthetic_record(index).id for index in range(5)]
    assert set(samples[0]) >= {"real.jpg", "gen_0.png", "gen_3.png", "caption.txt", "url.txt", "json"}
    assert samples[2]["real.jpg"] == synthetic_record(2).images["real"]


def test_foreign_shards_are_indexed_by_their_headers(shards: Path) -> None:
    """Without an index file, and from a tar that someone else wrote, the same records are found."""
    expected = [source.read() for source in (open_shards(shards).key(index, 0) for index in range(15))]
    for path in shards.glob("*.npz"):
        path.unlink()
    again = open_shards(shards)
    assert [again.key(index, 0).read() for index in range(15)] == expected
    assert len(list(shards.glob("*.npz"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 7, 200])
def test_a_damaged_index_is_made_anew(kept: int, shards: Path) -> None:
    """An index that was cut off is read from the tar again and replaced."""
    expected = open_shards(shards).labelled()
    index = shards / "shard-000001.index.npz"
    whole = index.read_bytes()
    index.write_bytes(whole[:kept])
    assert open_shards(shards).labelled() == expected
    assert index.stat().st_size > 200


def test_manifest_entry_counts_and_hashes(tmp_path: Path) -> None:
    """The entry of a shard has its records, images and bytes, and an unfinished file does not stay."""
    entry = write_shard(
        tmp_path, 7, [synthetic_record(1), D3Record("x", {"real": synthetic_record(2).images["real"]}, "", "", {})]
    )
    assert (entry["shard"], entry["records"], entry["images"]) == ("shard-000007.tar", 2, 6)
    assert entry["bytes"] == (tmp_path / "shard-000007.tar").stat().st_size
    assert not list(tmp_path.glob("*.partial"))


def test_records_without_a_pair_are_counted(tmp_path: Path) -> None:
    """A record without real or without fakes cannot be trained on; the count says so."""
    lone = D3Record("lone", {"real": synthetic_record(1).images["real"]}, "", "", {})
    write_shard(tmp_path, 0, [synthetic_record(0), lone])
    source = open_shards(tmp_path)
    assert source.problems == {"incomplete": 1}
    assert [problem.kind for problem in source.left_out] == ["incomplete"]
    write_shard(tmp_path, 0, [lone])
    with pytest.raises(DataError, match="no record"):
        open_shards(tmp_path)


@pytest.mark.parametrize("indexed", [True, False])
def test_small_images_are_left_out(indexed: bool, tmp_path: Path) -> None:
    """What is smaller than asked, or no image at all, is left out of a record and named; the record stays while it has
    a pair.
    """
    big, tiny = synthetic_record(0).images, synthetic_record(0, size=20).images
    records = {
        "whole": big,
        "one": big | {"gen_1": tiny["gen_1"]},
        "real": big | {"real": tiny["real"]},
        "broken": big | {"gen_3": b"no image"},
    }
    write_shard(tmp_path, 0, [D3Record(name, images, "", "", {}) for name, images in records.items()])
    if not indexed:
        (tmp_path / "shard-000000.index.npz").unlink()
    source = open_source(tmp_path, min_side_px=32)
    assert [str(identity) for identity in source.ids] == ["whole", "one", "broken"]
    assert (source.sizes > 0).sum(axis=1).tolist() == [5, 4, 4]
    assert source.problems == {"tiny": 2, "corrupt": 1, "incomplete": 1}
    assert [Path(problem.path).name for problem in source.left_out] == [
        "one.gen_1",
        "real.real",
        "broken.gen_3",
        "real",
    ]
    assert len(open_shards(tmp_path).ids) == 4


def test_order_has_every_record_once_with_varying_fakes(shards: Path) -> None:
    """An epoch is a permutation of the records, each with one of its own fakes; epochs differ, repeats do not."""
    source = open_shards(shards, Mixing(window=4, shards_at_once=2))
    first, same, other = (source.order(epoch, 1) for epoch in (0, 0, 1))
    pairs = [first[index] for index in range(len(first))]
    assert sorted(pair.id for pair in pairs) == sorted(str(identity) for identity in source.ids)
    assert pairs == [same[index] for index in range(15)] != [other[index] for index in range(15)]
    slots = Counter(int(slot) for epoch in range(80) for slot in source.order(epoch, 1).fake_slot)
    assert set(slots) == {1, 2, 3, 4}
    assert min(slots.values()) > 200


def test_window_keeps_reading_local(shards: Path) -> None:
    """One shard at a time and a window no larger than it: the records of one shard come together."""
    source = open_shards(shards, Mixing(window=5, shards_at_once=1))
    sequence = source.shard_of[source.order(0, 3).records]
    assert np.count_nonzero(np.diff(sequence)) == 2


def test_split_is_by_record(shards: Path) -> None:
    """Real and fakes of a record are on the same side, and both sides together are all."""
    train, held = open_shards(shards).split(0.5)
    assert not set(train.ids.tolist()) & set(held.ids.tolist())
    assert len(train.ids) + len(held.ids) == 15
    assert len(held.labelled()) == 5 * len(held.ids)


def test_shards_that_cannot_be_indexed_on_disk_are_read(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On data that may only be read the index is made in memory, the same as the one on disk."""
    kept = open_shards(shards)
    for index in shards.glob("*.index.npz"):
        index.unlink()

    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("train.data.shards.save_index", refused)
    again = open_shards(shards)
    assert not list(shards.glob("*.index.npz"))
    assert np.array_equal(kept.offsets, again.offsets) and kept.ids.tolist() == again.ids.tolist()


def test_a_pipe_named_as_a_shard_is_not_opened(shards: Path) -> None:
    """What is no regular file is left out by name, and the shards are read."""
    os.mkfifo(shards / "pipe.tar")
    source = open_shards(shards)
    assert len(source.ids) == 15
    assert [(Path(problem.path).name, problem.kind) for problem in source.left_out] == [("pipe.tar", "stray")]


def test_broken_tar_is_named(tmp_path: Path) -> None:
    """A file that is no tar, and a tar without such members, are named."""
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match=r"bad\.tar"):
        open_shards(tmp_path)
    with tarfile.open(tmp_path / "bad.tar", "w"):
        pass
    with pytest.raises(DataError, match=r"bad\.tar"):
        open_shards(tmp_path)
