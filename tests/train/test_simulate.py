"""The simulated input side of a full run, at a size for tests: what it says is what is."""

import os
import time
from multiprocessing import get_context

import pytest

from train import simulate as module
from train.data.images import DataError
from train.simulate import Simulated, simulate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_small_simulation_of_a_full_run() -> None:
    """Two ranks read other records, a restart from the middle the same ones, mixed of as many shards as asked."""
    found = simulate(Simulated(3000, ranks=2, workers=1, batches=4, batch_size=32, records_per_shard=100))
    assert (found["records"], found["shards"]) == (3000, 30)
    assert found["restart_is_exact"] and found["ranks_read_others"]
    assert 10 < found["sources_a_batch"] <= 30
    assert 0 < found["descriptors"] < 1024
    assert found["worker_mib"] < found["rank_mib"] / 3, "data processes share libraries and index with their rank"
    assert 0 < found["batches_mib"] < found["memory_mib"]


def test_a_rank_that_dies_ends_the_simulation() -> None:
    """One that is killed answers nothing: it is told with what to change, and the others do not go on."""
    context = get_context("spawn")
    ranks = [context.Process(target=os._exit, args=(9,)), context.Process(target=time.sleep, args=(600,))]
    for process in ranks:
        process.start()
    with pytest.raises(DataError, match=r"exit code 9.*--batch-size"):
        module._answer(context.Queue(), ranks)
    for process in ranks:
        process.join(60)
    assert all(process.exitcode for process in ranks)
