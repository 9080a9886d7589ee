"""`replay`: rejected images back into the incoming topic."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from worker.cli.command import AsJson, Config, command
from worker.cli.settings import load_settings
from worker.terminal import err, out, print_json


@command(
    examples="""
    python -m worker replay --reason too_large --dry-run
    python -m worker replay --since 2h --limit 1000
    """
)
def replay(
    reason: Annotated[str | None, typer.Option(metavar="REASON", help="Only these, e.g. too_large.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Rejected since, e.g. 2h or 2026-11-21T12:00:00Z.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go back.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Put rejected images back into the incoming topic, as their producer had sent them."""
    from worker import replay as replaying

    wanted = replaying.check_reason(reason)
    since_ms = replaying.parse_since(since, time.time()) if since else None
    settings = load_settings(config).kafka
    count = 0
    for found in replaying.replay(settings, reason=wanted, since_ms=since_ms, limit=limit, dry_run=dry_run):
        count += found.complete
        if as_json:
            print_json(json.dumps({**found.described(), "replayed": found.complete and not dry_run}))
        else:
            out.say(found.on_one_line())
    if not as_json:
        done = "would go back" if dry_run else "went back"
        err.say(f"{count} images {done} to {settings.incoming_topic}")
