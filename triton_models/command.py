"""What the command lines of this package share: how they look, and how an error becomes a line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer

from triton_models.plan import PlanError
from triton_models.repository import BuildError
from triton_models.weights import WeightsError

TOLD = (WeightsError, BuildError, PlanError)  # their messages say what to do


def command_line(description: str | None) -> typer.Typer:
    """An application whose help is `description` (a module's docstring), its lines as they are."""
    text = "\n\n".join(f"\b\n{paragraph}" for paragraph in (description or "").strip().split("\n\n"))
    return typer.Typer(
        help=text,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


@contextmanager
def clear_errors(place: Path | None) -> Iterator[None]:
    """What the caller can put right becomes one line on stderr and exit 1; `place` is named where the system names no
    file.
    """
    try:
        yield
    except TOLD as error:
        fail(str(error), cause=error)
    except OSError as error:  # no space, no permission, no such place
        fail(f"{error.filename2 or error.filename or place}: {error.strerror}", cause=error)


def fail(line: str, *, code: int = 1, cause: BaseException | None = None) -> NoReturn:
    """Say `error: …` on stderr and leave with `code`."""
    print(f"error: {line}", file=sys.stderr)
    raise typer.Exit(code) from cause
