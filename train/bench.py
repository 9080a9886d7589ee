"""Measures the input side and the training step: views per second here against the released pipeline's, on the same
images and cores.

    uv venv .assay/augly && uv pip install -p .assay/augly augly==1.0.0 'pillow<11' 'numpy<2'
    python -m train.main bench --data tests/data/images --augly-python .assay/augly/bin/python

Each side makes the same views (same boxes, ops and parameters) of the same records, one process per core, in
interleaved rounds.
The result is ratios: the median over the rounds, so that a busy machine slows both alike.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.bench_augly import RECORDS_PER_BATCH, Clock
from train.data.folder import FolderSource, scan_folder
from train.data.images import DataError, decode_image, decode_pixels, read_header
from train.data.loader import StepSampler, collate, make_batches
from train.distributed import Group, pick_device
from train.engine import Trainer
from train.model import normalise
from train.recipe import Views, load_recipe
from train.transforms.views import Plan, make_views, plan_views

ROUNDS = 3
MIN_SIDE_PX = 64
GPU_BATCH_RECORDS = 256
UNUSED_FAKES = 3  # of the four of a D3 record
SIDES = ("fast", "reference", "augly")
# What a rate counts: the ops asked for by name, the same with the two images decoded, and everything from bytes to
# float32 batches.
SCOPES = {
    "views": ("views",),
    "with_decoding": ("decode", "views"),
    "whole_input": ("decode", "decode_unused", "views", "batch"),
}
INSTALL = "uv venv .assay/augly && uv pip install -p .assay/augly augly==1.0.0 'pillow<11' 'numpy<2'"
_BASELINE = Path(__file__).with_name("bench_augly.py")


@dataclass(frozen=True)
class Work:
    """One record: paths of its real, its fake and the fakes that a released record has besides, and the draw of its
    views.
    """

    real: str
    fake: str
    unused: list[str]
    plans: dict[str, Plan]


def measure(
    data: Path, augly_python: Path | None, *, processes: int = 0, records: int = 40, train_steps: int = 3
) -> dict[str, Any]:
    """Views per second of the fast path, of the PIL reference and of augly (absent where it is not installed), and the
    training step's figures.

    `views_per_s_cpu` is per second of CPU time: `views` from decoded images to uint8 views, `with_decoding` from the
    bytes of the two
    images, `whole_input` from the bytes of the record to normalised float32 batches, where the release decodes five
    images and this
    package two. `views_per_s_wall` is the last of them by the wall clock, all processes together. `times_augly` has the
    ratios, and
    `grey_levels_apart` how far the two sides' views differ on average. Raises DataError for unusable images or an
    interpreter without augly.
    """
    processes = processes or os.cpu_count() or 1
    source, _ = scan_folder(data, MIN_SIDE_PX)
    interpreter = _augly(augly_python)
    jobs = [_draw(source, records, seed) for seed in range(processes)]
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES if side != "augly" or interpreter is not None}
    with (
        ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool,
        ThreadPoolExecutor(processes) as starter,
    ):
        makers: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "fast": lambda: list(pool.map(_make_fast, jobs)),
            "reference": lambda: list(pool.map(_make_reference, jobs)),
            "augly": lambda: list(starter.map(lambda job: _run_augly(interpreter, job), jobs)),
        }
        for _ in range(ROUNDS):
            for side, done in rounds.items():
                done.append(_rates(makers[side]()))
    result: dict[str, Any] = {
        "processes": processes,
        "records_per_process": records,
        "rounds": ROUNDS,
        "views_per_s_cpu": {scope: {side: _median(done, scope) for side, done in rounds.items()} for scope in SCOPES},
        "views_per_s_wall": {side: _median(done, "wall") for side, done in rounds.items()},
    }
    if interpreter is None:
        result["augly"] = f"not measured: {INSTALL}, then --augly-python .assay/augly/bin/python"
    else:
        result["times_augly"] = {
            side: {name: _ratio(rounds[side], rounds["augly"], name) for name in (*SCOPES, "wall")}
            for side in ("fast", "reference")
        }
        result["grey_levels_apart"] = round(
            float(np.abs(np.subtract(rounds["fast"][0]["levels"], rounds["augly"][0]["levels"])).mean()), 2
        )
    if train_steps:
        result["training"] = _train_steps(source, train_steps)
    return result


def _draw(source: FolderSource, records: int, seed: int) -> list[Work]:
    order, recipe = source.order(seed, 0), Views()
    work = []
    for index in range(records):
        pair, others = (
            order[index % len(order)],
            [order[(index + step) % len(order)].fake.path for step in range(1, UNUSED_FAKES + 1)],
        )
        sizes = [
            (header.width, header.height) for header in (read_header(key.read()) for key in (pair.real, pair.fake))
        ]
        plans = plan_views(*sizes, pair.id, recipe, seed=seed, epoch=0, occurrence=index // len(order))
        work.append(Work(pair.real.path, pair.fake.path, others, plans))
    return work


def _median(done: list[dict[str, Any]], name: str) -> float:
    return round(statistics.median(rates[name] for rates in done), 1)


def _ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], name: str) -> float:
    return round(statistics.median(mine[name] / other[name] for mine, other in zip(ours, theirs, strict=True)), 2)


def _rates(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Views per second over all processes, each with its own clock, so that starting them does not count."""
    count = sum(len(answer["levels"]) for answer in answers)
    rates: dict[str, Any] = {
        scope: count / sum(answer["cpu"].get(stage, 0.0) for answer in answers for stage in stages)
        for scope, stages in SCOPES.items()
    }
    wall = sum(len(answer["levels"]) / answer["wall"] for answer in answers)
    return rates | {"wall": wall, "levels": [level for answer in answers for level in answer["levels"]]}


def _make_fast(work: list[Work]) -> dict[str, Any]:
    return _timed(work, decode_pixels)


def _make_reference(work: list[Work]) -> dict[str, Any]:
    return _timed(work, decode_image)


def _timed(work: list[Work], decode: Callable[[bytes], Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    _make(work[:2], decode, Clock())
    clock, started = Clock(), time.perf_counter()
    levels = _make(work, decode, clock)
    return {"levels": levels, "wall": time.perf_counter() - started, "cpu": clock.seconds}


def _make(work: list[Work], decode: Callable[[bytes], Any], clock: Clock) -> list[float]:
    levels: list[float] = []
    for first in range(0, len(work), RECORDS_PER_BATCH):
        samples = []
        for record in work[first : first + RECORDS_PER_BATCH]:
            real, fake = (decode(Path(path).read_bytes()) for path in (record.real, record.fake))
            clock.lap("decode")
            samples.append((make_views(real, fake, record.plans), []))
            clock.lap("views")
            levels += [float(view.numpy().mean()) for view in samples[-1][0].values()]
            clock.lap("unmeasured")
        for images in collate(samples).views.values():
            normalise(images)
        clock.lap("batch")
    return levels


def _augly(python: Path | None) -> Path | None:
    if python is None:
        return Path(sys.executable) if importlib.util.find_spec("augly") else None
    check = (
        subprocess.run([str(python), "-c", "import augly.image"], capture_output=True, text=True, check=False)
        if python.exists()
        else None
    )
    if check is None or check.returncode:
        raise DataError(f"{python} cannot import augly.image: {INSTALL}")
    return python


def _run_augly(python: Path | None, work: list[Work]) -> dict[str, Any]:
    request = json.dumps([dataclasses.asdict(record) for record in work])
    done = subprocess.run([str(python), str(_BASELINE)], input=request, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _train_steps(source: FolderSource, steps: int) -> dict[str, Any]:
    """Images/s and the share of time waiting for data over `steps` steps after one to warm up: the smoke recipe's, with
    the paper's
    batch and a data process per core where there is a GPU.
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
    rate, share = round(images / total, 1), round(waited / total, 3)
    return {
        "device": str(device),
        "batch_records": recipe.training.batch_size,
        "images_per_s": rate,
        "waiting_for_data": share,
    }
