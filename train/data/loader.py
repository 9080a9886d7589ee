"""From a source to batches of views: pairs are decoded in data processes, in an order known beforehand, and turned into
views there or, where training has a GPU, a batch at a time on it while the step before is still running.

Position p of an epoch is the same record with the same draw of views whatever the number of processes and ranks, and
whether or not the run was resumed. A record that cannot be read is replaced by the next one and reported.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from train.data.images import BadImage, DataError, decode_image, decode_pixels
from train.data.reading import OpenShards
from train.data.records import EpochOrder, Key, Pair, Source
from train.losses import Terms
from train.recipe import Recipe, RecipeError, Views
from train.transforms import batched
from train.transforms.views import Picture, Plan, make_views, plan_views, view_rng, with_history

Position = tuple[int, int]  # epoch, position in it
MAX_REPLACEMENTS = 50
PREFETCHED = 2  # batches that each data process has ready


@dataclass(frozen=True)
class Place:
    """The record at a position, and the how manieth time it comes in this epoch."""

    position: Position
    pair: Pair
    occurrence: int


@dataclass
class Batch:
    """`views`: name -> uint8 [N, 3, S, S]; `failed`: `path: why` of records that had to be replaced."""

    views: dict[str, Tensor]
    failed: list[str] = field(default_factory=list)

    def pin_memory(self) -> Batch:
        return replace(self, views={name: images.pin_memory() for name, images in self.views.items()})


@dataclass
class Drawn:
    """A record whose views are drawn but not made: `images` has uint8 [H, W, 3] under `real` and `fake`."""

    images: dict[str, Tensor]
    plans: Mapping[str, Plan]


@dataclass
class DrawnBatch:
    """Records on their way to the device that makes their views: `pixels` has all images one behind the other (a tensor
    each would take a file descriptor each between processes), `sizes` their [H, W, 3]; `failed` as in Batch.
    """

    pixels: Tensor
    sizes: list[dict[str, tuple[int, ...]]]
    plans: list[Mapping[str, Plan]]
    failed: list[str]

    def pin_memory(self) -> DrawnBatch:
        return replace(self, pixels=self.pixels.pin_memory())

    def on(self, device: torch.device) -> Batch:
        """The views, made on `device`."""
        there = self.pixels.to(device, non_blocking=True)
        parts = iter(torch.split(there, [math.prod(size) for sizes in self.sizes for size in sizes.values()]))
        images = [
            {name: next(parts).view(size).permute(2, 0, 1) for name, size in sizes.items()} for sizes in self.sizes
        ]
        return Batch(batched.make_views(images, self.plans), self.failed)


Sample = tuple[dict[str, Tensor] | Drawn, list[str]]


class PairDataset(Dataset[Sample]):
    """Maps a position to the views of its record, or (`draw_only`) to its images and the draw of its views.

    Positions beyond the epoch's records go round again with other views. Data processes are told places, so that none
    of them has to keep the order of an epoch; one that cannot read a record computes it, to find the next.
    """

    def __init__(
        self, source: Source, views: Views, terms: Terms, seed: int, cache_bytes: int = 0, *, draw_only: bool = False
    ) -> None:
        self.source, self.views, self.terms, self.seed, self.cache_bytes, self.draw_only = (
            source,
            views,
            terms,
            seed,
            cache_bytes,
            draw_only,
        )
        self._order: tuple[int, EpochOrder] | None = None
        self._cache: OrderedDict[Key, Picture] = OrderedDict()
        self._cached_bytes = 0
        self._shards = OpenShards()

    def place(self, position: Position) -> Place:
        """What is at a position, by the order of its epoch."""
        epoch, index = position
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self.source.order(epoch, self.seed))
        occurrence, record = divmod(index, len(self._order[1]))
        return Place(position, self._order[1][record], occurrence)

    def __getitem__(self, asked: Position | Place) -> Sample:
        given = asked if isinstance(asked, Place) else self.place(asked)
        epoch, index = given.position
        failed: list[str] = []
        for step in range(MAX_REPLACEMENTS):
            here = self.place((epoch, index + step)) if step else given
            pair, occurrence = here.pair, here.occurrence
            try:
                real, fake = self._image(pair.real), self._image(pair.fake)
            except (OSError, BadImage) as error:
                failed.append(f"{pair.id}: {error}")
                continue
            real, fake = (
                with_history(image, self.views, view_rng(self.seed, epoch, pair.id, "history", occurrence))
                for image in (real, fake)
            )
            sizes = _size_px(real), _size_px(fake)
            plans = plan_views(
                *sizes, pair.id, self.views, seed=self.seed, epoch=epoch, occurrence=occurrence, terms=self.terms
            )
            if self.draw_only:
                return Drawn({"real": torch.as_tensor(real), "fake": torch.as_tensor(fake)}, plans), failed
            return make_views(real, fake, plans), failed
        raise DataError(f"{MAX_REPLACEMENTS} records in a row cannot be read, the last: {failed[-1]}")

    def _image(self, key: Key) -> Picture:
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        data = self._shards.read(key)
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

    A step is `accumulation` micro-batches of `batch` records on each of `world` ranks; together they take consecutive
    positions.
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


@dataclass(frozen=True)
class _Places(Sampler[list[Place]]):
    """The batches of `sampler` with what is at each position."""

    sampler: StepSampler
    data: PairDataset

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Place]]:
        return ([self.data.place(position) for position in batch] for batch in self.sampler)


def collate(samples: list[tuple[dict[str, Tensor], list[str]]]) -> Batch:
    """Stack samples view by view, channels last as they are: any other layout costs more time than a view's crop."""
    views = {
        name: torch.stack([made[name].permute(1, 2, 0) for made, _ in samples]).permute(0, 3, 1, 2)
        for name in samples[0][0]
    }
    return Batch(views, [line for _, failed in samples for line in failed])


def collate_drawn(samples: list[tuple[Drawn, list[str]]]) -> DrawnBatch:
    """Samples of a data set that draws only, their images in one tensor."""
    return DrawnBatch(
        torch.cat([image.reshape(-1) for record, _ in samples for image in record.images.values()]),
        [{name: tuple(image.shape) for name, image in record.images.items()} for record, _ in samples],
        [record.plans for record, _ in samples],
        [line for _, failed in samples for line in failed],
    )


def made_on_device(views: Views, device: torch.device) -> bool:
    """Whether `device` makes the views, rather than the data processes. Raises RecipeError where the recipe contradicts
    itself.
    """
    if views.made_on == "device" and not views.fast:
        raise RecipeError(
            [
                (
                    "views.made_on = 'device': the PIL reference runs in data processes only, set views.fast=true "
                    "or views.made_on=workers"
                )
            ]
        )
    return views.made_on == "device" or (views.made_on == "auto" and views.fast and device.type == "cuda")


def make_batches(source: Source, recipe: Recipe, sampler: StepSampler, device: torch.device) -> Iterator[Batch]:
    """Batches in the sampler's order, decoded in `data.workers` processes (0 = in this one). Raises RecipeError; its
    batches, DataError.
    """
    draw_only = made_on_device(recipe.views, device)
    cache_bytes = recipe.training.image_cache_mb * 2**20
    data = PairDataset(source, recipe.views, recipe.loss.terms, recipe.training.seed, cache_bytes, draw_only=draw_only)
    made = _in_one_line(iter(_loader(data, recipe, sampler, pin=device.type == "cuda")))
    return _made_ahead(made, device) if draw_only else made


def drawn_batches(data: PairDataset, recipe: Recipe, sampler: StepSampler) -> Iterator[DrawnBatch]:
    """What the data processes hand to a device that makes the views; `data` has to draw only. Raises DataError."""
    return _in_one_line(iter(_loader(data, recipe, sampler, pin=False)))


def _loader(data: PairDataset, recipe: Recipe, sampler: StepSampler, *, pin: bool) -> DataLoader[Any]:
    workers = recipe.data.workers
    return DataLoader(
        data,
        batch_sampler=_Places(sampler, data),
        num_workers=workers,
        # Forked, they share the source with this process; they never use its GPU.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        collate_fn=collate_drawn if data.draw_only else collate,
        pin_memory=pin,
        worker_init_fn=_begin_data_process if workers else None,
        prefetch_factor=PREFETCHED if workers else None,
    )


def _in_one_line(batches: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from batches
    except DataError as error:
        # Of a data process: its message is the whole traceback there, which ends with what was said.
        said = str(error).rpartition(f"{DataError.__module__}.{DataError.__qualname__}: ")[2]
        raise DataError(said.strip()) from error


def _made_ahead(drawn: Iterator[DrawnBatch], device: torch.device) -> Iterator[Batch]:
    """The views of each batch, made by a thread on a stream of its own while the caller works with the batch before."""
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def make_next() -> Batch | None:
        batch = next(drawn, None)
        if batch is None:
            return None
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            made = batch.on(device)
        if stream is not None:
            stream.synchronize()
        return made

    with ThreadPoolExecutor(1, thread_name_prefix="views") as maker:
        ahead = maker.submit(make_next)
        while (batch := ahead.result()) is not None:
            ahead = maker.submit(make_next)
            if stream is not None:
                for images in (
                    batch.views.values()
                ):  # else their memory could be used again before the caller's stream has read it
                    images.record_stream(torch.cuda.current_stream(device))
            yield batch


def _begin_data_process(_worker: int) -> None:
    """One thread for work, and of SIGINT and SIGTERM only what the training process sends: one to the whole group is
    for it, which then saves.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(parent: int) -> None:
    # Not a handler: those wait for the main thread, which may hang in a read.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent and os.getppid() == parent:
        pass
    os._exit(0)
