"""Will this run get through its first day here? What a job runs out of is reckoned before the first step, a line each.

    python -m train.main fit --recipe paper --set data.source=shards/ --run runs/paper --check

`fit` does the same by itself and does not begin where something is certain to fail: data processes that are out of file
descriptors hang without a word, and those out of shared memory die of a bus error. Only estimates end as warnings.
"""

from __future__ import annotations

import hashlib
import math
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from train.data.images import BadImage, read_header
from train.data.loader import PREFETCHED, made_on_device
from train.data.records import Pair, Source
from train.data.shards import unindexed
from train.distributed import Group
from train.losses import VIEWS
from train.model import create_encoder
from train.recipe import Recipe
from triton_models.weights import ENCODER_NAME

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux has it; nothing is written there by name
OWN_DESCRIPTORS = 128  # of a process that trains: libraries, sockets between ranks, the GPU's devices
DESCRIPTORS_OF_WORKER = 6  # its queue and pipes
# Of ViT-Tiny's backward pass, in float16: 34 bytes a token, channel and block (Korthikanti et al., arXiv 2205.05198).
ACTIVATION_BYTES = 34 * 12 * 197 * 192
SAMPLED_RECORDS = 32
CLOCK_APART_S = 5.0
MANY_ROUNDS = 4  # through the data in one epoch


@dataclass(frozen=True)
class Finding:
    """`problem` is empty where all is well; `certain` says that the run would fail. `change` is what to do."""

    what: str
    found: str
    problem: str = ""
    change: str = ""
    certain: bool = False

    def line(self) -> str:
        return f"{self.what}: {self.found}" + (f"; {self.problem}: {self.change}" if self.problem else "")


@dataclass(frozen=True)
class Machine:
    """What there is here, for `processes` training processes on this machine."""

    descriptors: int
    shared_bytes: float
    disk_bytes: float
    memory_bytes: float
    gpu_bytes: float  # NaN without a GPU
    cores: int
    processes: int

    @classmethod
    def here(cls, run: Path, group: Group) -> Machine:
        cuda = group.device.type == "cuda"
        return cls(
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else math.inf,
            shutil.disk_usage(_existing(run)).free,
            _available_bytes(),
            float(torch.cuda.mem_get_info(group.device)[0]) if cuda else math.nan,
            len(os.sched_getaffinity(0)),
            int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        )


def check(recipe: Recipe, run: Path, source: Source, group: Group, machine: Machine | None = None) -> list[Finding]:
    """Every finding of this process, the same kinds on each; all ranks have to call it. Raises RecipeError."""
    here = machine or Machine.here(run, group)
    order = source.order(0, recipe.training.seed)
    step = max(1, len(order) // SAMPLED_RECORDS)
    sampled = [order[place] for place in range(0, len(order), step)][:SAMPLED_RECORDS]
    on_device = made_on_device(recipe.views, group.device)
    batch_bytes = float(_drawn_bytes(recipe, sampled) if on_device else _views_bytes(recipe))
    return [
        _same_data(len(order), sampled, group),
        _rounds(recipe, len(order), group),
        _index(Path(recipe.data.source)),
        _descriptors(recipe, here, 1 if on_device else _view_count(recipe)),
        _shared_memory(recipe, here, batch_bytes),
        _memory(recipe, here),
        _gpu_memory(recipe, here),
        _cores(recipe, here),
        _disk(recipe, here),
        _clock(run, group),
    ]


def report(findings: Sequence[Finding], console: Console, *, all_of_them: bool) -> None:
    """Findings as lines: what would fail in red, what may in yellow, and (`all_of_them`) what is well."""
    for finding in findings:
        if finding.problem or all_of_them:
            style = ("red" if finding.certain else "yellow") if finding.problem else "green"
            console.print(finding.line(), style=style, highlight=False, markup=False, soft_wrap=True)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def _available_bytes() -> float:
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), math.inf)


def _view_count(recipe: Recipe) -> int:
    return len(VIEWS) if recipe.loss.terms == "both" else len(VIEWS) // 2


def _views_bytes(recipe: Recipe) -> int:
    """Of a batch of views as data processes hand it over."""
    views, local = recipe.views, 0 if recipe.loss.terms == "global_only" else 2
    pixels = local * views.local_size_px**2 + (_view_count(recipe) - local) * views.size_px**2
    return recipe.training.batch_size * 3 * pixels


def _drawn_bytes(recipe: Recipe, sampled: Sequence[Pair]) -> float:
    """Of a batch of decoded images, by the headers of some."""
    pixels = []
    for pair in sampled:
        for key in (pair.real, pair.fake):
            try:
                header = read_header(key.read())
            except (OSError, BadImage):
                continue  # the loader replaces the record
            pixels.append(header.width * header.height)
    return recipe.training.batch_size * 2 * 3 * sum(pixels) / max(1, len(pixels))


def _under_way(recipe: Recipe) -> int:
    """Batches between data processes and training at a time."""
    return PREFETCHED * recipe.data.workers + 1 if recipe.data.workers else 0


def _mib(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _within(what: str, need: float, there: float, change: str, *, show: Callable[[float], str] = _mib) -> Finding:
    """Certain failure where less is there than is needed."""
    found = f"{show(need)} needed, {show(there)} there" if math.isfinite(there) else "not limited"
    return Finding(what, found, "too little", change, certain=True) if need > there else Finding(what, found)


def _same_data(records: int, sampled: Sequence[Pair], group: Group) -> Finding:
    digest = hashlib.blake2b(str(records).encode(), digest_size=6)
    for pair in sampled:
        digest.update(repr((pair.id, pair.real.offset, pair.fake.offset, pair.fake.size_bytes)).encode())
    seen = group.gather(float(int.from_bytes(digest.digest(), "big")))
    found = f"{records} records" + (f" on all of {group.world} ranks" if group.world > 1 else "")
    if len(set(seen)) == 1:
        return Finding("data", found)
    odd = [rank for rank, value in enumerate(seen) if value != seen[0]]
    change = "mount the same data.source on every machine, whole"
    return Finding("data", f"{records} records here", f"ranks {odd} see other data than rank 0", change, certain=True)


def _rounds(recipe: Recipe, records: int, group: Group) -> Finding:
    training = recipe.training
    step = training.batch_size * training.accumulation_steps * group.world
    rounds = training.steps_per_epoch * step / max(1, records)
    found = f"{step} records a step, {rounds:.1f} times through the data" if rounds else f"{step} records a step"
    if rounds <= MANY_ROUNDS:
        return Finding("epoch", found)
    return Finding("epoch", found, "each record comes often between two probes", "lower training.steps_per_epoch")


def _index(data: Path) -> Finding:
    missing = unindexed(data)
    if not missing:
        return Finding("index", "every shard has one, or there are none")
    change = f"run `python -m train.main data inspect {data}` once where the folder may be written"
    return Finding("index", f"{len(missing)} shards without", "every start reads all their headers", change)


def _descriptors(recipe: Recipe, here: Machine, tensors: int) -> Finding:
    need = OWN_DESCRIPTORS + DESCRIPTORS_OF_WORKER * recipe.data.workers + _under_way(recipe) * tensors
    change = f"`ulimit -n {need}`, or fewer data.workers"
    return _within("file descriptors", need, here.descriptors, change, show=lambda count: f"{count:.0f}")


def _shared_memory(recipe: Recipe, here: Machine, batch_bytes: float) -> Finding:
    need = _under_way(recipe) * batch_bytes * here.processes
    per_worker = PREFETCHED * batch_bytes * here.processes
    fitting = max(0, int((here.shared_bytes - per_worker / PREFETCHED) // per_worker)) if per_worker else 0
    larger = f"{SHARED_MEMORY} of {_mib(1.25 * need)} (docker --shm-size, an emptyDir of medium Memory)"
    return _within("shared memory", need, here.shared_bytes, f"{larger}, or data.workers={fitting}")


def _memory(recipe: Recipe, here: Machine) -> Finding:
    most = recipe.training.image_cache_mb * 2**20 * max(1, recipe.data.workers) * here.processes
    found = f"up to {_mib(most)} for decoded images, {_mib(here.memory_bytes)} there"
    if most < here.memory_bytes:
        return Finding("memory", found)
    return Finding("memory", found, "it may not suffice", "lower training.image_cache_mb or data.workers")


def _gpu_memory(recipe: Recipe, here: Machine) -> Finding:
    if math.isnan(here.gpu_bytes):
        return Finding("GPU memory", "no GPU here")
    if recipe.training.encoder != ENCODER_NAME:
        return Finding("GPU memory", f"not reckoned for {recipe.training.encoder}, {_mib(here.gpu_bytes)} free")
    wide = 2 if recipe.training.precision == "fp32" else 1
    size = (recipe.views.size_px / 224) ** 2
    views = recipe.training.batch_size * _view_count(recipe)
    need = views * ACTIVATION_BYTES * wide * size + 4 * 4 * _parameters(recipe) + 2 * _views_bytes(recipe)
    found = f"about {_mib(need)} needed, {_mib(here.gpu_bytes)} free"
    if need < 0.9 * here.gpu_bytes:
        return Finding("GPU memory", found)
    change = "a smaller training.batch_size with more training.accumulation_steps (negatives are of the batch alone)"
    return Finding("GPU memory", found, "it may not suffice", change)


def _parameters(recipe: Recipe) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_encoder(recipe.training.encoder).parameters())


def _cores(recipe: Recipe, here: Machine) -> Finding:
    busy = here.processes * max(1, recipe.data.workers)
    found = f"{here.cores} for {here.processes} training and {here.processes * recipe.data.workers} data processes"
    if busy <= 2 * here.cores:
        return Finding("cores", found)
    return Finding("cores", found, "they wait for each other", f"data.workers={max(1, here.cores // here.processes)}")


def _disk(recipe: Recipe, here: Machine) -> Finding:
    weights = 4 * _parameters(recipe)
    need = 2 * 3 * weights + 2 * weights  # two moments beside the weights; a file stands beside the one it replaces
    return _within("disk for checkpoints", need, here.disk_bytes, "free some, or another --run")


def _clock(run: Path, group: Group) -> Finding:
    """By a file of the run's file system, and among ranks: whether an index is current is told by times."""
    folder = _existing(run)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as probe:
            apart = abs(Path(probe.name).stat().st_mtime - time.time())
    except OSError as error:
        apart, unwritable = 0.0, error.strerror or str(error)
    else:
        unwritable = ""
    clocks = group.gather(time.time())
    apart = max(apart, max(clocks) - min(clocks))
    if unwritable:
        return Finding("run folder", f"{folder}", unwritable, "name another folder with --run", certain=True)
    if apart <= CLOCK_APART_S:
        return Finding("clock", "that of the run's folder")
    return Finding(
        "clock", f"{apart:.0f} s apart", "machines or file system disagree", "keep time by NTP on all of them"
    )
