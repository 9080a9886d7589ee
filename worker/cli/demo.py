"""`demo`: everything at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.cli.command import command


@command(examples="python -m worker demo\npython -m worker demo ~/Pictures --keep")
def demo(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH...]", help="Images to use; the sample images when left out.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the local stack running.")] = False,
) -> None:
    """Stack, worker, sample images, verdict table: everything at once."""
    from worker.demo import demo as show_all

    show_all(paths or [], keep=keep)
