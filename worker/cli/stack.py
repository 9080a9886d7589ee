"""`stack up | down | status`: the local servers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from worker import settings
from worker.cli.command import AsJson, app, command
from worker.terminal import err, out, print_json

if TYPE_CHECKING:  # slow to import
    from worker.local.stack import StackStatus

stack_app = typer.Typer(help="The local Kafka, Redis and Triton, without containers.", no_args_is_help=False)
app.add_typer(stack_app, name="stack")


@stack_app.callback(invoke_without_command=True)
def overview(context: typer.Context) -> None:
    """The local Kafka, Redis and Triton, without containers."""
    if context.invoked_subcommand is None:
        out.say("python -m worker stack up | down | status")


@command(
    examples="""
    python -m worker stack up
    python -m worker stack up --models build/models
    eval "$(python -m worker stack status --export)"
    """,
    group=stack_app,
    name="up",
)
def up(
    models: Annotated[
        Path | None,
        typer.Option(
            "--models",
            help="Serve this model repository, not the demo's (docs/models.md).",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start what does not run; returns once all three serve."""
    from worker.local import stack

    if models is not None and not (models / "MANIFEST.json").is_file():
        raise typer.BadParameter(
            f"{models} is no model repository; write one with python -m triton_models.build", param_hint="--models"
        )
    _show(stack.up(_directory(), models=models, report=err.say), as_json=as_json)


@command(examples="python -m worker stack down\npython -m worker stack down --purge", group=stack_app, name="down")
def down(purge: Annotated[bool, typer.Option("--purge", help="Remove the data too.")] = False) -> None:
    """Stop the servers; their data stays."""
    from worker.local import stack

    stack.down(_directory(), purge=purge, report=err.say)


@command(examples="python -m worker stack status --json", group=stack_app, name="status")
def status(
    as_json: AsJson = False,
    export: Annotated[bool, typer.Option("--export", help="As shell commands that set the variables.")] = False,
) -> None:
    """What runs, and where."""
    from worker.local import stack

    found = stack.status(_directory())
    if export:
        for name, value in found.env.items():
            out.say(f"export {name}={value}")
    else:
        _show(found, as_json=as_json)


def _directory() -> Path | None:
    return settings.load(None).stack.dir


def _show(found: StackStatus, *, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
        return
    table = Table("service", "pid", "address", box=None, pad_edge=False)
    for name, service in found.services.items():
        table.add_row(name, *((str(service.pid), service.address) if service else ("-", "not running")))
    out.print(table)
