"""Every bug that is planted into the core is found by the simulation."""

from __future__ import annotations

import pytest

from tests.simulation.history import run
from tests.simulation.planted import PLANTED, SEEN_IN

MOST = 1500  # histories: a few hundred at most are needed, as `python -m tests.simulation --planted` says


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_it_is_found(name: str) -> None:
    """By some history, whatever its rule says."""
    with PLANTED[name]():
        assert any(run(seed, SEEN_IN.get(name)).findings for seed in range(MOST)), f"not found in {MOST} histories"
