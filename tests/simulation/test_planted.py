"""Every bug that is planted into the core is found by the simulation."""

from __future__ import annotations

import pytest

from tests.simulation.history import run
from tests.simulation.planted import PLANTED

MOST = 1500  # histories: seconds to a minute
# Where the search begins for bugs that few histories show; the others are found within the first few dozen.
# `python -m tests.simulation --planted` prints where each is found now.
NEAR = {
    "a_leader_waits_for_its_own_follower": 245,
    "asks_once_whether_the_partition_is_ours": 155,
    "believes_a_refused_commit": 175,
    "fences_by_partition_alone": 144,
    "leaves_without_the_last_commit": 55,
    "lets_a_parked_record_overwrite_a_later_one": 507,
    "lets_go_before_it_tries": 680,
    "loses_a_reference_whose_storage_is_away": 680,
    "names_the_version_after_a_reload": 135,
    "rejects_for_a_storage_that_is_away": 500,
    "takes_a_record_twice": 150,
}


@pytest.mark.parametrize("name", PLANTED)
def test_it_is_found(name: str) -> None:
    """By some history, whatever its rule says."""
    first = NEAR.get(name, 0)
    with PLANTED[name]():
        assert any(run(seed).findings for seed in range(first, first + MOST)), f"not found from seed {first} on"
