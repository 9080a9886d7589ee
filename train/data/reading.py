"""In which order the records of shards are read: many shards side by side, each from its start to its end.

A window alone mixes the records of one shard or two, as shards are larger than windows: a batch then has the sources of
one stretch of D3. Reading `at_once` shards together gives a batch records of as many, and every file is still read
forwards, which is what disks, network file systems and their read-ahead are good at.
"""

from __future__ import annotations

import os
from collections import OrderedDict

import numpy as np

from train.data.records import Key

KEPT_OPEN = 64  # files of one process


def reading_order(
    counts: np.ndarray, rng: np.random.Generator, *, window: int, at_once: int, resample: bool
) -> np.ndarray:
    """The records [R] (numbered shard by shard, `counts` [S] of each) in the order of one epoch.

    Shards come in random order, `at_once` of them side by side, merged at random; then records are shuffled within
    windows. `resample`: shards are drawn with replacement until there are R records, as the released code drew them.
    """
    starts, total = np.cumsum(counts) - counts, int(counts.sum())
    drawn = rng.integers(len(counts), size=len(counts)) if resample else rng.permutation(len(counts))
    while int(counts[drawn].sum()) < total:
        drawn = np.concatenate([drawn, rng.integers(len(counts), size=len(counts))])
    sizes = counts[drawn]
    turn = np.repeat(np.arange(len(drawn)), sizes)
    records = np.repeat(starts[drawn] - (np.cumsum(sizes) - sizes), sizes) + np.arange(len(turn))
    moments = rng.random(len(turn))
    moments = moments[np.lexsort((moments, turn))]  # ascending within each shard: it is read from its start to its end
    records = records[np.lexsort((moments, turn // at_once))][:total]
    for start in range(0, len(records), window):
        rng.shuffle(records[start : start + window])
    return records


def effective_sources(labels: np.ndarray) -> float:
    """How many sources a batch is as good as: 1 / sum of squared shares (Simpson)."""
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(1 / np.square(shares).sum())


class OpenShards:
    """Reads parts of files that stay open: one read an image instead of an open, a seek and a read. For one thread."""

    def __init__(self, most: int = KEPT_OPEN) -> None:
        self._most = most
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, key: Key) -> bytes:
        """The original bytes. Raises OSError."""
        if key.size_bytes is None:
            return key.read()
        if key.path in self._open:
            self._open.move_to_end(key.path)
        else:
            if len(self._open) >= self._most:
                os.close(self._open.popitem(last=False)[1])
            self._open[key.path] = os.open(key.path, os.O_RDONLY)
        return os.pread(self._open[key.path], key.size_bytes, key.offset)

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()
