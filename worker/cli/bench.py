"""`bench`: load and efficiency."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from worker import settings as settings_module
from worker.cli.command import AsJson, Config, command
from worker.cli.settings import load_settings


@command(
    examples="""
    python -m worker bench
    python -m worker bench --images 400 --rounds 3 --json
    python -m worker bench memory --images 20000
    python -m worker bench policy
    python -m worker bench reviews
    """
)
def bench(
    what: Annotated[
        Literal["throughput", "memory", "decode", "policy", "evidence", "backtest", "reviews"],
        typer.Argument(help="What to measure."),
    ] = "throughput",
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Images per round; stored verdicts of `backtest`; queued images of `reviews`."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median is the result.")] = 3,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Load and efficiency: the worker against the model server alone, its memory, its decoder, policies and more."""
    from worker.bench import report

    settings = load_settings(config) if what not in ("decode", "policy", "evidence") else settings_module.load(config)
    report.run(what, settings, config, images=images, rounds=rounds, as_json=as_json)
