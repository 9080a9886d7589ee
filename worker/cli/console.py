"""`console`: the review console, and its users."""

from __future__ import annotations

import sys
from getpass import getpass
from pathlib import Path
from typing import Annotated, Literal

import typer

from worker.cli.command import Config, app, command
from worker.cli.settings import load_settings
from worker.terminal import err

console_app = typer.Typer(help="The review console.", no_args_is_help=False)
app.add_typer(console_app, name="console")
MISSING = "the console is not installed: pip install 'assay-worker[console]'"


@console_app.callback(invoke_without_command=True)
def console(context: typer.Context, config: Config = None) -> None:
    """Serve the review console until SIGTERM: a page where people decide what the worker sent to review."""
    if context.invoked_subcommand is None:
        _serve(config)


def _serve(config: Path | None) -> None:
    from worker.cli.command import EXIT_SETTINGS
    from worker.errors import SettingsError

    try:
        settings = load_settings(config)
        try:
            from worker.console.server import Server
        except ImportError as error:
            raise SettingsError([f"{MISSING} ({error})"]) from None
        from worker.telemetry.logs import configure

        configure(settings.log.level, settings.log.format)
        Server(settings).run()
    except SettingsError as error:
        for problem in error.problems:
            err.say(problem)
        raise typer.Exit(EXIT_SETTINGS) from None


@command(
    examples="""
    python -m worker console user anna --role reviewer --file users.toml
    python -m worker console user anna --remove
    """,
    group=console_app,
    name="user",
)
def user(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name to log in with.")],
    role: Annotated[
        list[str] | None,
        typer.Option("--role", metavar="ROLE", help="reviewer, lead or auditor; several may be given."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="The users' file; else that of the settings.")
    ] = None,
    gone: Annotated[bool, typer.Option("--remove", help="Take the user out.")] = False,
    config: Config = None,
) -> None:
    """Add or change a user of the console; the password is asked for, or read from standard input."""
    from worker.errors import NotFound, SettingsError
    from worker.settings import variable

    path = file or load_settings(config).console.users_path
    if path is None:
        raise SettingsError([f"--file FILE is expected, or {variable('console', 'users_path')}"])
    try:
        from worker.console import users
    except ImportError as error:
        raise SettingsError([f"{MISSING} ({error})"]) from None

    if gone:
        if not users.remove(path, name):
            raise NotFound(f"{name} is not in {path}")
        err.say(f"took {name} out of {path}; sessions of theirs have ended")
        return
    password = _password()
    users.put(path, name, role or [], password)
    err.say(f"{name} may log in ({', '.join(role or [])}); written to {path}")


@command(
    examples="""
    python -m worker console golden uploads/4711.jpg --truth fake
    python -m worker console golden uploads/4711.jpg --remove
    """,
    group=console_app,
    name="golden",
)
def golden(
    image_id: Annotated[str, typer.Argument(metavar="ID", help="Image id of a stored verdict.")],
    truth: Annotated[Literal["real", "fake"] | None, typer.Option(help="What it is, beyond doubt.")] = None,
    gone: Annotated[bool, typer.Option("--remove", help="Not golden any more.")] = False,
    config: Config = None,
) -> None:
    """Make a judged image golden: hidden among the others, it shows how well people decide; told of afterwards."""
    from worker.errors import NotFound, SettingsError
    from worker.settings import variable

    if (truth is None) is not gone:
        raise SettingsError(["one of --truth real, --truth fake and --remove is expected"])
    settings = load_settings(config)
    from worker.console.board import Board
    from worker.console.queues import Queues
    from worker.query import stored_verdict

    board = Board(settings, Queues.load(settings.console.queues_path, settings.console.second_share))
    if gone:
        if not board.set_golden(image_id, None, ""):
            raise NotFound(f"{image_id} is not golden")
        err.say(f"{image_id} is not golden any more")
        return
    assert truth is not None
    board.set_golden(image_id, truth, stored_verdict(settings.redis, image_id=image_id, sha256=None, file=None))
    share = settings.console.golden_share
    err.say(
        f"{image_id} is golden: {truth}; {share:.0%} of what is given out is ({variable('console', 'golden_share')})"
    )


def _password() -> str:
    from worker.errors import SettingsError

    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    first = getpass("password: ")
    if first != getpass("once more: "):
        raise SettingsError(["the two passwords differ"])
    return first
