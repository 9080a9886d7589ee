"""What every command has: its registration with examples, its exit codes, the options that several share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from worker.errors import NotFound, SettingsError, Unavailable
from worker.terminal import err

P = ParamSpec("P")
EXIT_FAILED, EXIT_SETTINGS, EXIT_UNAVAILABLE, EXIT_NOT_FOUND = 1, 2, 3, 4

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings as a TOML file; the environment beats it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]


def command(
    *, examples: str, group: typer.Typer = app, name: str | None = None
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a command with examples in its help, and turn our errors into a line on stderr and an exit code."""

    def register(body: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(body)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                body(*args, **kwargs)
            except SettingsError as error:
                for problem in error.problems:
                    err.say(problem)
                raise typer.Exit(EXIT_SETTINGS) from None
            except Unavailable as error:
                err.say_lines(f"{error.dependency} is not there: {error.detail}")
                raise typer.Exit(EXIT_UNAVAILABLE) from None
            except NotFound as error:
                err.say(str(error))
                raise typer.Exit(EXIT_NOT_FOUND) from None

        epilog = "[bold]Examples[/bold]\n\n" + "\n\n".join(
            f"  {line.strip()}" for line in examples.strip().splitlines()
        )
        group.command(name, epilog=epilog)(run)
        return run

    return register
