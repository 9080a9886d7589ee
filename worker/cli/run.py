"""`run`: the worker itself."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from worker.cli.command import Config, command
from worker.cli.settings import load_settings


@command(
    examples="""
    python -m worker run
    ASSAY_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 ASSAY_TRITON__URL=triton:8001 python -m worker run
    python -m worker run --config assay.toml --processes 4
    """
)
def run(
    config: Config = None,
    processes: Annotated[
        int, typer.Option(min=1, max=256, help="Workers on this host; they share the partitions, ports count up.")
    ] = 1,
) -> None:
    """Consume images until SIGTERM or SIGINT, then drain and exit 0."""
    # A policy is taken up anew at SIGHUP; until somebody listens to it, it must not end the worker either.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    settings = load_settings(config)  # before the imports below, which take seconds: a wrong variable is told at once
    # Process 1 of a container would not even hear of it during these imports.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from worker.telemetry.logs import configure

    configure(settings.log.level, settings.log.format)
    if processes > 1:
        from worker.processes import run_several

        raise typer.Exit(run_several(settings, config, processes))
    from worker.pipeline import Pipeline

    pipeline = Pipeline(settings)
    pipeline.handle_signals()
    pipeline.run()
