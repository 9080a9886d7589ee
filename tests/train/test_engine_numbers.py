"""Training with numbers that go wrong: NaN, overflow, divergence, collapse, and what is kept of such a run."""

import itertools
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from tests.train.small_runs import QUIET, StopAfter, probe_of, small, weights
from train import engine, trainer
from train.collapse import plateau
from train.distributed import Group
from train.embed import Embedded
from train.engine import TrainingCollapsed, TrainingDiverged, fit
from train.run_folder import read_metrics
from train.trainer import Trainer

pytestmark = pytest.mark.slow


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


def test_a_collapsed_encoder_ends_the_run_by_name(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the plateau with embeddings that have closed up: told at each probe, and the run ends after
    `max_collapsed`.
    """
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
    monkeypatch.setattr(engine, "linear_probe", lambda _: probe_of(0.5))
    with pytest.raises(TrainingCollapsed, match=r"mean cosine between images is 1\.000, for 2 probes \(step 2\)"):
        fit(recipe, tmp_path / "fallen", console=console)
    assert "epoch 1: the encoder has collapsed" in console.export_text()
    # One whose probe is better than all before only passes over the plateau.
    rising = itertools.count(50)
    monkeypatch.setattr(engine, "linear_probe", lambda _: probe_of(next(rising) / 100))
    assert fit(recipe, tmp_path / "rising", console=console).status == "finished"
