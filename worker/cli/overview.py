"""`python -m worker` without a command: what there is, and what to type next."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from worker import __version__
from worker.cli.command import app
from worker.terminal import out

COMMANDS = (
    ("demo", "everything at once, on sample images"),
    ("stack up", "start a local Kafka, Redis and Triton"),
    ("check", "are settings and servers in order?"),
    ("run", "consume images until SIGTERM"),
    ("send PATH… --wait", "publish images and watch their verdicts"),
    ("query ID", "the stored verdict of an image"),
    ("explain ID", "why: rule, margins, evidence, and what in the image speaks for it"),
    ("replay", "put rejected images back, once mended"),
    ("policy check FILE", "what a policy means, and what is wrong with it"),
    ("policy backtest FILE", "what it would have decided of what is stored"),
    ("console", "the review console: a page where people decide what the worker sent to review"),
    ("reviews report", "what people decided there, and how well they agree"),
    ("reviews export DIR", "reviewed images as folders for train.main"),
    ("bench", "how fast, and how much of it is the model"),
    ("schema", "the schemas of what is published"),
)


@app.callback(invoke_without_command=True)
def overview(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Assay: images in on Kafka, deepfake verdicts out in Redis and Kafka."""
    if version:
        out.say(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, does in COMMANDS:
            table.add_row(f"  python -m worker {name}", f"  {does}")
        out.print(f"[bold]Assay {__version__}[/bold]: images in on Kafka, deepfake verdicts out in Redis and Kafka.\n")
        out.print(table)
        out.print("\nNext: [bold]python -m worker demo[/bold]. Help on a command: python -m worker COMMAND --help")
