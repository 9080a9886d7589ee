"""`python -m tests.simulation`: histories by the second, or one by its seed."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from typing import Annotated

import typer

from tests.simulation import planted_beside  # noqa: F401 - it plants more
from tests.simulation.history import run
from tests.simulation.plan import draw
from tests.simulation.planted import PLANTED, SEEN_IN


def main(
    seed: Annotated[int | None, typer.Option(help="Run this one history, and show it.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="With --seed: show what it was drawn to be.")] = False,
    planted: Annotated[
        bool, typer.Option("--planted", help="Plant each bug of planted.py, and say where it is found.")
    ] = False,
    first: Annotated[int, typer.Option(help="The first seed.")] = 0,
    seconds: Annotated[float, typer.Option(min=0, help="How long to go on.")] = 60.0,
    count: Annotated[int | None, typer.Option(min=1, help="How many histories, instead of a time.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Histories by the second, or one by its seed; exit 1 where one breaks the contract."""
    if seed is not None:
        is_broken = _show(seed, plan)
    elif planted:
        is_broken = _find_planted(seconds) > 0
    else:
        is_broken = _run(first, seconds, count, jobs) > 0
    raise typer.Exit(is_broken)


def _show(seed: int, with_plan: bool) -> bool:
    """One history. Returns whether it breaks the contract."""
    if with_plan:
        typer.echo(draw(seed))
    history = run(seed)
    typer.echo(history.report() if history.findings else history.timeline(1000))
    return bool(history.findings)


def _run(first: int, seconds: float, count: int | None, jobs: int) -> int:
    """Many histories. Returns how many break the contract."""
    began = time.perf_counter()
    with ProcessPoolExecutor(jobs) as pool:
        results = list(pool.map(_run_many, [(first + job, jobs, seconds, count) for job in range(jobs)]))
    done = sum(count for count, _ in results)
    took_s = time.perf_counter() - began
    typer.echo(f"{done} histories from seed {first} in {took_s:.0f} s: {done / took_s:.0f} a second")
    reports = [report for _, found in results for report in found]
    for report in reports[:10]:
        typer.echo(f"\n{report}")
    typer.echo(f"\n{len(reports)} of them break the contract" if reports else "none breaks the contract")
    return len(reports)


def _find_planted(seconds: float) -> int:
    """Look for each planted bug for so long. Returns how many were not found."""
    missed = 0
    for name, plant in PLANTED.items():
        began = time.perf_counter()
        seed, finding = 0, None
        with plant():
            while finding is None and time.perf_counter() < began + seconds:
                finding = next(iter(run(seed, SEEN_IN.get(name)).findings), None)
                seed += 1
        missed += finding is None
        told = f"seed {seed - 1}: {finding}" if finding else f"NOT FOUND in {seed} histories"
        typer.echo(f"{name} ({time.perf_counter() - began:.1f} s) {told}"[:150])
    return missed


def _run_many(work: tuple[int, int, float, int | None]) -> tuple[int, list[str]]:
    """(histories, reports of those that break the contract) of every `stride`-th seed."""
    first, stride, seconds, count = work
    until = time.perf_counter() + seconds
    seed, done, reports = first, 0, list[str]()
    while (time.perf_counter() < until if count is None else done * stride < count) and len(reports) < 20:
        history = run(seed)
        done += 1
        seed += stride
        if history.findings:
            reports.append(history.report())
    return done, reports


if __name__ == "__main__":
    typer.run(main)
