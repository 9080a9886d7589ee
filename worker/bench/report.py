"""`bench`: run a benchmark and show it, as a table or as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from worker.bench import memory, throughput
from worker.bench.backtest import measure_backtest
from worker.bench.decode import measure_decode
from worker.bench.evidence import measure_evidence
from worker.bench.policy import measure_policy
from worker.bench.reviews import measure_reviews
from worker.settings import Settings
from worker.terminal import err, out, print_json

THROUGHPUT_IMAGES = 320
MEMORY_IMAGES = 2_000
BACKTEST_VERDICTS = 1_000_000
QUEUED_REVIEWS = 100_000


def run(
    what: str,
    settings: Settings,
    config: Path | None,
    *,
    images: int | None,
    rounds: int,
    as_json: bool,
) -> None:
    """Measure `what` (one of the command's choices) and print it. Raises Unavailable where a server does not answer."""
    document: dict[str, Any]
    machine = {"cores": os.cpu_count()}
    if what == "throughput":
        found = throughput.measure(settings, config, images=images or THROUGHPUT_IMAGES, rounds=rounds, report=err.say)
        document = {
            "rounds": [{**asdict(one), "ratio": one.ratio} for one in found],
            "median_ratio": throughput.median_ratio(found),
        }
    elif what == "memory":
        result = memory.measure(settings, config, images=images or MEMORY_IMAGES, report=err.say)
        document = {**asdict(result), "within_bound": result.within}
    elif what == "backtest":
        runs = measure_backtest(settings, config, images=images or BACKTEST_VERDICTS, report=err.say)
        document = {"rounds": [asdict(one) for one in runs]}
    elif what == "reviews":
        document = measure_reviews(settings, images=images or QUEUED_REVIEWS, report=err.say)
    elif what == "evidence":
        document = measure_evidence()
    elif what == "policy":
        document = measure_policy()
    else:
        document = measure_decode()
    if as_json:
        print_json(json.dumps({"bench": what, "machine": machine, **document}))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in document.items():
        if name == "rounds":
            for number, one in enumerate(document["rounds"], 1):
                table.add_row(f"round {number}", ", ".join(f"{key} {figure:.3g}" for key, figure in one.items()))
        else:
            table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    out.print(table)
