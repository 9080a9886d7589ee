"""The smoke recipe learns what can be learnt and nothing else: a test that fails when training does."""

from pathlib import Path

import pytest
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from train.data.folder import scan_folder
from train.data.synthetic import write_synthetic_folder
from train.distributed import process_group
from train.embed import embed_images
from train.engine import fit
from train.model import Backbone, code_backbone
from train.recipe import load_recipe
from train.trainer import Trainer

pytestmark = pytest.mark.slow

TRAIN_PER_CLASS = TEST_PER_CLASS = 100


def unseen_auc(backbone: Backbone, folder: Path) -> float:
    """AUC of a linear head on images that neither it nor the encoder was fitted on."""
    seen, new = (embed_images(backbone, scan_folder(folder / name)[0].images) for name in ("train", "test"))
    head = LogisticRegression(C=0.316, max_iter=1500, class_weight="balanced").fit(seen.embeddings, seen.labels)
    return float(roc_auc_score(new.labels, head.decision_function(new.embeddings)))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shuffled", [False, True])
def test_the_smoke_recipe_learns_the_trace_of_an_up_sampler(shuffled: bool, tmp_path: Path) -> None:
    """With true labels an AUC below 0.9 before training becomes one of 0.95 on unseen images; with shuffled labels it
    stays near one half.
    """
    write_synthetic_folder(tmp_path / "train", TRAIN_PER_CLASS, seed=1, shuffled_labels=shuffled)
    write_synthetic_folder(tmp_path / "test", TEST_PER_CLASS, seed=2, shuffled_labels=shuffled)
    # Labels that say nothing leave the loss on its plateau, and rightly so: that run must not be ended for it.
    patient = ["validation.max_collapsed=9"] if shuffled else []
    recipe = load_recipe("smoke", [f"data.source={tmp_path / 'train'}", "data.workers=0", *patient])
    with process_group("cpu") as group:
        before = unseen_auc(Trainer(recipe, group).backbone(), tmp_path)
    fit(recipe, tmp_path / "run", console=Console(quiet=True))
    after = unseen_auc(code_backbone(tmp_path / "run" / "best"), tmp_path)
    if shuffled:
        assert abs(before - 0.5) < 0.15
        assert abs(after - 0.5) < 0.15
    else:
        assert before < 0.9
        assert after >= 0.95
