"""Measures the input side and the training step: views per second here against augly's, on the same images and cores, in one run.

    uv venv .assay/augly && uv pip install -p .assay/augly augly==1.0.0 'pillow<11' 'numpy<2'
    python -m train.main bench --data tests/data/images --augly-python .assay/augly/bin/python

Ratios are the result: rounds of both are interleaved and the medians compared, so that a busy machine slows both alike.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from train.data.folder import FolderSource, scan_folder
from train.data.images import DataError, decode_image, decode_pixels
from train.data.loader import StepSampler, make_loader
from train.data.records import Pair
from train.distributed import Group, pick_device
from train.engine import Trainer
from train.recipe import Views, load_recipe
from train.transforms.views import make_views, plan_views

ROUNDS = 3
MIN_SIDE_PX = 64
_BASELINE = Path(__file__).with_name("bench_augly.py")
INSTALL = "uv venv .assay/augly && uv pip install -p .assay/augly augly==1.0.0 'pillow<11' 'numpy<2'"


def measure(data: Path, augly_python: Path | None, *, processes: int = 0, records: int = 40, train_steps: int = 3) -> dict[str, Any]:
    """Views/s of the fast path, of the PIL reference and of augly (absent where it is not installed), and the training step's figures.

    `views_per_s` counts decoding, `ops_per_s` crops, ops and tails alone; `*_cpu` are per second of CPU time, which a busy machine
    distorts less. Raises DataError for unusable images or an interpreter without augly.
    """
    processes = processes or os.cpu_count() or 1
    source, _ = scan_folder(data, MIN_SIDE_PX)
    order = source.order(0, 0)
    pairs = [order[index % len(order)] for index in range(records)]
    paths = [(pair.real.path, pair.fake.path) for pair in pairs]
    interpreter = _augly(augly_python)
    rounds: dict[str, list[dict[str, float]]] = {"fast": [], "reference": [], "augly": []}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool, ThreadPoolExecutor(processes) as starter:
        for fast in (True, False):  # start the processes and warm them up
            list(pool.map(_make_views, [(pairs[:2], fast, 0)] * processes))
        for _ in range(ROUNDS):
            for name in ("fast", "reference"):
                rounds[name].append(_rates(list(pool.map(_make_views, [(pairs, name == "fast", seed) for seed in range(processes)]))))
            if interpreter is not None:
                rounds["augly"].append(_rates(list(starter.map(lambda seed: _run_augly(interpreter, paths, seed), range(processes)))))
    medians = {name: {key: round(statistics.median(r[key] for r in done), 1) for key in done[0]} for name, done in rounds.items() if done}
    result: dict[str, Any] = {"processes": processes, "records_per_process": records, "rounds": ROUNDS, "rates": medians}
    if "augly" in medians:
        result["times_augly"] = {
            name: {key: round(medians[name][key] / medians["augly"][key], 2) for key in medians[name]} for name in ("fast", "reference")
        }
    else:
        result["augly"] = f"not measured: {INSTALL}, then --augly-python .assay/augly/bin/python"
    if train_steps:
        result["training"] = _train_steps(source, train_steps)
    return result


def _rates(clocks: list[dict[str, float]]) -> dict[str, float]:
    """Views per second over all processes, each with its own clock, so that starting them does not count."""
    count = sum(clock["count"] for clock in clocks)
    busy, views = sum(clock["decode"] + clock["views"] for clock in clocks), sum(clock["views"] for clock in clocks)
    return {"views_per_s": sum(clock["count"] / clock["wall"] for clock in clocks), "views_per_s_cpu": count / busy, "ops_per_s_cpu": count / views}


def _make_views(job: tuple[list[Pair], bool, int]) -> dict[str, float]:
    pairs, fast, seed = job
    torch.set_num_threads(1)
    recipe, clock, count, started = Views(fast=fast), {"decode": 0.0, "views": 0.0}, 0, time.perf_counter()
    for pair in pairs:
        begun = time.process_time()
        real, fake = (decode_pixels(key.read()) if fast else decode_image(key.read()) for key in (pair.real, pair.fake))
        decoded = time.process_time()
        sizes = [(image.shape[1], image.shape[0]) if fast else image.size for image in (real, fake)]
        count += len(make_views(real, fake, plan_views(*sizes, pair.id, recipe, seed=seed, epoch=0)))
        clock["decode"] += decoded - begun
        clock["views"] += time.process_time() - decoded
    return {"count": count, "wall": time.perf_counter() - started, **clock}


def _augly(python: Path | None) -> Path | None:
    if python is None:
        return Path(sys.executable) if importlib.util.find_spec("augly") else None
    check = subprocess.run([str(python), "-c", "import augly.image"], capture_output=True, text=True, check=False) if python.exists() else None
    if check is None or check.returncode:
        raise DataError(f"{python} cannot import augly.image: {INSTALL}")
    return python


def _run_augly(python: Path, paths: list[tuple[str, str]], seed: int) -> dict[str, float]:
    done = subprocess.run([str(python), str(_BASELINE)], input=json.dumps({"seed": seed, "pairs": paths}), capture_output=True, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def _train_steps(source: FolderSource, steps: int) -> dict[str, Any]:
    """Images/s and the share of time waiting for data over `steps` steps of the smoke recipe, after one to warm up."""
    recipe = load_recipe("smoke", ["views.local_size_px=224"])
    trainer = Trainer(recipe, Group(0, 1, pick_device("auto")))
    batches = iter(make_loader(source, recipe, StepSampler(recipe.training.batch_size, 1, steps + 1, 1)))
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
    return {"device": str(trainer.group.device), "batch_records": recipe.training.batch_size, "images_per_s": rate, "waiting_for_data": share}
