"""Simulated histories keep the contract, are pure functions of their seeds, and have everything in them that can
fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.simulation.history import run
from tests.simulation.planted import PLANTED

CHUNK = 100


@pytest.mark.parametrize("first", range(0, 4 * CHUNK, CHUNK))
def test_every_history_keeps_the_contract(first: int) -> None:
    """`make simulate` has the other seeds."""
    broken = [history.report() for history in map(run, range(first, first + CHUNK)) if history.findings]
    assert not broken, "\n\n".join(broken[:3])


def test_the_same_seed_gives_the_same_history() -> None:
    """To the last event, also in another process, where strings hash otherwise."""
    seeds = [3, 14, 15, 92]
    here = [run(seed).digest for seed in seeds]
    assert here == [run(seed).digest for seed in seeds]
    program = f"from tests.simulation.history import run; print(*[run(seed).digest for seed in {seeds}])"
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": "."}
    told = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == here


def test_everything_that_can_fail_does() -> None:
    """Among a few hundred histories each kind of fault is met; one that never comes would prove nothing."""
    seen: Counter[str] = Counter()
    for seed in range(1000, 1300):
        history = run(seed)
        seen.update({event[0] for event in history.events})
        plan = history.plan
        servers = (plan.kafka, plan.redis, plan.triton, *plan.storages.values())
        seen.update({f"window {window.kind}" for server in servers for window in server.windows})
        seen.update({one.kind for one in plan.sent})
    expected = {"kill", "stop", "ended", "expelled", "rewound", "revoked", "failover", "reloaded", "unacknowledged"}
    expected |= {f"window {kind}" for kind in ("away", "silent", "no-acks", "lost", "late", "oom", "slow", "ill")}
    expected |= {"good", "poison", "nan", "cut", "reference", "missing", "denied", "bad-id", "tombstone"}
    assert {name: seen[name] for name in expected if seen[name] < 5} == {}


def test_a_failure_tells_its_seed_and_the_way_there() -> None:
    """What is printed is short, names the seed, and shows what was done with the record."""
    with PLANTED["ends_an_item_before_it_is_produced"]():
        history = next(history for history in map(run, range(1000)) if history.findings)
    report = history.report()
    assert f"--seed {history.plan.seed}" in report
    assert "before the outcome of" in report
    assert "delivered" in report
    assert len(report.splitlines()) < 60
