"""The bench compares like with like: augly's side does the released work, and both sides make the same views."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from train import bench, bench_augly
from train.data.folder import scan_folder
from train.data.synthetic import write_synthetic_folder
from train.model import normalise
from train.recipe import Views
from train.transforms import OPS
from train.transforms.views import plan_views, reference_view

AUGLY = Path(os.environ.get("AUGLY_PYTHON", ".assay/augly/bin/python")).absolute()


def test_the_released_side_crops_and_ends_as_the_reference_does() -> None:
    """Without ops both sides' views are the same pixels, and so are the normalised ones."""
    image = Image.effect_noise((320, 240), 60).convert("RGB")
    plans = plan_views(image.size, image.size, "a", Views(max_ops=0), seed=0, epoch=0)
    for name in ("real", "real_global", "fake_local"):
        plan = {"box": plans[name].box, "steps": []}
        made = bench_augly.view(image, plan)
        assert np.array_equal(made, reference_view(image, plans[name]))
        expected = normalise(torch.from_numpy(made.copy()).permute(2, 0, 1)[None])[0].numpy()
        assert np.abs(bench_augly.normalised(made) - expected).max() < 1e-6


@pytest.mark.parametrize("side", [64, 512])
def test_the_released_side_places_random_crops_alike(side: int) -> None:
    """The crop of a seed is where the reference puts it, with the same black border."""
    image = Image.effect_noise((300, 200), 60).convert("RGB")
    ours = OPS["random_crop"](image, size=[side, side], seed=5)
    assert bench_augly.random_crop(image, size=[side, side], seed=5, fill=0).tobytes() == ours.tobytes()


@pytest.mark.skipif(not AUGLY.exists(), reason=f"needs augly in a Python of its own: {bench.INSTALL}, or AUGLY_PYTHON")
def test_both_sides_make_the_same_views(tmp_path: Path) -> None:
    """With all ops drawn, augly's views and the fast path's have the same mean grey level within a level, view by view."""
    write_synthetic_folder(tmp_path, 8)
    work = bench._draw(scan_folder(tmp_path)[0], 8, 0)
    ours, theirs = bench._make_fast(work), bench._run_augly(AUGLY, work)
    assert len(ours["levels"]) == len(theirs["levels"]) == 64
    assert np.abs(np.subtract(ours["levels"], theirs["levels"])).max() < 1
    assert set(theirs["cpu"]) >= {stage for stages in bench.SCOPES.values() for stage in stages}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_input_side_keeps_a_gpu_busy(tmp_path: Path) -> None:
    """With the paper's batch the training step waits for data less than a tenth of the time."""
    write_synthetic_folder(tmp_path, 512)
    training = bench._train_steps(scan_folder(tmp_path)[0], 20)
    assert training["device"].startswith("cuda") and training["waiting_for_data"] < 0.1, training
