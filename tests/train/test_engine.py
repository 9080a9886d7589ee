"""Training: exact resume, the run folder, data faults, early stop."""

import errno
import io
import json
import math
import resource
import shutil
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from tests.train.small_runs import QUIET, StopAfter, probe_of, small, weights
from train import engine
from train.data.folder import scan_folder
from train.data.loader import PairDataset, StepSampler, collate
from train.data.records import Key, Labelled
from train.data.synthetic import write_synthetic_folder
from train.embed import Embedded, Probe, linear_probe
from train.engine import fit
from train.recipe import RecipeError, Views, load_recipe
from train.run_folder import RunFolder, read_metrics

pytestmark = pytest.mark.slow


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


def test_a_run_that_learnt_nothing_says_so(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no probe is better than that before training, `best` is the initialisation, and the result tells."""
    values = iter([0.8, 0.7])
    monkeypatch.setattr(engine, "linear_probe", lambda _: probe_of(next(values)))
    result = fit(small(images, "optimisation.epochs=1"), tmp_path, console=QUIET)
    assert (result.initial_auc, result.best_auc, result.has_learnt) == (0.8, 0.8, False)
    assert read_metrics(tmp_path)[0]["kind"] == "probe"


def test_a_gain_on_few_photographs_has_no_interval(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below thirty photographs of a class the line says so, instead of an interval of no numbers."""
    labels = np.arange(20) % 2
    probe = Probe(0.6, labels, np.random.default_rng(0).random(20), np.arange(20))
    monkeypatch.setattr(engine, "linear_probe", lambda _: probe)
    console = Console(record=True, width=300, file=io.StringIO())
    fit(small(images, "optimisation.epochs=1"), tmp_path, console=console)
    said = console.export_text()
    assert "+0.0000 (too few photographs for an interval) on the initialisation" in said and "nan" not in said


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


def test_probe_needs_both_classes() -> None:
    """Without both classes in both halves there is no AUC, and no error."""
    images = [Labelled(str(index), Key("x"), 0, "real") for index in range(10)]
    assert math.isnan(linear_probe(Embedded(images, torch.randn(10, 4).numpy(), [])).auc)
