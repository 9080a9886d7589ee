"""`query`: the stored verdict of an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from worker.cli.command import AsJson, Config, command
from worker.cli.settings import load_settings
from worker.terminal import out, print_json


@command(
    examples="""
    python -m worker query real/mflux-dog-photos/5f0c.jpg
    python -m worker query --file photo.jpg
    python -m worker query --sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 --json
    """
)
def query(
    image_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Image id.")] = None,
    sha256: Annotated[str | None, typer.Option("--sha256", metavar="HASH", help="By the SHA-256 of the bytes.")] = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="FILE", help="By a file with the same bytes.")] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """The stored verdict of an image; exit 4 if there is none."""
    from worker.query import stored_verdict
    from worker.show import verdict_panel

    settings = load_settings(config)
    document = stored_verdict(settings.redis, image_id=image_id, sha256=sha256, file=file)
    if as_json:
        print_json(document)
    else:
        out.print(verdict_panel(json.loads(document)))
