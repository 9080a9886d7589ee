"""`python -m tests.simulation`: histories by the second, or one by its seed."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.history import run
from tests.simulation.plan import draw
from tests.simulation.planted import PLANTED


def main() -> int:
    """Returns 1 where a history breaks the contract."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one history, and show it")
    parser.add_argument("--plan", action="store_true", help="with --seed: show what it was drawn to be")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on")
    parser.add_argument("--count", type=int, help="how many histories, instead of a time")
    parser.add_argument(
        "--planted", action="store_true", help="plant each bug of planted.py, and say where it is found"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    if options.seed is not None:
        if options.plan:
            print(draw(options.seed))
        history = run(options.seed)
        print(history.report() if history.findings else history.timeline(1000))
        return bool(history.findings)
    if options.planted:
        return _find_planted(options.seconds)
    began = time.perf_counter()
    with ProcessPoolExecutor(options.jobs) as pool:
        work = [(options.first + job, options.jobs, options.seconds, options.count) for job in range(options.jobs)]
        results = list(pool.map(_run_many, work))
    done = sum(count for count, _ in results)
    took_s = time.perf_counter() - began
    print(f"{done} histories from seed {options.first} in {took_s:.0f} s: {done / took_s:.0f} a second")
    reports = [report for _, found in results for report in found]
    for report in reports[:10]:
        print(f"\n{report}")
    print(f"\n{len(reports)} of them break the contract" if reports else "none breaks the contract")
    return bool(reports)


def _find_planted(seconds: float) -> int:
    """Look for each planted bug for so long. Returns how many were not found."""
    missed = 0
    for name, plant in PLANTED.items():
        began = time.perf_counter()
        seed, finding = 0, None
        with plant():
            while finding is None and time.perf_counter() < began + seconds:
                finding = next(iter(run(seed).findings), None)
                seed += 1
        missed += finding is None
        told = f"seed {seed - 1}: {finding}" if finding else f"NOT FOUND in {seed} histories"
        print(f"{name} ({time.perf_counter() - began:.1f} s) {told}"[:150], flush=True)
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
    sys.exit(main())
