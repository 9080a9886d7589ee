"""Every bug that is planted into the core is found by the simulation."""

from __future__ import annotations

import pytest

from tests.simulation import planted_beside  # noqa: F401 - it plants more
from tests.simulation.history import run
from tests.simulation.planted import PLANTED, SEEN_IN

MOST = 1500  # histories: a few hundred at most are needed, as `python -m tests.simulation --planted` says


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_it_is_found(name: str) -> None:
    """By some history, whatever its rule says; but not because the bug no longer fits what it is planted into."""
    with PLANTED[name]():
        histories = (run(seed, SEEN_IN.get(name)).findings for seed in range(MOST))
        found = [str(one) for one in next((findings for findings in histories if findings), [])]
    assert found, f"not found in {MOST} histories"
    assert not [one for one in found if "TypeError" in one or "AttributeError" in one]
