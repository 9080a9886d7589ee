"""Encoders other than ViT-Tiny, and sweeps over fields: small models of timm's own for tests."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.small_runs import QUIET, small
from train import sweep as module
from train.engine import fit
from train.model import load_encoder, trained_backbone
from train.recipe import RecipeError
from train.run_folder import read_metrics
from train.sweep import folder_name, over_seeds, sweep, variations
from triton_models.weights import WeightsError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OTHER = ["training.initialisation=timm", "optimisation.epochs=1", "training.steps_per_epoch=1"]


@pytest.mark.parametrize("encoder", ["test_vit", "test_resnet"])
def test_another_encoder_is_trained_kept_and_measured(encoder: str, images: Path, tmp_path: Path) -> None:
    """A transformer and a convolution of timm's: probed before and after, kept with its name, loaded again as it was,
    begun from, and refused where ViT-Tiny is wanted.
    """
    recipe = small(images, f"training.encoder={encoder}", *OTHER)
    assert fit(recipe, tmp_path / "run", console=QUIET).status == "finished"
    assert [line["kind"] for line in read_metrics(tmp_path / "run")] == ["probe", "step", "probe"]
    best = tmp_path / "run" / "best"
    backbone = trained_backbone(best)
    kept = load_file(best / "encoder.safetensors")
    for name, tensor in backbone.module.state_dict().items():
        assert torch.equal(tensor.cpu(), kept[name]), name
    assert backbone.embed(torch.zeros(2, 3, 224, 224, dtype=torch.uint8)).shape[0] == 2
    with pytest.raises(WeightsError, match=rf"is a {encoder}, not the vit_tiny.*--backbone run:"):
        load_encoder(best)
    again = small(images, f"training.encoder={encoder}", f"training.start_from={best}", *OTHER)
    assert fit(again, tmp_path / "again", console=QUIET).status == "finished"


def test_spectral_is_of_one_encoder(images: Path, tmp_path: Path) -> None:
    """A recipe that contradicts itself, and a model that timm has not, are named."""
    with pytest.raises(RecipeError, match="spectral"):
        fit(small(images, "training.encoder=test_resnet"), tmp_path / "one", console=QUIET)
    with pytest.raises(WeightsError, match="no such model"):
        fit(small(images, "training.encoder=resnet_fifty"), tmp_path / "two", console=QUIET)


def test_combinations_are_all_of_them_and_named() -> None:
    """Every value with every other, lists too, as text that a recipe reads; what is no list is refused."""
    found = variations(["views.global_scale=[[0.4, 1.0], [0.2, 1.0]]", "training.seed=[1, 2]"])
    assert [folder_name(one) for one in found] == [
        "global_scale-0.4-1.0_seed-1",
        "global_scale-0.4-1.0_seed-2",
        "global_scale-0.2-1.0_seed-1",
        "global_scale-0.2-1.0_seed-2",
    ]
    for wrong in ("training.seed=1", "training.seed", "=[1]", "training.seed=[]", "training.seed=[a]"):
        with pytest.raises(RecipeError, match="expected section"):
            variations([wrong])
    with pytest.raises(RecipeError, match="given twice"):
        variations(["training.seed=[1]", "training.seed=[2]"])


def test_seeds_are_one_row() -> None:
    """Mean and deviation over the seeds of the same values; runs without a probe count for nothing."""
    rows = [
        {"run": "a", "loss.temperature": "0.1", "training.seed": "1", "best_auc": 0.6},
        {"run": "b", "loss.temperature": "0.1", "training.seed": "2", "best_auc": 0.8},
        {"run": "c", "loss.temperature": "0.2", "training.seed": "1", "status": "diverged"},
    ]
    assert over_seeds(rows) == [
        {"loss.temperature": "0.1", "seeds": 2, "best_auc": 0.7, "sd": 0.1414},
        {"loss.temperature": "0.2", "seeds": 0, "best_auc": None, "sd": None},
    ]


def test_a_sweep_goes_on_where_it_was(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished runs are not trained again, a wrong value is told before the first, a diverged run is a row."""
    base = [f"data.source={images}", "data.workers=0", "data.validation_fraction=0.4", "loss.terms=global_only"]
    base += ["training.batch_size=2", "optimisation.warmup_epochs=0", "training.encoder=test_resnet", *OTHER]
    with pytest.raises(RecipeError, match=r"loss\.temperature"):
        sweep("smoke", base, ["loss.temperature=[0.1, -1]"], tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    vary = ["optimisation.lr=[1e-4, 1e30]", "training.seed=[1]"]
    said: list[str] = []
    first = sweep("smoke", base, vary, tmp_path / "runs", say=said.append)
    assert [row["status"] for row in first] == ["finished", "diverged"]
    assert len(said) == 2 and "lower optimisation.lr" in first[1]["why"]
    probes = [line["auc"] for line in read_metrics(tmp_path / "runs" / first[0]["run"]) if line["kind"] == "probe"]
    assert first[0]["best_auc"] == round(max(probes), 4)

    def trained_again(*_: object, **__: object) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(module, "fit", trained_again)
    assert sweep("smoke", base, vary, tmp_path / "runs") == first
    assert json.loads((tmp_path / "runs" / "sweep.json").read_text()) == first
    with (tmp_path / "runs" / "sweep.csv").open() as file:
        assert [line["run"] for line in csv.DictReader(file)] == [row["run"] for row in first]
