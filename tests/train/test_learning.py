"""The smoke recipe learns what can be learnt and nothing else: a test that fails when training does."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from train.data.folder import scan_folder
from train.data.synthetic import write_synthetic_folder
from train.embed import embed_images
from train.engine import fit
from train.model import code_backbone
from train.recipe import load_recipe

TRAIN, TEST = 80, 60


def trained_auc(folder: Path, *, shuffled: bool) -> float:
    """AUC on images that neither the encoder nor the linear head has seen."""
    write_synthetic_folder(folder / "train", TRAIN, seed=1, shuffled_labels=shuffled)
    write_synthetic_folder(folder / "test", TEST, seed=2, shuffled_labels=shuffled)
    recipe = load_recipe("smoke", [f"data.source={folder / 'train'}", "data.workers=0"])
    fit(recipe, folder / "run", console=Console(quiet=True))
    backbone = code_backbone(folder / "run" / "best")
    seen, new = (embed_images(backbone, scan_folder(folder / name)[0].images) for name in ("train", "test"))
    head = LogisticRegression(C=0.316, max_iter=1500, class_weight="balanced").fit(seen.embeddings, seen.labels)
    return float(roc_auc_score(new.labels, head.decision_function(new.embeddings)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shuffled", [False, True])
def test_smoke_recipe_learns_the_upsampling_trace(shuffled: bool, tmp_path: Path) -> None:
    """With true labels unseen images reach an AUC of 0.95; with shuffled ones it stays near one half."""
    torch.set_num_threads(2)
    auc = trained_auc(tmp_path, shuffled=shuffled)
    if shuffled:
        assert 0.3 < auc < 0.7, auc
    else:
        assert auc >= 0.95, auc
