"""`reviews export | report`: what people decided, for training and for whoever leads them."""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from worker.cli.command import AsJson, Config, app, command
from worker.cli.settings import load_settings
from worker.terminal import err, out, print_json

reviews_app = typer.Typer(help="What people decided in the review console.", no_args_is_help=False)
app.add_typer(reviews_app, name="reviews")
Since = Annotated[str | None, typer.Option(metavar="TIME", help="Decided since, e.g. 7d or 2026-11-21T12:00:00Z.")]


@reviews_app.callback(invoke_without_command=True)
def overview(context: typer.Context) -> None:
    """What people decided in the review console: as folders for training, or as a report."""
    if context.invoked_subcommand is None:
        out.say("python -m worker reviews export DIR | report")


@command(
    examples="""
    python -m worker reviews export reviewed/ --since 30d
    python -m worker reviews export reviewed/ --held-out 0.3
    python -m train.main calibrate --weights W --data reviewed/ --queue spot-checks --target-fpr 0.01 --out policy.toml
    """,
    group=reviews_app,
    name="export",
)
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    since: Since = None,
    held_out: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Share of the groups that stands apart in DIR/held-out, others in DIR/fit."),
    ] = 0.0,
    config: Config = None,
) -> None:
    """Reviewed images as real/… and fake/… folders with a manifest, for train.main. Noted in the console's audit."""
    from worker import reviews, reviews_export
    from worker.replay import parse_since
    from worker.telemetry.logs import configure

    settings = load_settings(config)
    configure(settings.log.level, settings.log.format)
    found, unreadable = reviews.read(settings.kafka, parse_since(since, time.time()) if since else None)
    reviews.audit(settings).note("export", _account(), "", folder=str(folder), since=since or "", reviews=len(found))
    counts = reviews_export.export(settings, found, folder, err.say, held_out)
    if unreadable:
        counts["unreadable"] = unreadable
    err.say(f"{folder}: " + (", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "no reviews"))


@command(
    examples="python -m worker reviews report --since 7d\npython -m worker reviews report --json",
    group=reviews_app,
    name="report",
)
def report(since: Since = None, as_json: AsJson = False, config: Config = None) -> None:
    """Precision of `fake`, what is missed, agreement of reviewers, time per image, golden items, what waits and how
    long.
    """
    from worker import reviews
    from worker.errors import Unavailable
    from worker.replay import parse_since

    settings = load_settings(config)
    found = reviews.report(*reviews.read(settings.kafka, parse_since(since, time.time()) if since else None))
    try:
        found["queues"] = reviews.waiting(settings)
    except Unavailable as error:
        err.say(f"queues: not known: {error}")
        found["queues"] = None
    if as_json:
        print_json(json.dumps(found))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name in ("reviews", "verdicts", "contested"):
        table.add_row(name, str(found[name]))
    table.add_row("decisions", ", ".join(f"{name} {count}" for name, count in found["decisions"].items()) or "-")
    for name in ("precision_of_fake", "fakes_among_real", "fakes_among_review"):
        table.add_row(
            name.replace("_", " "), _shown(found[name]["share"], found[name]["interval"], found[name]["images"])
        )
    agreement = found["agreement"]
    table.add_row("kappa", _shown(agreement["kappa"], agreement["interval"], agreement["pairs"]))
    table.add_row("appeals", f"{found['appeals']['decided']} decided, {found['appeals']['changed']} changed")
    for name, queue in (found["queues"] or {}).items():
        age = "" if queue["oldest_seconds"] is None else f", the oldest for {_long(queue['oldest_seconds'])}"
        table.add_row(f"queue {name}", f"{queue['images']} wait{age}")
    for name, one in found["reviewers"].items():
        golden = _shown(
            one["golden_right"] / one["golden"] if one["golden"] else None, one["golden_interval"], one["golden"]
        )
        table.add_row(f"  {name}", f"{one['reviews']} reviews, {one['median_seconds']} s each, golden {golden}")
    out.print(table)


def _account() -> str:
    """Who this process is, as far as it can say; a container's user need not have a name."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"


def _long(seconds: float) -> str:
    """In the unit that is read at a glance."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _shown(value: float | None, interval: list[float] | None, count: Any) -> str:
    if value is None:
        return f"- ({count})"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "") + f" ({count})"
