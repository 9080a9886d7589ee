"""`schema`: the schemas of what is published."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from worker.cli.command import command


@command(examples="python -m worker schema verdict\npython -m worker schema asyncapi > asyncapi.json")
def schema(
    name: Annotated[
        Literal["verdict", "reference", "review", "asyncapi"] | None, typer.Argument(help="Which; all when left out.")
    ] = None,
) -> None:
    """Print the schemas of what is published."""
    from worker.contract import dump_json
    from worker.schemas import SCHEMAS
    from worker.terminal import print_json

    print_json(dump_json(SCHEMAS[name]() if name else {key: make() for key, make in SCHEMAS.items()}))
