"""The little that data-parallel training needs: who am I, and agree. Without torchrun everything is one
process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

PATIENCE = timedelta(hours=2)  # that ranks wait for each other: the main one may index shards meanwhile


class PeerFailed(RuntimeError):
    """Another process found what is wrong, and says it."""


@dataclass(frozen=True)
class Group:
    """This process among its peers."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """True on every rank if it is True on one."""
        if self.world == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        distributed.all_reduce(value, distributed.ReduceOp.MAX)
        return bool(value.item())

    def gather(self, value: float) -> list[float]:
        """Every rank's number, by rank, on all of them."""
        if self.world == 1:
            return [value]
        mine = torch.tensor([value], dtype=torch.float64, device=self.device)
        parts = [torch.empty_like(mine) for _ in range(self.world)]
        distributed.all_gather(parts, mine)
        return [float(part.item()) for part in parts]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on all of them; it is pickled on the way."""
        if self.world == 1:
            return [value]
        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, value)
        return parts

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The block runs on the main process, then on the others. Raises PeerFailed there where it failed on the main
        one.
        """
        if self.world == 1:
            yield
            return
        if self.is_main:
            failed = True
            try:
                yield
                failed = False
            finally:
                self.any(failed)
            return
        if self.any(flag=False):
            raise PeerFailed("the main process failed")
        yield

    def broadcast(self, value: float) -> float:
        """The main process's number, on every rank."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.broadcast(shared, 0)
        return float(shared.item())


def pick_device(wanted: str) -> torch.device:
    """`auto` is the GPU of this process's local rank where there is one."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group(wanted_device: str) -> Iterator[Group]:
    """The group that torchrun describes in the environment (nccl on GPUs, gloo on CPUs), or a group of one."""
    device = pick_device(wanted_device)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Group(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Group(distributed.get_rank(), world, device)
    finally:
        distributed.destroy_process_group()
