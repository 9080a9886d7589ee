"""What training and evaluation see of a data set: labelled images, and for each epoch an order of (real, fake) pairs.

A source hands out keys (file, or file + offset + size), never pixels, so that it is small, can be sent to data
processes, and any position of any epoch can be read on its own: that is what makes resuming exact.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from triton_models.weights import FAKE, REAL

_CUT = re.compile(
    r"([0-9a-f]{16})-[0-9]+\.jpg"
)  # how `data equalise` names the cuts of an image: 16 digits of its SHA-256, and a number


@dataclass(frozen=True)
class Key:
    """Where an image's original bytes are: a file, or a part of it when `size_bytes` is given."""

    path: str
    offset: int = 0
    size_bytes: int | None = None

    def read(self) -> bytes:
        """The original bytes. Raises OSError."""
        with Path(self.path).open("rb") as file:
            file.seek(self.offset)
            return file.read() if self.size_bytes is None else file.read(self.size_bytes)


@dataclass(frozen=True)
class Labelled:
    """One image for evaluation: `label` 1 = fake, `generator` is where it comes from, `group` the variant (`augm`,
    `no_augm` or empty).
    """

    id: str
    key: Key
    label: int
    generator: str
    group: str = ""


@dataclass(frozen=True)
class Problem:
    """What is left out: `kind` is corrupt, tiny, duplicate, conflict, stray (beside the layout, or no regular file) or
    (of shards) incomplete.
    """

    path: str
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}: {self.detail}"


@dataclass(frozen=True)
class Pair:
    """One record of an epoch: a real image and one fake."""

    id: str
    real: Key
    fake: Key


class EpochOrder(Protocol):
    """The pairs of one epoch, in order; computed from (seed, epoch) alone."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pair: ...


class Source(Protocol):
    """A data set. `problems` counts what was left out, by kind; `left_out` names it."""

    problems: dict[str, int]
    left_out: list[Problem]

    def order(self, epoch: int, seed: int) -> EpochOrder: ...

    def labelled(self) -> list[Labelled]: ...

    def split(self, fraction: float) -> tuple[Source, Source]: ...


def is_odd(path: Path) -> bool:
    """Whether `path` is there and is no regular file: opening a pipe would wait for ever."""
    return path.exists() and not path.is_file()


def held_out(identity: str, fraction: float) -> bool:
    """Whether a record belongs to the held-out part: decided by its id alone, so that a growing data set never moves a
    record.
    """
    return _number_of(identity) < fraction * 2**64


def part_of(identity: str, parts: int) -> int:
    """Which of `parts` about equal parts a record belongs to, by its id alone."""
    return _number_of(identity) * parts >> 64


def _number_of(identity: str) -> int:
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "little")


def photograph(image: Labelled) -> str:
    """What an image is held out by: the photograph that it is a cut of (see train/data/equalise.py), so that no cut of
    it is on the other side; of any other image its id.
    """
    cut = _CUT.fullmatch(Path(image.key.path).name)
    return cut[1] if cut else image.id


def shuffled(count: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """`length` numbers below `count`, in random order, each as often as the others (up to one)."""
    rounds = [rng.permutation(count) for _ in range(-(-length // count))]
    return np.concatenate(rounds)[:length]


def limit_per_class(images: Sequence[Labelled], most: int, seed: int = 0) -> list[Labelled]:
    """At most `most` images of each label, chosen at random but always the same, in the order of `images`."""
    kept: set[int] = set()
    for label in (REAL, FAKE):
        indices = [index for index, image in enumerate(images) if image.label == label]
        if len(indices) > most:
            indices = np.random.default_rng(seed).choice(indices, most, replace=False).tolist()
        kept.update(indices)
    return [image for index, image in enumerate(images) if index in kept]
