"""The input side of a full run without its images: does it fit into memory and descriptors, how well is it mixed, does
it go on where it was?

    python -m train.main simulate --ranks 4 --workers 8

Shards, their indexes, the order, the data processes, the draws of views and the way between processes are those of a
run; the tars are sparse files, and what is read there is decoded as one small image of noise.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import active_children, get_context
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from train.data.images import DataError
from train.data.loader import DrawnBatch, PairDataset, StepSampler, drawn_batches
from train.data.reading import effective_sources
from train.data.records import Key
from train.data.shards import SLOTS, Mixing, ShardSource, open_shards, save_index
from train.preflight import SHARED_MEMORY
from train.recipe import Recipe, load_recipe
from train.transforms.views import Picture

D3_RECORDS = 2_306_629
LOOKED_AFTER_S = 2.0  # whether the ranks are still there
IMAGE_BYTES = 4096  # read for an image; those of D3 have some 200,000
NOISE = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Simulated:
    """What is simulated: `batches` of each rank, then again from the middle of them."""

    records: int = D3_RECORDS
    ranks: int = 4
    workers: int = 8
    batches: int = 24
    batch_size: int = 256
    records_per_shard: int = 5000
    shards_at_once: int = 16
    resample: bool = False

    def recipe(self, folder: Path) -> Recipe:
        """The paper's, on the shards in `folder`."""
        data = [f"data.source={folder}", f"data.workers={self.workers}", f"data.shards_at_once={self.shards_at_once}"]
        views = ["views.made_on=device", f"training.batch_size={self.batch_size}"]
        return load_recipe("paper", [*data, *views, f"data.resample={str(self.resample).lower()}"])


class NoiseDataset(PairDataset):
    """Reads where the images would be, and takes noise for what they show."""

    def _image(self, key: Key) -> Picture:
        if len(self._shards.read(key)) != IMAGE_BYTES:
            raise OSError(f"{key.path} is cut off")
        return NOISE


def simulate(plan: Simulated) -> dict[str, Any]:
    """Figures of all ranks: `memory_mib` (proportional set sizes while all data processes are at work, all processes
    together), of it `batches_mib` in shared memory; `worker_mib` (what the largest data process shares with none),
    `rank_mib` (resident in the largest rank, most of it shared with its data processes), `descriptors` (of the process
    with the most), `sources_a_batch` (effective number of shards in a step of all ranks), `restart_is_exact`, and
    seconds. Raises DataError where a rank dies.
    """
    with TemporaryDirectory(prefix="assay-simulate-") as scratch:
        began = time.perf_counter()
        write_sparse_shards(Path(scratch), plan)
        wrote_s = time.perf_counter() - began
        context = get_context("spawn")
        answers: Any = context.Queue()
        ranks = [context.Process(target=_rank, args=(plan, Path(scratch), rank, answers)) for rank in range(plan.ranks)]
        for process in ranks:
            process.start()
        found = sorted((_answer(answers, ranks) for _ in ranks), key=lambda one: int(one["rank"]))
        for process in ranks:
            process.join()
        began = time.perf_counter()
        source = _open(plan, Path(scratch))
        opened_s = time.perf_counter() - began
        began = time.perf_counter()
        order = source.order(0, 42)
        ordered_s = time.perf_counter() - began
    step = plan.batch_size * plan.ranks
    shards = source.shard_of[order.records]
    starts = range(0, min(len(shards) - step + 1, 200 * step), step)
    return {
        "records": len(order),
        "shards": len(source.shards),
        "memory_mib": round(sum(one["memory_mib"] for one in found)),
        "batches_mib": round(sum(one["batches_mib"] for one in found)),
        "worker_mib": round(max(one["worker_mib"] for one in found)),
        "rank_mib": round(max(one["rank_mib"] for one in found)),
        "descriptors": max(one["descriptors"] for one in found),
        "sources_a_batch": round(float(np.mean([effective_sources(shards[at : at + step]) for at in starts])), 1),
        "records_a_second": round(sum(one["records_a_second"] for one in found)),
        "restart_is_exact": all(one["restart_is_exact"] for one in found),
        "ranks_read_others": len({digest for one in found for digest in one["batches"]}) == plan.ranks * plan.batches,
        "seconds": {
            "writing_indexes": round(wrote_s, 1),
            "opening": round(opened_s, 1),
            "order": round(ordered_s, 1),
            "first_batch": round(max(one["first_batch_s"] for one in found), 1),
            "first_batch_after_restart": round(max(one["restart_s"] for one in found), 1),
        },
    }


def _answer(answers: Any, ranks: Sequence[Any]) -> dict[str, Any]:
    """What the next rank found. Raises DataError, and ends the others, where one has died (of too little memory)."""
    while True:
        try:
            return dict(answers.get(timeout=LOOKED_AFTER_S))
        except Empty:
            dead = [process.exitcode for process in ranks if process.exitcode]
            if dead:
                for process in ranks:
                    process.terminate()
                raise DataError(
                    f"a simulated rank died (exit code {dead[0]}; -9 is out of memory): take a smaller --batch-size, "
                    "or fewer --workers or --ranks"
                ) from None


def write_sparse_shards(folder: Path, plan: Simulated) -> None:
    """Tars of no content with whole indexes, of records of one real image and four fakes."""
    for number, first in enumerate(range(0, plan.records, plan.records_per_shard)):
        count = min(plan.records_per_shard, plan.records - first)
        places = 512 + np.arange(count * len(SLOTS), dtype=np.int64).reshape(count, len(SLOTS)) * (IMAGE_BYTES + 512)
        tar = folder / f"shard-{number:06d}.tar"
        with tar.open("wb") as file:
            file.truncate(int(places[-1, -1]) + IMAGE_BYTES)
        ids = [f"elsa_v2__train__{first + index:09d}" for index in range(count)]
        save_index(tar, ids, places, np.full_like(places, IMAGE_BYTES), np.full_like(places, 256))


def _open(plan: Simulated, folder: Path) -> ShardSource:
    return open_shards(folder, Mixing(shards_at_once=plan.shards_at_once, resample=plan.resample), 32)


def _rank(plan: Simulated, folder: Path, rank: int, answers: Any) -> None:
    torch.set_num_threads(1)
    source = _open(plan, folder)
    whole, first_batch_s, rest_s, usage = _batches(plan, folder, source, rank, first=0)
    half = plan.batches // 2
    again, restart_s, _, _ = _batches(plan, folder, source, rank, first=half)
    answers.put(
        {
            "rank": rank,
            "batches": whole,
            "first_batch_s": first_batch_s,
            "restart_s": restart_s,
            "restart_is_exact": again == whole[half:],
            "records_a_second": (plan.batches - 1) * plan.batch_size / max(rest_s, 1e-9),
            **usage,
        }
    )


def _batches(
    plan: Simulated, folder: Path, source: ShardSource, rank: int, *, first: int
) -> tuple[list[str], float, float, dict[str, float]]:
    """(a digest of each batch from `first` on, seconds to the first, seconds of the rest, usage on the way)."""
    recipe = plan.recipe(folder)
    sampler = StepSampler(plan.batch_size, 1, plan.batches, 1, rank, plan.ranks, first_step=first)
    data = NoiseDataset(source, recipe.views, recipe.loss.terms, recipe.training.seed, draw_only=True)
    digests, usage = [], {}
    began = time.perf_counter()
    first_s = 0.0
    for number, batch in enumerate(islice(drawn_batches(data, recipe, sampler), plan.batches - first)):
        digests.append(_digest(batch))
        first_s = first_s or time.perf_counter() - began
        if number == (plan.batches - first) // 3:
            usage = _usage()
    return digests, first_s, time.perf_counter() - began - first_s, usage


def _digest(batch: DrawnBatch) -> str:
    """Of the draws: they depend on record, epoch and view alone."""
    return hashlib.blake2b(repr([sorted(plans.items()) for plans in batch.plans]).encode(), digest_size=8).hexdigest()


def _usage() -> dict[str, float]:
    """Of this process and its data processes, as Linux counts them."""
    processes = [Path("/proc/self"), *(Path(f"/proc/{child.pid}") for child in active_children())]
    rolled = [_memory(process / "smaps_rollup") for process in processes]
    own = [one["Private_Clean"] + one["Private_Dirty"] for one in rolled]
    batches = _batches_mib(processes)
    return {
        "memory_mib": sum(one["Pss"] - one["Pss_Shmem"] for one in rolled) + batches,
        "batches_mib": batches,
        "worker_mib": max(own[1:], default=0.0),
        "rank_mib": rolled[0]["Rss"],
        "descriptors": max(len(list((process / "fd").iterdir())) for process in processes),
    }


def _memory(rollup: Path) -> dict[str, float]:
    """MiB by kind."""
    lines = (line.split() for line in rollup.read_text().splitlines() if line.endswith(" kB"))
    return {kind.rstrip(":"): int(kib) / 1024 for kind, kib, _ in lines}


def _batches_mib(processes: Sequence[Path]) -> float:
    """Of shared memory that these processes have open, each piece once: batches on their way are mapped by nobody, so
    that they are in no process's set.
    """
    found: dict[int, int] = {}
    for entry in (entry for process in processes for entry in (process / "fd").iterdir()):
        with suppress(OSError):  # closed meanwhile
            if entry.readlink().is_relative_to(SHARED_MEMORY):
                piece = entry.stat()
                found[piece.st_ino] = piece.st_blocks * 512
    return sum(found.values()) / 2**20
