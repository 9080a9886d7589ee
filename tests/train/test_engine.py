"""Training: exact resume, signals, bad numbers, data faults, early stop, two processes."""

import dataclasses
import errno
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from train import engine, trainer
from train.collapse import plateau
from train.data.folder import scan_folder
from train.data.loader import PairDataset, StepSampler, collate
from train.data.records import Key, Labelled
from train.data.synthetic import write_synthetic_folder
from train.distributed import Group
from train.embed import Embedded, Probe, linear_probe
from train.engine import TrainingCollapsed, TrainingDiverged, fit
from train.recipe import Recipe, RecipeError, Views, load_recipe, recipe_to_toml
from train.run_folder import RunFolder, read_metrics
from train.trainer import Trainer

pytestmark = pytest.mark.slow

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_synthetic_folder(folder, 8, size=64)
    return folder


def small(images: Path, *overrides: str) -> Recipe:
    """A recipe that takes a few seconds: two epochs of two steps with the global terms alone, on few images."""
    defaults = [f"data.source={images}", "data.workers=0", "data.validation_fraction=0.4", "loss.terms=global_only"]
    defaults += [
        "training.batch_size=2",
        "training.steps_per_epoch=2",
        "optimisation.epochs=2",
        "optimisation.warmup_epochs=0",
    ]
    return load_recipe("smoke", [*defaults, *overrides])


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoint.pt", weights_only=True)["encoder"]


def probe_of(auc: float) -> Probe:
    """A probe with this AUC on no images."""
    return Probe(auc, np.zeros(0), np.zeros(0))


class StopAfter(threading.Event):
    """Asks to stop after so many looks: a signal at a step of our choice."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def test_resumed_run_equals_the_uninterrupted_one(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of an epoch and resumed: weights and losses are the same, bit for bit."""
    recipe = small(images)
    whole = fit(recipe, tmp_path / "whole", console=QUIET)
    assert (whole.status, whole.step) == ("finished", 4)

    @contextmanager
    def stop_at_third_step():
        yield StopAfter(3)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_stop_on_signal", stop_at_third_step)
        stopped = fit(recipe, tmp_path / "parts", console=QUIET)
    assert (stopped.status, stopped.step) == ("interrupted", 3)
    assert fit(recipe, tmp_path / "parts", resume=True, console=QUIET).step == 4
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "parts")[name]), name
    losses = [
        [line["total"] for line in read_metrics(tmp_path / run) if line["kind"] == "step"] for run in ("whole", "parts")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_a_run_stopped_before_its_first_step_begins_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to stop in the probe before training, a run saves and ends; resumed it is the uninterrupted one: the second
    probe of the same encoder is no epoch without gain, and stands in the metrics once.
    """
    recipe = small(images, "optimisation.epochs=1", "validation.patience=1")
    whole = fit(recipe, tmp_path / "whole", console=QUIET)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_stop_on_signal", lambda: nullcontext(StopAfter(0)))
        stopped = fit(recipe, tmp_path / "parts", console=QUIET)
    assert (stopped.status, stopped.step) == ("interrupted", 0)
    assert fit(recipe, tmp_path / "parts", resume=True, console=QUIET) == whole
    assert whole.status == "finished"
    lines = [[(line["kind"], line["step"]) for line in read_metrics(tmp_path / run)] for run in ("whole", "parts")]
    assert lines[0] == lines[1] == [("probe", 0), ("step", 1), ("step", 2), ("probe", 2)]
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "parts").items())


@pytest.mark.parametrize("last", ['{"kind": "step", "st', '{"kind": "step", "step": 2, "total": 1.0}'])
def test_metrics_cut_off_by_a_kill_do_not_stop_a_resumed_run(last: str, tmp_path: Path) -> None:
    """A last line that a kill cut off, or left without its end, is dropped or ended; what is logged then stands on
    lines of its own.
    """
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "step": 1, "total": 0.1}\n' + last)
    folder = RunFolder(tmp_path)
    folder.forget_after(2)
    folder.log("step", 3, {"total": 0.3})
    folder.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == ([1, 3] if last.endswith("st") else [1, 2, 3])


def test_run_folder_says_what_was_run(images: Path, tmp_path: Path) -> None:
    """Recipe, environment, metrics and TensorBoard events are in the folder, and a second run is not written
    over it.
    """
    recipe = small(images, "optimisation.epochs=1")
    fit(recipe, tmp_path / "run", console=QUIET)
    assert load_recipe(tmp_path / "run" / "recipe.toml") == recipe
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["packages"]["torch"] and facts["git"]["commit"]
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    kinds = [line["kind"] for line in read_metrics(tmp_path / "run")]
    assert kinds == ["probe", "step", "step", "probe"]
    assert set(load_file(tmp_path / "run" / "best" / "encoder.safetensors")) == set(weights(tmp_path / "run"))
    with pytest.raises(RecipeError, match="--resume"):
        fit(recipe, tmp_path / "run", console=QUIET)
    with pytest.raises(RecipeError, match="nothing to resume"):
        fit(recipe, tmp_path / "none", resume=True, console=QUIET)


def test_corrupt_tiny_and_duplicate_images_do_not_stop_a_run(tmp_path: Path) -> None:
    """The run finishes, having named and counted what it left out."""
    write_synthetic_folder(tmp_path / "set", 6, size=64)
    real = tmp_path / "set" / "real"
    (real / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (real / "again.png").write_bytes((real / "0-00000.png").read_bytes())
    Image.new("RGB", (5, 5)).save(real / "tiny.png")
    console = Console(record=True, width=200)
    result = fit(small(tmp_path / "set", "optimisation.epochs=1"), tmp_path / "run", console=console)
    text = console.export_text()
    assert result.status == "finished"
    for name in ("broken.jpg", "again.png", "tiny.png"):
        assert name in text
    assert "1 corrupt, 1 duplicate, 1 tiny" in text


def test_image_that_vanishes_later_is_replaced_and_noted(tmp_path: Path) -> None:
    """An image lost after the scan costs its record only: the next one takes the place, the file is named in
    failed.txt.
    """
    write_synthetic_folder(tmp_path, 3, size=64)
    source, _ = scan_folder(tmp_path)
    lost = source.order(0, 1)[0]
    Path(lost.real.path).unlink()
    batch = collate([PairDataset(source, Views(), "both", 1)[(0, 0)]])
    assert batch.views["real"].shape == (1, 3, 224, 224)
    assert len(batch.failed) == 1 and lost.id in batch.failed[0]


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_reduced_precision_and_accumulation_train(precision: str, images: Path, tmp_path: Path) -> None:
    """Half precisions run with the loss in float32, and accumulation makes one update of several micro-batches."""
    recipe = small(
        images,
        f"training.precision={precision}",
        "training.accumulation_steps=2",
        "training.steps_per_epoch=1",
        "optimisation.epochs=1",
    )
    result = fit(recipe, tmp_path / "run", console=QUIET)
    assert (result.status, result.step) == ("finished", 1)
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())


def test_not_a_number_is_skipped_and_ends_the_run_if_it_stays(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step with a NaN loss changes no weight; too many in a row end the run with what to do next."""
    recipe = small(images, "training.max_bad_steps=3", "training.steps_per_epoch=10")
    torch.manual_seed(recipe.training.seed)
    made = Trainer(recipe, Group(0, 1, torch.device("cpu")))
    before = {name: tensor.clone() for name, tensor in made.encoder.state_dict().items()}
    for parameter in made.encoder.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    assert made.update(good=True) is False
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.encoder.state_dict().items())
    true_loss = trainer.code_loss
    monkeypatch.setattr(
        trainer, "code_loss", lambda *args, **kwargs: {"total": true_loss(*args, **kwargs)["total"] * float("nan")}
    )
    with pytest.raises(TrainingDiverged, match=r"3 steps in a row.*lr"):
        fit(recipe, tmp_path / "run", console=QUIET)


def test_a_step_whose_loss_scale_overflows_counts_as_bad(images: Path) -> None:
    """With fp16 a gradient that is no number skips the step: no weight changes, the scale is halved, and the run is
    told.
    """
    made = Trainer(small(images, "training.precision=fp16"), Group(0, 1, torch.device("cpu")))
    before, scale = {name: tensor.clone() for name, tensor in made.encoder.state_dict().items()}, 2.0**16
    made.scaler.scale(torch.ones(1))  # begins at the library's own scale
    for parameter in made.encoder.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    assert made.scaler.get_scale() == scale
    assert made.update(good=True) is False
    assert made.scaler.get_scale() == scale / 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.encoder.state_dict().items())


def test_an_fp16_run_that_only_overflows_ends(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that the scaler skips one after the other are told as divergence, not trained through to the end."""
    true_loss = trainer.code_loss
    monkeypatch.setattr(
        trainer, "code_loss", lambda *args, **kwargs: {"total": true_loss(*args, **kwargs)["total"] * 1e38}
    )
    recipe = small(images, "training.precision=fp16", "training.max_bad_steps=2", "training.steps_per_epoch=5")
    with pytest.raises(TrainingDiverged, match="2 steps in a row"):
        fit(recipe, tmp_path, console=QUIET)
    assert [line["skipped_steps"] for line in read_metrics(tmp_path) if line["kind"] == "step"] == [1, 2]


@dataclasses.dataclass(frozen=True)
class TwoRanks(Group):
    """A rank that hears, at the look numbered `told_at`, that the other one stops; `said` has what it told itself."""

    told_at: int = 99
    said: list[bool] = dataclasses.field(default_factory=list)

    def any(self, flag: bool) -> bool:
        self.said.append(flag)
        return flag or len(self.said) == self.told_at


@pytest.mark.parametrize("lost_here", [True, False])
def test_a_rank_that_lost_its_data_to_the_signal_stops_all(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, lost_here: bool
) -> None:
    """Where a signal ends one rank's data process, that rank tells the others before it leaves, and they leave too."""
    group = TwoRanks(0, 1, torch.device("cpu"), told_at=99 if lost_here else 4)
    stopping = threading.Event()
    monkeypatch.setattr(engine, "process_group", lambda _: nullcontext(group))
    monkeypatch.setattr(engine, "_stop_on_signal", lambda: nullcontext(stopping))
    true_batches = engine.make_batches

    def cut_off(*arguments: object) -> Iterator[object]:
        batches = true_batches(*arguments)
        yield next(batches)
        stopping.set()
        raise RuntimeError("DataLoader worker exited unexpectedly")

    if lost_here:
        monkeypatch.setattr(engine, "make_batches", cut_off)
    result = fit(small(images), tmp_path, console=QUIET)
    assert (result.status, result.step) == ("interrupted", 1)
    assert group.said[-1] is lost_here


def test_divergence_at_the_end_of_an_epoch_ends_the_run_unprobed(images: Path, tmp_path: Path) -> None:
    """Bad steps before a probe, or an encoder that only the last update wrecked: a clear end, nothing probed but the
    initialisation, which is no advice to start from, and no checkpoint.
    """
    wild = ["optimisation.lr=1e30", "training.checkpoint_every_steps=1"]
    with pytest.raises(
        TrainingDiverged, match=r"embeddings are no numbers \(step 2\).*lower optimisation\.lr"
    ) as error:
        fit(small(images, *wild), tmp_path / "run", console=QUIET)
    assert "start_from" not in str(error.value)
    with pytest.raises(TrainingDiverged, match=r"embeddings are no numbers \(step 1\)"):
        fit(
            small(images, *wild, "training.steps_per_epoch=1", "validation.every_epochs=9"),
            tmp_path / "single",
            console=QUIET,
        )
    for run in ("run", "single"):
        assert [line["step"] for line in read_metrics(tmp_path / run) if line["kind"] == "probe"] == [0]
        assert not (tmp_path / run / "checkpoint.pt").exists()
        untrained = Trainer(small(images), Group(0, 1, torch.device("cpu"))).encoder.state_dict()
        kept = load_file(tmp_path / run / "best" / "encoder.safetensors")
        assert all(torch.equal(tensor, untrained[name]) for name, tensor in kept.items())


def test_embeddings_that_are_no_numbers_are_not_probed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN among the validation images' embeddings ends the run; the advice names `best`, kept as it was, and the
    checkpoint before stays.
    """
    rows = iter([torch.zeros(0, 1), torch.zeros(0, 1), torch.tensor([[1.0], [float("nan")]])])
    values = iter([0.5, 0.6])
    monkeypatch.setattr(engine, "embed_images", lambda *_: Embedded([], next(rows).numpy(), []))
    monkeypatch.setattr(engine, "linear_probe", lambda _: probe_of(next(values)))
    with pytest.raises(TrainingDiverged, match=r"embeddings are no numbers \(step 2\).*start_from=\S*best"):
        fit(small(images, "training.steps_per_epoch=1"), tmp_path, console=QUIET)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progress"]["step"] == 1
    assert (tmp_path / "best" / "encoder.safetensors").exists() and not (tmp_path / "best.partial").exists()


def test_a_bad_step_at_the_end_of_an_epoch_is_survived(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes no weight (with fp16 a gradient overflows now and then): the epoch is probed and saved as any
    other.
    """
    true_loss, calls = trainer.code_loss, iter(range(9))
    monkeypatch.setattr(
        trainer,
        "code_loss",
        lambda *args, **kwargs: {
            "total": true_loss(*args, **kwargs)["total"] * (float("nan") if next(calls) == 1 else 1.0)
        },
    )
    assert (
        fit(small(images, "training.steps_per_epoch=2", "optimisation.epochs=1"), tmp_path, console=QUIET).status
        == "finished"
    )
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progress"]["step"] == 2


def test_interruption_of_a_wrecked_run_leaves_the_checkpoint_before(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that gives no numbers any more is not saved over one that did."""
    answers = iter([True])
    monkeypatch.setattr(Trainer, "is_finite", lambda _: next(answers, False))

    @contextmanager
    def stop_at_third_step():
        yield StopAfter(2)

    monkeypatch.setattr(engine, "_stop_on_signal", stop_at_third_step)
    recipe = small(images, "training.checkpoint_every_steps=1", "training.steps_per_epoch=9")
    assert fit(recipe, tmp_path, console=QUIET).status == "interrupted"
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progress"]["step"] == 1


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of the system or a full disk is an OSError with the file, the part is removed and the checkpoint before
    stays.
    """
    folder, state = RunFolder(tmp_path), {"weights": torch.zeros(1 << 16)}
    folder.save_checkpoint({"weights": 1})
    before = (tmp_path / "checkpoint.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match=r"checkpoint\.pt"):
            folder.save_checkpoint(state)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
        with pytest.raises(OSError, match=r"No space left.*checkpoint\.pt") as error:
            folder.save_checkpoint(state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"] and (
        tmp_path / "checkpoint.pt"
    ).read_bytes() == before


def test_a_checkpoint_of_more_processes_is_not_gone_on_with(images: Path) -> None:
    """Two processes' run resumed by one would halve the batch and read records twice: it is refused in a line."""
    made = Trainer(small(images), Group(0, 1, torch.device("cpu")))
    state = made.state(trainer.Progress()) | {"world": 2}
    with pytest.raises(RecipeError, match="begun with 2 processes, here are 1"):
        made.restore(state)


def test_a_collapsed_encoder_ends_the_run_by_name(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the plateau with embeddings that have closed up: told at each probe, and the run ends after `max_collapsed`."""
    true_probe = engine.embed_images

    def closed_up(*arguments: object) -> Embedded:
        found = true_probe(*arguments)
        noise = np.random.default_rng(0).normal(0, 1e-3, found.embeddings.shape)
        return Embedded(found.images, (1 + noise).astype(np.float32), found.failed)

    true_loss = trainer.code_loss
    monkeypatch.setattr(engine, "embed_images", closed_up)
    monkeypatch.setattr(
        trainer, "code_loss", lambda *args, **kwargs: {"total": 0 * true_loss(*args, **kwargs)["total"] + plateau(2)}
    )
    recipe = small(images, "optimisation.epochs=9", "training.steps_per_epoch=1", "validation.max_collapsed=2")
    console = Console(record=True, width=300)
    with pytest.raises(TrainingCollapsed, match=r"mean cosine between images is 1\.000, for 2 probes \(step 2\)"):
        fit(recipe, tmp_path, console=console)
    assert "epoch 1: the encoder has collapsed" in console.export_text()


def test_a_run_that_learnt_nothing_says_so(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no probe is better than that before training, `best` is the initialisation, and the result tells."""
    values = iter([0.8, 0.7])
    monkeypatch.setattr(engine, "linear_probe", lambda _: probe_of(next(values)))
    result = fit(small(images, "optimisation.epochs=1"), tmp_path, console=QUIET)
    assert (result.initial_auc, result.best_auc, result.has_learnt) == (0.8, 0.8, False)
    assert read_metrics(tmp_path)[0]["kind"] == "probe"


def test_training_stops_when_the_probe_does_not_gain(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `patience` probes without a better AUC the run ends, and `best` is the encoder of the best one; resumed, it
    does no step more.
    """
    values = iter([0.5, 0.6, 0.8, 0.7, 0.8])
    monkeypatch.setattr(engine, "linear_probe", lambda _: probe_of(next(values)))
    monkeypatch.setattr(engine, "embed_images", lambda *_: Embedded([], torch.zeros(0, 1).numpy(), []))
    recipe = small(images, "optimisation.epochs=9", "training.steps_per_epoch=1", "validation.patience=2")
    result = fit(recipe, tmp_path / "run", console=QUIET)
    assert (result.status, result.epoch, result.best_auc) == ("early_stop", 4, 0.8)
    assert fit(recipe, tmp_path / "run", resume=True, console=QUIET) == result


def test_sampler_positions_do_not_depend_on_ranks() -> None:
    """Two ranks together take the positions that one rank with twice the batch takes, and a resumed one goes on where
    it was.
    """
    one = list(StepSampler(4, 2, 3, 2))
    two = [list(StepSampler(2, 2, 3, 2, rank, 2)) for rank in (0, 1)]
    assert [first + second for first, second in zip(*two, strict=True)] == one
    assert list(StepSampler(4, 2, 3, 2, first_epoch=1, first_step=1)) == one[8:]
    assert len(StepSampler(4, 2, 3, 2, first_epoch=1, first_step=1)) == len(one[8:])


@pytest.mark.slow
def test_two_processes_on_gloo_train_together(images: Path, tmp_path: Path) -> None:
    """torchrun with two CPU processes finishes, one of them writes, and the losses are those of numbers."""
    script = tmp_path / "two.py"
    recipe = small(images, "optimisation.epochs=1", "training.device=cpu")
    (tmp_path / "recipe.toml").write_text(recipe_to_toml(recipe))
    script.write_text(
        "import sys, torch\nfrom pathlib import Path\nfrom rich.console import Console\nfrom train.engine "
        "import fit\nfrom train.recipe import load_recipe\n"
        "torch.set_num_threads(1)\nprint(fit(load_recipe(sys.argv[1]), Path(sys.argv[2]), "
        "console=Console(quiet=True)))\n"
    )
    root = Path(engine.__file__).parents[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(tmp_path / "recipe.toml"), str(tmp_path / "run")],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("status='finished'") == 2
    steps = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [1, 2]


def wait_for_a_step(process: subprocess.Popen[str], run: Path) -> None:
    """The probe before training comes first in a run's metrics."""
    waiting = threading.Event()
    while process.poll() is None and not any(line["kind"] == "step" for line in read_metrics(run)):
        waiting.wait(0.05)


@pytest.mark.slow
def test_sigterm_saves_and_ends(images: Path, tmp_path: Path) -> None:
    """A process that gets SIGTERM in training writes its checkpoint and exits 0; the run can be continued."""
    (tmp_path / "recipe.toml").write_text(
        recipe_to_toml(small(images, "training.steps_per_epoch=500", "data.workers=1"))
    )
    script = tmp_path / "one.py"
    script.write_text(
        "import sys, torch\nfrom pathlib import Path\nfrom rich.console import Console\nfrom train.engine "
        "import fit\nfrom train.recipe import load_recipe\n"
        "torch.set_num_threads(1)\nprint(fit(load_recipe(sys.argv[1]), Path(sys.argv[2]), "
        "console=Console(quiet=True)), flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(engine.__file__).parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "recipe.toml"), str(run)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    wait_for_a_step(process, run)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "interrupted" in output
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert state["progress"]["step"] == max(line["step"] for line in read_metrics(run)) >= 1


@pytest.mark.slow
def test_sigterm_to_the_whole_group_saves_and_ends(images: Path, tmp_path: Path) -> None:
    """A signal to every process of a run, as `timeout` and systemd send it, saves too; no data process stays, and the
    run resumed is the uninterrupted one.
    """
    (tmp_path / "recipe.toml").write_text(
        recipe_to_toml(small(images, "training.steps_per_epoch=8", "optimisation.epochs=1", "data.workers=2"))
    )
    environment = os.environ | {
        "PYTHONPATH": str(Path(engine.__file__).parents[1]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }

    def begin(run: Path, *options: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "train.main",
            "fit",
            "--recipe",
            str(tmp_path / "recipe.toml"),
            "--run",
            str(run),
            *options,
        ]
        return subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path, start_new_session=True
        )

    stopped, whole = begin(tmp_path / "stopped"), begin(tmp_path / "whole")
    wait_for_a_step(stopped, tmp_path / "stopped")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.killpg(stopped.pid, number)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 0 and "interrupted" in said, said
    with pytest.raises(ProcessLookupError):
        os.killpg(stopped.pid, 0)
    _, said = begin(tmp_path / "stopped", "--resume").communicate(timeout=120)
    assert "finished after 8 steps" in said, said
    assert "finished after 8 steps" in whole.communicate(timeout=120)[1]
    resumed, expected = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def pending_signals(process: int) -> int:
    """The signals sent to a process as a whole that none of its threads has taken, one bit each."""
    return int(Path(f"/proc/{process}/status").read_text().split("ShdPnd:")[1].split()[0], 16)


def test_a_data_process_ends_when_its_parent_says_so(tmp_path: Path) -> None:
    """A data process that hangs ignores the SIGTERM of others, and ends at once at that of the process it works for."""
    hang = tmp_path / "hang.py"
    hang.write_text(
        "import os, signal, subprocess, sys, time\nfrom train.data.loader import _begin_data_process\n"
        "child = os.fork()\nif child == 0:\n    _begin_data_process(0)\n    os.write(1, b'ready\\n')\n    "
        "time.sleep(100)\n    os._exit(3)\n"
        "sys.stdin.readline()\nprint(os.waitpid(child, os.WNOHANG)[0], flush=True)\n"
        "os.kill(child, signal.SIGTERM)\nprint(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    path = {"PYTHONPATH": str(Path(engine.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, str(hang)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | path
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    os.kill(child, signal.SIGTERM)
    waiting = threading.Event()
    while (
        pending_signals(child) >> (signal.SIGTERM - 1) & 1
    ):  # a second one would be lost while the first waits to be taken
        waiting.wait(0.01)
    assert process.communicate("go\n", timeout=60)[0] == "0\n0\n"


def test_probe_needs_both_classes() -> None:
    """Without both classes in both halves there is no AUC, and no error."""
    images = [Labelled(str(index), Key("x"), 0, "real") for index in range(10)]
    assert math.isnan(linear_probe(Embedded(images, torch.randn(10, 4).numpy(), [])).auc)
