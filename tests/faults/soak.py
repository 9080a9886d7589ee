"""Faults under load on real servers, audited from outside (`make soak`).

    python -m tests.faults.soak --faults 100 --seed 7

Prints each fault with the time until an image sent after its end had its verdict, and what the audit found; exit code 1
where it found anything.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from tests.faults.faults import Fault, choose
from tests.faults.world import World


def endure(world: World, faults: list[Fault]) -> list[tuple[str, float]]:
    """Plant each fault under load. Returns how long each recovery took, in seconds."""
    recoveries = []
    for number, fault in enumerate(faults, 1):
        with world.load(), fault.planted(world):
            time.sleep(fault.lasts_s)
        recoveries.append((fault.name, world.recovered_after()))
        print(f"{number:4} {fault.name:32} recovered after {recoveries[-1][1]:5.1f} s", flush=True)
    return recoveries


def main(
    faults: Annotated[int, typer.Option(help="how many")] = 100,
    seed: Annotated[int | None, typer.Option(help="of the order; a random one is chosen and printed")] = None,
) -> None:
    """Plant faults under load on real servers, and audit from outside."""
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="assay-soak-") as directory:
        world = World(Path(directory))
        try:
            recoveries = endure(world, choose(random.Random(seed), faults))
            found = world.audit()
        except AssertionError:
            print(world.worker.log_tail(), flush=True)
            raise
        finally:
            world.close()
    slowest = max(recoveries, key=lambda recovery: recovery[1])
    print(f"{len(recoveries)} faults, {len(world.sent)} images; slowest recovery {slowest[1]:.1f} s ({slowest[0]})")
    print("\n".join(found) or "nothing lost, doubled, wrong or unjustly rejected")
    raise typer.Exit(1 if found else 0)


if __name__ == "__main__":
    typer.run(main)
