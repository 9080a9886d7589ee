"""A child's block: both sides see the same, and neither can cut it short."""

from __future__ import annotations

import os

import numpy as np
import pytest

from worker.examine.block import FINDINGS_BYTES, Block, State

CAPACITY = 32 << 20


@pytest.fixture
def sides() -> tuple[Block, Block]:
    """The worker's and the child's."""
    worker = Block.make(CAPACITY)
    return worker, Block(worker.file, CAPACITY)


def test_images_arrive_as_they_were(sides: tuple[Block, Block]) -> None:
    """One behind the other, up to the last byte of the block."""
    worker, child = sides
    images = [b"first", b"", os.urandom(CAPACITY - 5)]
    assert [child.image(*place) for place in worker.load(images)] == images


def test_the_worker_sees_what_is_in_hand(sides: tuple[Block, Block]) -> None:
    """And since which step, and for how long it may."""
    worker, child = sides
    worker.load([b"a", b"b", b"c"])
    assert worker.states(3) == [State.WAITING] * 3
    child.begin([0, 2], 150.7)
    assert worker.states(3) == [State.IN_HAND, State.WAITING, State.IN_HAND]
    assert worker.step() == (1, 150)
    child.end([0, 2])
    child.begin([1], 1e12)
    assert worker.states(3) == [State.DONE, State.IN_HAND, State.DONE]
    assert worker.step() == (2, 2**32 - 1)
    worker.load([b"next"])
    assert worker.states(1) == [State.WAITING]


def test_states_that_are_none_count_as_waiting(sides: tuple[Block, Block]) -> None:
    """A child may have written anything."""
    worker, child = sides
    child._map[64:68] = bytes([1, 2, 77, 255])
    assert worker.states(4) == [State.IN_HAND, State.DONE, State.WAITING, State.WAITING]


def test_findings_are_bounded(sides: tuple[Block, Block]) -> None:
    """Whatever length a child names."""
    worker, child = sides
    child.store(b"[1]")
    assert worker.findings(3) == b"[1]"
    assert len(worker.findings(10**12)) == FINDINGS_BYTES


def test_the_crop_is_shared(sides: tuple[Block, Block]) -> None:
    """Place for one image's pixels."""
    worker, child = sides
    child.crop()[:] = 7
    assert worker.crop().shape == (1, 224, 224, 3)
    assert np.all(worker.crop() == 7)


def test_nobody_can_cut_it_short(sides: tuple[Block, Block]) -> None:
    """A shorter block would end the worker by SIGBUS."""
    with pytest.raises(PermissionError):
        os.ftruncate(sides[0].file, 4096)


def test_memory_of_large_images_goes_back(sides: tuple[Block, Block]) -> None:
    """That of usual ones stays."""
    worker, _ = sides
    worker.load([b"x" * CAPACITY])
    full = os.fstat(worker.file).st_blocks * 512
    worker.unload(CAPACITY)
    assert os.fstat(worker.file).st_blocks * 512 < full - CAPACITY // 2
    worker.unload(CAPACITY)  # once more does nothing
