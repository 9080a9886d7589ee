"""A few faults of each kind under load, on real servers: nothing is lost, doubled, wrong or unjustly rejected."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.faults.faults import choose
from tests.faults.soak import endure
from tests.faults.world import World

pytestmark = [pytest.mark.integration, pytest.mark.slow]
FAULTS = 8  # `make soak` plants a hundred


def test_faults_in_random_order_cost_nothing(tmp_path: Path) -> None:
    """The same order in every run, so that a change and not chance decides; FAULTS_SEED takes another one."""
    seed = int(os.environ.get("FAULTS_SEED", "10"))
    world = World(tmp_path)
    try:
        endure(world, choose(random.Random(seed), FAULTS))
        assert world.audit() == [], f"FAULTS_SEED={seed}"
    finally:
        world.close()
