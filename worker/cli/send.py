"""`send`: publish images, and watch their verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.cli.command import EXIT_FAILED, AsJson, Config, command
from worker.cli.settings import load_settings


@command(
    examples="""
    python -m worker send photo.jpg holiday/ --wait
    python -m worker send holiday/ --wait --json > verdicts.jsonl
    """
)
def send(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.")],
    wait: Annotated[bool, typer.Option("--wait", help="Show the verdicts as they arrive.")] = False,
    timeout_s: Annotated[
        float, typer.Option(min=1, help="With --wait: give up when no verdict has come for so long.")
    ] = 120.0,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Publish images; the id of each is its path relative to the folder named."""
    from worker import send as sending
    from worker import show

    settings = load_settings(config)
    sources = sending.find_sources(paths)
    if not show.send_and_show(settings, sources, wait_s=timeout_s if wait else None, as_json=as_json):
        raise typer.Exit(EXIT_FAILED)
