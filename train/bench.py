"""Measures the input side and the training step: views per second of the fast path against the PIL reference's.

    python -m train.main bench --data tests/data/images

Both make the same views (same boxes, ops and parameters) of the same records, one process per core, in interleaved
rounds. The result is ratios: the median over the rounds, so that a busy machine slows both alike.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.data.folder import FolderSource, scan_folder
from train.data.images import decode_image, decode_pixels, read_header
from train.data.loader import Batch, StepSampler, collate, make_batches
from train.distributed import Group, pick_device
from train.losses import VIEWS
from train.model import normalise
from train.recipe import Views, load_recipe
from train.trainer import Trainer, precision_on
from train.transforms.views import Plan, make_views, plan_views

ROUNDS = 3
MIN_SIDE_PX = 64
GPU_BATCH_RECORDS = 256
BATCH_RECORDS = 16
STEP_RECORDS = 4
# What a rate counts: the ops asked for by name, the same with the two images decoded, and everything from bytes to
# float32 batches.
SCOPES = {"views": ("views",), "with_decoding": ("decode", "views"), "whole_input": ("decode", "views", "batch")}


@dataclass(frozen=True)
class Work:
    """One record: paths of its real and its fake, and the draw of its views."""

    real: str
    fake: str
    plans: dict[str, Plan]


class Clock:
    """Seconds of CPU time by part of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, part: str) -> None:
        now = time.process_time()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now


def measure(data: Path, *, processes: int = 0, records: int = 40, train_steps: int = 3) -> dict[str, Any]:
    """Views per second of the fast path and of the PIL reference, and the training step's figures.

    `views_per_s_cpu` is per second of CPU time: `views` from decoded images to uint8 views, `with_decoding` from the
    bytes of the two images, `whole_input` from these to normalised float32 batches. `views_per_s_wall` is the last of
    them by the wall clock, all processes together. `times_reference` has the ratios, and `grey_levels_apart` how far
    the two sides' views differ on average. Raises DataError for unusable images.
    """
    processes = processes or os.cpu_count() or 1
    source, _ = scan_folder(data, MIN_SIDE_PX)
    jobs = [_draw(source, records, seed) for seed in range(processes)]
    sides: dict[str, Callable[[list[Work]], dict[str, Any]]] = {"fast": make_fast, "reference": make_reference}
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for _ in range(ROUNDS):
            for side, make in sides.items():
                rounds[side].append(_rates(list(pool.map(make, jobs))))
    fast, reference = rounds["fast"], rounds["reference"]
    result: dict[str, Any] = {
        "processes": processes,
        "records_per_process": records,
        "rounds": ROUNDS,
        "views_per_s_cpu": {scope: {side: _median(done, scope) for side, done in rounds.items()} for scope in SCOPES},
        "views_per_s_wall": {side: _median(done, "wall") for side, done in rounds.items()},
        "times_reference": {name: _ratio(fast, reference, name) for name in (*SCOPES, "wall")},
        "grey_levels_apart": round(float(np.abs(np.subtract(fast[0]["levels"], reference[0]["levels"])).mean()), 2),
    }
    if train_steps:
        result["training"] = time_train_steps(source, train_steps)
        result["step"] = time_step_parts(train_steps)
    return result


def _draw(source: FolderSource, records: int, seed: int) -> list[Work]:
    order, recipe = source.order(seed, 0), Views()
    work = []
    for index in range(records):
        pair = order[index % len(order)]
        real, fake = (read_header(key.read()) for key in (pair.real, pair.fake))
        plans = plan_views(
            (real.width, real.height),
            (fake.width, fake.height),
            pair.id,
            recipe,
            seed=seed,
            epoch=0,
            occurrence=index // len(order),
        )
        work.append(Work(pair.real.path, pair.fake.path, plans))
    return work


def _median(done: Sequence[dict[str, Any]], name: str) -> float:
    return round(float(statistics.median(rates[name] for rates in done)), 1)


def _ratio(fast: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]], name: str) -> float:
    return round(statistics.median(float(a[name] / b[name]) for a, b in zip(fast, reference, strict=True)), 2)


def _rates(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Views per second over all processes, each with its own clock, so that starting them does not count."""
    count = sum(len(answer["levels"]) for answer in answers)
    rates: dict[str, Any] = {
        scope: count / sum(answer["cpu"][part] for answer in answers for part in parts)
        for scope, parts in SCOPES.items()
    }
    wall = sum(len(answer["levels"]) / answer["wall"] for answer in answers)
    return rates | {"wall": wall, "levels": [level for answer in answers for level in answer["levels"]]}


def make_fast(work: list[Work]) -> dict[str, Any]:
    """The views by the fast path: mean grey `levels` of each, `wall` seconds, `cpu` seconds by part."""
    return _timed(work, decode_pixels)


def make_reference(work: list[Work]) -> dict[str, Any]:
    """The same by the PIL reference."""
    return _timed(work, decode_image)


def _timed(work: list[Work], decode: Callable[[bytes], Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    _make(work[:2], decode, Clock())
    clock, started = Clock(), time.perf_counter()
    levels = _make(work, decode, clock)
    return {"levels": levels, "wall": time.perf_counter() - started, "cpu": clock.seconds}


def _make(work: list[Work], decode: Callable[[bytes], Any], clock: Clock) -> list[float]:
    levels: list[float] = []
    for first in range(0, len(work), BATCH_RECORDS):
        samples: list[tuple[dict[str, torch.Tensor], list[str]]] = []
        for record in work[first : first + BATCH_RECORDS]:
            real, fake = (decode(Path(path).read_bytes()) for path in (record.real, record.fake))
            clock.lap("decode")
            views = make_views(real, fake, record.plans)
            clock.lap("views")
            samples.append((views, []))
            levels += [float(view.numpy().mean()) for view in views.values()]
            clock.lap("unmeasured")
        for images in collate(samples).views.values():
            normalise(images)
        clock.lap("batch")
    return levels


def time_train_steps(source: FolderSource, steps: int) -> dict[str, Any]:
    """Images/s and the share of time waiting for data over `steps` steps after one to warm up: the smoke recipe's, with
    the paper's batch and a data process per core where there is a GPU.
    """
    device = pick_device("auto")
    large = (
        [f"training.batch_size={GPU_BATCH_RECORDS}", "training.precision=fp16", f"data.workers={os.cpu_count()}"]
        if device.type == "cuda"
        else []
    )
    recipe = load_recipe("smoke", ["views.local_size_px=224", *large])
    trainer = Trainer(recipe, Group(0, 1, device))
    batches = make_batches(source, recipe, StepSampler(recipe.training.batch_size, 1, steps + 1, 1), device)
    images, waited, total = 0, 0.0, 0.0
    for step in range(steps + 1):
        started = time.perf_counter()
        batch = next(batches)
        got = time.perf_counter()
        trainer.micro_step(batch, epoch=0, micro=step, last=True)
        trainer.update(good=True)
        if step:
            images += sum(len(view) for view in batch.views.values())
            waited += got - started
            total += time.perf_counter() - started
    return {
        "device": str(device),
        "batch_records": recipe.training.batch_size,
        "images_per_s": round(images / total, 1),
        "waiting_for_data": round(waited / total, 3),
    }


def time_step_parts(rounds: int) -> dict[str, Any]:
    """Milliseconds of CPU time of one step of the smoke recipe on noise (4 records), in float32 and bfloat16, and of
    AdamW alone, fused and plain; `times` are medians of the ratios over interleaved rounds. `auto` is what
    training.precision=auto takes here.
    """
    device = torch.device("cpu")
    recipes = {name: load_recipe("smoke", [f"training.precision={name}"]) for name in ("fp32", "bf16")}
    trainers = {name: Trainer(recipe, Group(0, 1, device)) for name, recipe in recipes.items()}
    size, rng = recipes["fp32"].views.size_px, np.random.default_rng(0)
    pixels = rng.integers(0, 256, (STEP_RECORDS, 3, size, size), dtype=np.uint8)
    batch = Batch({name: torch.from_numpy(pixels) for name in VIEWS[:4]})
    parameters = list(trainers["fp32"].encoder.parameters())
    adam = {
        "fused": torch.optim.AdamW(parameters, fused=True),
        "plain": torch.optim.AdamW(parameters, foreach=False, fused=False),
    }
    taken: dict[str, list[float]] = {name: [] for name in (*trainers, *adam)}
    for step in range(rounds + 1):
        for name, trainer in trainers.items():
            began = time.process_time()
            trainer.micro_step(batch, epoch=0, micro=step, last=True)
            taken[name].append(time.process_time() - began)
            trainer.optimizer.zero_grad()
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 1e-3)
        for name, optimizer in adam.items():
            began = time.process_time()
            optimizer.step()
            taken[name].append(time.process_time() - began)
    ratios = {
        f"{over}_over_{under}": round(
            statistics.median(a / b for a, b in zip(taken[over][1:], taken[under][1:], strict=True)), 2
        )
        for over, under in (("fp32", "bf16"), ("plain", "fused"))
    }
    ms = {name: round(1000 * statistics.median(seconds[1:]), 1) for name, seconds in taken.items()}
    return {"ms_cpu": ms, "times": ratios, "auto": precision_on(device, "auto")}
