"""The bench compares like with like: both sides make the same views of the same records."""

from pathlib import Path

import numpy as np
import pytest
import torch

from train import bench
from train.data.folder import scan_folder
from train.data.synthetic import write_synthetic_folder


def test_both_sides_make_the_same_views(tmp_path: Path) -> None:
    """The reference's views and the fast path's have the same mean grey level within a level, view by view."""
    write_synthetic_folder(tmp_path, 4)
    work = bench._draw(scan_folder(tmp_path)[0], 4, 0)
    fast, reference = bench.make_fast(work), bench.make_reference(work)
    assert len(fast["levels"]) == len(reference["levels"]) == 32
    assert np.abs(np.subtract(fast["levels"], reference["levels"])).max() < 1
    for made in (fast, reference):
        assert set(made["cpu"]) >= {part for parts in bench.SCOPES.values() for part in parts}


@pytest.mark.slow
def test_a_step_is_timed_by_its_parts() -> None:
    """Either precision and either form of AdamW has a time, and the ratios are of these."""
    found = bench.time_step_parts(1)
    for over, under in (("fp32", "bf16"), ("plain", "fused")):
        ratio = found["ms_cpu"][over] / found["ms_cpu"][under]
        assert found["times"][f"{over}_over_{under}"] == pytest.approx(ratio, rel=0.2)
    assert found["auto"] in ("fp32", "bf16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_input_side_keeps_a_gpu_busy(tmp_path: Path) -> None:
    """With the paper's batch the training step waits for data less than a tenth of the time."""
    write_synthetic_folder(tmp_path, 512)
    training = bench.time_train_steps(scan_folder(tmp_path)[0], 20)
    assert training["device"].startswith("cuda") and training["waiting_for_data"] < 0.1, training
