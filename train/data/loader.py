"""From a source to batches of views: pairs are decoded and turned into views in data processes, in an order known beforehand.

Position p of an epoch is the same record with the same views whatever the number of processes and ranks, and whether or not
the run was resumed. A record that cannot be read is replaced by the next one and reported.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from train.data.images import BadImage, DataError, decode_image, decode_pixels
from train.data.records import EpochOrder, Key, Source
from train.losses import Terms
from train.recipe import Recipe, Views
from train.transforms.views import Picture, make_views, plan_views

Position = tuple[int, int]  # epoch, position in it
MAX_REPLACEMENTS = 50


@dataclass
class Batch:
    """`views`: name -> uint8 [N, 3, S, S]; `failed`: `path: why` of records that had to be replaced."""

    views: dict[str, Tensor]
    failed: list[str] = field(default_factory=list)


class PairDataset(Dataset[tuple[dict[str, Tensor], list[str]]]):
    """Maps (epoch, position) to the views of one record. Positions beyond the epoch's records go round again with other views."""

    def __init__(self, source: Source, views: Views, terms: Terms, seed: int, cache_bytes: int = 0) -> None:
        self.source, self.views, self.terms, self.seed, self.cache_bytes = source, views, terms, seed, cache_bytes
        self._order: tuple[int, EpochOrder] | None = None
        self._cache: OrderedDict[Key, Picture] = OrderedDict()
        self._cached_bytes = 0

    def __getitem__(self, position: Position) -> tuple[dict[str, Tensor], list[str]]:
        epoch, index = position
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self.source.order(epoch, self.seed))
        order = self._order[1]
        failed: list[str] = []
        for step in range(MAX_REPLACEMENTS):
            occurrence, place = divmod(index + step, len(order))
            pair = order[place]
            try:
                real, fake = self._image(pair.real), self._image(pair.fake)
            except (OSError, BadImage) as error:
                failed.append(f"{pair.id}: {error}")
                continue
            sizes = _size_px(real), _size_px(fake)
            plans = plan_views(*sizes, pair.id, self.views, seed=self.seed, epoch=epoch, occurrence=occurrence, terms=self.terms)
            return make_views(real, fake, plans), failed
        raise DataError(f"{MAX_REPLACEMENTS} records in a row cannot be read, the last: {failed[-1]}")

    def _image(self, key: Key) -> Picture:
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        data = key.read()
        image = decode_pixels(data) if self.views.fast else decode_image(data)
        if _size_bytes(image) <= self.cache_bytes:
            self._cache[key] = image
            self._cached_bytes += _size_bytes(image)
            while self._cached_bytes > self.cache_bytes:
                _, old = self._cache.popitem(last=False)
                self._cached_bytes -= _size_bytes(old)
        return image


def _size_bytes(image: Picture) -> int:
    width, height = _size_px(image)
    return 3 * width * height


def _size_px(image: Picture) -> tuple[int, int]:
    return (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) else image.size


@dataclass(frozen=True)
class StepSampler(Sampler[list[Position]]):
    """The positions of every micro-batch of one rank, from (`first_epoch`, `first_step`) to the last epoch.

    A step is `accumulation` micro-batches of `batch` records on each of `world` ranks; together they take consecutive positions.
    """

    batch: int
    accumulation: int
    steps_per_epoch: int
    epochs: int
    rank: int = 0
    world: int = 1
    first_epoch: int = 0
    first_step: int = 0

    def __len__(self) -> int:
        return max(0, ((self.epochs - self.first_epoch) * self.steps_per_epoch - self.first_step) * self.accumulation)

    def __iter__(self) -> Iterator[list[Position]]:
        for epoch in range(self.first_epoch, self.epochs):
            start = self.first_step if epoch == self.first_epoch else 0
            for micro in range(start * self.accumulation, self.steps_per_epoch * self.accumulation):
                first = (micro * self.world + self.rank) * self.batch
                yield [(epoch, first + index) for index in range(self.batch)]


def collate(samples: list[tuple[dict[str, Tensor], list[str]]]) -> Batch:
    """Stack samples view by view, channels last as they are: any other layout costs more time than a view's crop."""
    views = {name: torch.stack([sample[0][name].permute(1, 2, 0) for sample in samples]).permute(0, 3, 1, 2) for name in samples[0][0]}
    return Batch(views, [line for sample in samples for line in sample[1]])


def make_loader(source: Source, recipe: Recipe, sampler: StepSampler, *, pin_memory: bool = False) -> DataLoader[tuple[dict[str, Tensor], list[str]]]:
    """Batches in the sampler's order, made in `data.workers` processes (0 = in this one)."""
    dataset = PairDataset(source, recipe.views, recipe.loss.terms, recipe.training.seed, recipe.training.image_cache_mb * 2**20)
    workers = recipe.data.workers
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread if workers else None,
        prefetch_factor=2 if workers else None,
    )


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)
