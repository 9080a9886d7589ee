"""Every bug that is planted into the core is found by the simulation."""

from __future__ import annotations

import itertools
import time

import pytest

from tests.simulation.history import run
from tests.simulation.planted import PLANTED

LIMIT_S = 60.0
# Where the search begins for bugs that few histories show; the others are found from seed 0 on within a second or two.
# `python -m tests.simulation --planted` prints where each is found now.
NEAR = {
    "takes_a_record_twice": 670,
    "leaves_without_the_last_commit": 160,
    "names_the_version_after_a_reload": 185,
    "names_the_version_after_the_look_up": 230,
    "asks_once_whether_the_partition_is_ours": 320,
}


@pytest.mark.parametrize("name", PLANTED)
def test_it_is_found(name: str) -> None:
    """By some history, whatever its rule says."""
    until = time.monotonic() + LIMIT_S
    with PLANTED[name]():
        for seed in itertools.count(NEAR.get(name, 0)):
            if run(seed).findings:
                return
            assert time.monotonic() < until, f"not found from seed {NEAR.get(name, 0)} to {seed}"
