"""What collapse is: embeddings that have closed up, on the plateau of the loss."""

import math

import numpy as np
import pytest
import torch

from train.collapse import has_collapsed, plateau, spread
from train.losses import VIEWS, code_loss


def test_the_plateau_is_the_loss_of_equal_embeddings() -> None:
    """An encoder that gives every view the same embedding has the loss that the guard calls the plateau."""
    views = {name: torch.ones(16, 8) for name in VIEWS}
    order = torch.arange(16).roll(1)
    assert code_loss(views, order, order)["total"].item() == pytest.approx(plateau(16), rel=1e-6)


def test_spread_tells_closed_up_from_open() -> None:
    """Random directions have a cosine near 0 and use all directions; copies with a little noise have a cosine near
    1.
    """
    rng = np.random.default_rng(0)
    open_ = spread(rng.normal(size=(500, 16)))
    closed = spread(1 + rng.normal(0, 1e-3, (500, 16)))
    assert abs(open_.cosine) < 0.02 and open_.rank > 15
    assert closed.cosine > 0.999
    line = spread(np.outer(rng.normal(size=50), np.ones(16)))
    assert line.rank == pytest.approx(1, abs=1e-6)
    assert math.isnan(spread(np.ones((1, 4))).cosine)


def test_collapse_needs_both() -> None:
    """A low loss with close embeddings is none, nor is the plateau with open ones."""
    closed, open_ = spread(np.ones((9, 4)) + 1e-4 * np.eye(9, 4)), spread(np.eye(9, 9))
    assert has_collapsed(plateau(16), 16, closed)
    assert not has_collapsed(0.5 * plateau(16), 16, closed)
    assert not has_collapsed(plateau(16), 16, open_)
