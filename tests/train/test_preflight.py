"""What a run needs of its machine is reckoned before the first step: it works, or ends with a line that says what to
change. The limits here are real ones: descriptors, file systems and memory of a namespace of our own.
"""

import dataclasses
import io
import itertools
import os
import resource
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tests.train.small_runs import QUIET, StopAfter, small, weights
from train import beginning, engine, preflight
from train.data.folder import scan_folder
from train.data.loader import Batch, DrawnBatch, StepSampler, make_batches
from train.data.open import open_source
from train.data.shards import D3Record, write_shard
from train.distributed import Group
from train.preflight import Machine, check
from train.recipe import Recipe, RecipeError, load_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(engine.__file__).parents[1]
ALONE = Group(0, 1, torch.device("cpu"))
AMPLE = Machine(10**6, 1e15, 1e15, 1e15, 1e15, 64, 1)
SMALL = ["data.validation_fraction=0.4", "loss.terms=global_only", "training.steps_per_epoch=2", "training.device=cpu"]
SMALL += ["optimisation.epochs=1", "optimisation.warmup_epochs=0", "training.batch_size=2", "data.workers=0"]


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of four records each, without an index."""
    folder = tmp_path_factory.mktemp("shards")
    images_of = scan_folder(images)[0].labelled()
    real, fake = ([image.key.read() for image in images_of if image.label == label] for label in (0, 1))
    for number in range(2):
        records = [
            D3Record(f"r{index}", {"real": real[index], "gen_0": fake[index]}, "", "", {})
            for index in range(4 * number, 4 * number + 4)
        ]
        write_shard(folder, number, records)
    for index in folder.glob("*.npz"):
        index.unlink()
    return folder


def command_of(*arguments: str, before: str = "", ranks: int = 0) -> subprocess.CompletedProcess:
    """`fit` as a command of its own, after the shell commands `before` (in a mount namespace where they mount)."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "--"]
    command = [sys.executable, *(launch if ranks else ["-m"]), "train.main", "fit", *arguments]
    if before:
        command = ["bash", "-c", f'set -e; {before}; exec "$@"', "bash", *command]
    if "mount" in before:
        command = ["unshare", "--map-root-user", "--mount", *command]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=ROOT)


def fit_with(data: Path, run: Path, *settings: str, before: str = "", ranks: int = 0) -> subprocess.CompletedProcess:
    """A run of two steps of two records."""
    overrides = [part for setting in [f"data.source={data}", *SMALL, *settings] for part in ("--set", setting)]
    return command_of("--recipe", "smoke", "--run", str(run), *overrides, before=before, ranks=ranks)


def needs_namespaces() -> None:
    """Skips where this user may not mount in a namespace of his own."""
    tried = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    if not shutil.which("unshare") or subprocess.run(tried, check=False, capture_output=True).returncode:
        pytest.skip("no mount namespaces here")


def of(recipe: Recipe, images: Path, run: Path, machine: Machine) -> dict[str, preflight.Finding]:
    return {found.what: found for found in check(recipe, run, open_source(images), ALONE, machine)}


def test_batches_of_drawn_images_come_through_few_descriptors(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `ulimit -n 1024`, 256 records of two images each and several batches under way: a descriptor for each image
    would hang without a word.
    """
    recipe = load_recipe("smoke", ["views.made_on=device", "data.workers=2", "training.batch_size=256"])
    monkeypatch.setattr(DrawnBatch, "on", lambda batch, _: Batch({"sizes": torch.zeros(len(batch.sizes))}))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    try:
        batches = make_batches(open_source(images), recipe, StepSampler(256, 1, 4, 1), torch.device("cpu"))
        assert [len(batch.views["sizes"]) for batch in itertools.islice(batches, 2)] == [256, 256]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_too_few_descriptors_are_named(images: Path, tmp_path: Path) -> None:
    """A run that would hang does not begin, and says how many it needs."""
    done = fit_with(images, tmp_path / "few", "views.made_on=device", "data.workers=2", before="ulimit -n 130")
    assert done.returncode == 2, done.stderr[-2000:]
    assert "file descriptors: 145 needed, 130 there; too little: `ulimit -n 145`, or fewer data.workers" in done.stderr


def test_shards_that_may_only_be_read_are_trained_on(shards: Path, tmp_path: Path) -> None:
    """Shards without an index on a read-only mount: the run works, and makes none."""
    needs_namespaces()
    data = tmp_path / "data"
    shutil.copytree(shards, data)
    done = fit_with(data, tmp_path / "run", before=f"mount --bind {data} {data}; mount -o remount,bind,ro {data}")
    assert done.returncode == 0 and "finished after 2 steps" in done.stderr, done.stderr[-2000:]
    assert not list(data.glob("*.npz"))


def test_many_shards_that_cannot_be_indexed_are_refused(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every start would read the headers of gigabytes, the line says which command to run where."""
    monkeypatch.setattr(beginning, "INDEXED_BY_EVERY_RUN_BYTES", 1)
    monkeypatch.setattr(beginning.os, "access", lambda *_: False)
    with pytest.raises(RecipeError, match=r"data\.source.*2 shards.*no index.*data inspect"):
        engine.fit(small(shards), tmp_path / "run", console=QUIET)


def test_four_ranks_on_shards_without_an_index(shards: Path, tmp_path: Path) -> None:
    """The first rank writes the indexes while the others wait, and all four train."""
    data = tmp_path / "data"
    shutil.copytree(shards, data)
    done = fit_with(data, tmp_path / "run", ranks=4)
    assert done.returncode == 0 and "finished after 2 steps" in done.stderr, done.stderr[-3000:]
    assert len(list(data.glob("*.index.npz"))) == 2
    assert done.stderr.count("finished after 2 steps") == 1, "the first rank speaks for all"


def test_shared_memory_of_64_mib(images: Path, tmp_path: Path) -> None:
    """Batches that fit into it are trained on; larger ones end the run before it begins, with the size it takes."""
    needs_namespaces()
    mounts = "mount -t tmpfs -o size=64m none /dev/shm"
    done = fit_with(images, tmp_path / "run", "data.workers=1", before=mounts)
    assert done.returncode == 0 and "finished after 2 steps" in done.stderr, done.stderr[-2000:]
    done = fit_with(images, tmp_path / "large", "data.workers=4", "training.batch_size=256", before=mounts)
    assert done.returncode == 2
    assert "shared memory: " in done.stderr and "--shm-size" in done.stderr and "data.workers=0" in done.stderr


def test_check_says_what_is_well_too(images: Path, tmp_path: Path) -> None:
    """`fit --check` has a line for everything it looked at, and trains nothing."""
    console = Console(record=True, width=300, file=io.StringIO())
    beginning.preflight(small(images), tmp_path / "run", console=console)
    said = console.export_text()
    for what in ("data: ", "epoch: ", "index: ", "file descriptors: ", "shared memory: ", "memory: ", "GPU memory: "):
        assert what in said
    assert "disk for checkpoints: " in said and "clock: " in said
    assert not (tmp_path / "run").exists()


def test_each_lack_is_found_and_nothing_else(images: Path, tmp_path: Path) -> None:
    """On an ample machine there is no problem; with one thing short there is that one, and what to change."""
    recipe = load_recipe("smoke", [f"data.source={images}", "data.workers=4", "training.steps_per_epoch=1"])

    def problems(**short: float) -> list[str]:
        found = of(recipe, images, tmp_path, dataclasses.replace(AMPLE, **short))
        return [what for what, finding in found.items() if finding.problem]

    assert problems() == []
    assert problems(descriptors=64) == ["file descriptors"]
    assert problems(shared_bytes=2**20) == ["shared memory"]
    assert problems(disk_bytes=2**20) == ["disk for checkpoints"]
    assert problems(memory_bytes=2**30) == ["memory"]
    assert problems(gpu_bytes=2**28) == ["GPU memory"]
    assert problems(cores=1) == ["cores"]
    none = of(recipe, images, tmp_path, dataclasses.replace(AMPLE, shared_bytes=2**20))["shared memory"]
    assert none.certain and "data.workers=0" in none.change


@dataclasses.dataclass(frozen=True)
class OtherRank(Group):
    """The first of two ranks; the other one answers with `theirs` added to what this one says."""

    theirs: float = 0.0

    def gather(self, value: float) -> list[float]:
        return [value, value + self.theirs]


def test_ranks_that_see_other_data_or_another_time_are_named(images: Path, tmp_path: Path) -> None:
    """The data of every rank are compared, and the clocks."""
    source = open_source(images)
    group = OtherRank(0, 2, torch.device("cpu"), theirs=60.0)
    found = {finding.what: finding for finding in check(small(images), tmp_path, source, group, AMPLE)}
    assert found["data"].certain and "ranks [1] see other data than rank 0" in found["data"].problem
    assert "60 s apart" in found["clock"].found and "NTP" in found["clock"].change
    group = OtherRank(0, 2, torch.device("cpu"))
    assert not any(finding.problem for finding in check(small(images), tmp_path, source, group, AMPLE))


def test_a_run_goes_on_with_other_ranks_only_when_told_to(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process with two accumulation steps, stopped after two steps: two processes are refused in a line, and with
    the flag they share the steps out and end at the weights of the uninterrupted run.
    """
    recipe = small(images, "training.accumulation_steps=2", "training.device=cpu")
    engine.fit(recipe, tmp_path / "whole", console=QUIET)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_stop_on_signal", lambda: nullcontext(StopAfter(4)))
        assert engine.fit(recipe, tmp_path / "run", console=QUIET).step == 2
    with pytest.raises(RecipeError, match=r"begun with 1 processes, here are 2: .*--adapt-ranks"):
        beginning.same_steps(recipe, 1, Group(0, 2, torch.device("cpu")), adapt=False)
    with pytest.raises(RecipeError, match="2 micro-batches"):
        beginning.same_steps(recipe, 1, Group(0, 3, torch.device("cpu")), adapt=True)
    done = command_of("--run", str(tmp_path / "run"), "--resume", "--adapt-ranks", ranks=2)
    assert done.returncode == 0 and "finished after 4 steps" in done.stderr, done.stderr[-3000:]
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "run")
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=2e-4, rtol=1e-2)
