"""The loss against values and gradients of the released engine (tests/golden/loss)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.losses import VIEWS, code_loss, draw_permutation, info_nce

ROUNDING = {"f64": (1e-10, 1e-8, 1e-14), "f32": (2e-6, 2e-3, 1e-7)}


def assert_gradient(actual: torch.Tensor, expected: np.ndarray, precision: str) -> None:
    _, relative, absolute = ROUNDING[precision]
    assert np.abs(actual.numpy() - expected).max() <= relative * np.abs(expected).max() + absolute


def files(golden: Path, kind: str) -> list[Path]:
    names = [
        case["file"]
        for case in json.loads((golden / "loss" / "cases.json").read_text())["cases"]
        if case["file"].startswith(kind)
    ]
    assert names
    return [golden / "loss" / name for name in names]


@pytest.mark.parametrize("precision", ["f64", "f32"])
def test_info_nce_matches_the_release(precision: str, golden: Path) -> None:
    """Loss and gradients of the raw inputs are the released ones, special cases included."""
    dtype = {"f64": torch.float64, "f32": torch.float32}[precision]
    for path in files(golden, "infonce"):
        case = np.load(path)
        inputs = {
            name: torch.tensor(case[name], dtype=dtype, requires_grad=True)
            for name in ("query", "positive", "negatives")
        }
        loss = info_nce(**inputs, temperature=float(case["tau"]))
        loss.backward()
        assert loss.dtype == dtype and loss.ndim == 0
        assert loss.item() == pytest.approx(float(case[f"loss_{precision}"]), abs=ROUNDING[precision][0]), path.name
        for name, tensor in inputs.items():
            if f"grad_{name}_{precision}" in case:
                assert_gradient(tensor.grad, case[f"grad_{name}_{precision}"], precision)


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("variant", ["symmetric", "released"])
def test_code_loss_matches_the_released_engine(variant: str, precision: str, golden: Path) -> None:
    """Every term, the total and the gradient of every view are those the authors' engine left."""
    dtype = {"f64": torch.float64, "f32": torch.float32}[precision]
    for path in files(golden, "step"):
        case = np.load(path)
        views = {name: torch.tensor(case[f"view_{name}"], dtype=dtype, requires_grad=True) for name in VIEWS}
        losses = code_loss(views, torch.tensor(case["perm_real"]), torch.tensor(case["perm_fake"]), variant=variant)
        losses["total"].backward()
        expected = {"global_real": "L_global_real", "global_fake": "L_global_fake", "multiscale_real": "L_ms_real"}
        expected |= {"multiscale_fake": "L_ms_fake", "total": f"total_{variant}"}
        for name, key in expected.items():
            assert losses[name].item() == pytest.approx(float(case[f"{key}_{precision}"]), abs=ROUNDING[precision][0])
        for name, view in views.items():
            gradient = torch.zeros_like(view) if view.grad is None else view.grad
            if f"grad_{variant}_{name}_{precision}" in case:
                assert_gradient(gradient, case[f"grad_{variant}_{name}_{precision}"], precision)


def test_permutations_are_those_of_the_release(golden: Path) -> None:
    """With the same torch seed the same permutations come out, and roll-by-1 is as frequent."""
    facts = json.loads((golden / "loss" / "permutation.json").read_text())
    for case in facts["explicit"]:
        generator = torch.Generator().manual_seed(case["torch_manual_seed"])
        assert draw_permutation(case["N"], generator).tolist() == case["first_call"]
        assert draw_permutation(case["N"], generator).tolist() == case["second_call"]
    generator = torch.Generator().manual_seed(1)
    roll = torch.roll(torch.arange(16), 1)
    share = np.mean([torch.equal(draw_permutation(16, generator), roll) for _ in range(4000)])
    assert share == pytest.approx(facts["frequency"]["16"]["frac_equal_to_roll_by_1"], abs=0.04)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 64), st.integers(0, 2**31))
def test_permutation_has_no_fixed_point(n: int, seed: int) -> None:
    """Every sample is paired with another one, each once."""
    permutation = draw_permutation(n, torch.Generator().manual_seed(seed))
    assert sorted(permutation.tolist()) == list(range(n))
    assert not (permutation == torch.arange(n)).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(0, 2**31), st.floats(0.01, 100))
def test_loss_ignores_the_length_of_embeddings(n: int, seed: int, factor: float) -> None:
    """Scaling any view changes nothing: only directions count."""
    generator = torch.Generator().manual_seed(seed)
    views = {name: torch.randn(n, 6, generator=generator, dtype=torch.float64) for name in VIEWS}
    permutation = draw_permutation(n, generator)
    plain = code_loss(views, permutation, permutation)["total"]
    scaled = code_loss({name: rows * factor for name, rows in views.items()}, permutation, permutation)["total"]
    assert plain.item() == pytest.approx(scaled.item(), abs=1e-9)


def test_ablations_need_only_their_views() -> None:
    """global_only is the mean of the global terms alone, multiscale_only of the others."""
    views = {name: torch.randn(4, 8) for name in VIEWS}
    permutation = draw_permutation(4)
    full = code_loss(views, permutation, permutation)
    one = code_loss({name: views[name] for name in VIEWS[:4]}, permutation, permutation, terms="global_only")
    other = code_loss({name: views[name] for name in VIEWS[4:]}, permutation, permutation, terms="multiscale_only")
    assert one["total"].item() == pytest.approx((full["global_real"] + full["global_fake"]).item(), rel=1e-6)
    assert (one["total"] + other["total"]).item() / 2 == pytest.approx(full["total"].item(), rel=1e-6)
    assert "multiscale_real" not in one and "global_real" not in other


def test_wrong_arguments_are_refused() -> None:
    """An unknown variant or terms, a lone sample and mismatched shapes are ValueErrors."""
    views = {name: torch.randn(4, 8) for name in VIEWS}
    permutation = draw_permutation(4)
    with pytest.raises(ValueError, match="variant"):
        code_loss(views, permutation, permutation, variant="best")
    with pytest.raises(ValueError, match="terms"):
        code_loss(views, permutation, permutation, terms="local_only")
    with pytest.raises(ValueError, match="at least 2"):
        draw_permutation(1)
    with pytest.raises(ValueError, match="info_nce takes"):
        info_nce(torch.randn(3, 4), torch.randn(2, 4), torch.randn(5, 4))
