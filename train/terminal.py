"""What the commands of `train.main` share on a terminal: where they write, and how what went wrong becomes a line and
an exit code.

Results go to stdout (`out_console`), everything said on the way to stderr (`console`), so that results can be piped.
"""
# ruff: noqa: PLC0415 - torch takes seconds to import, and `--help` and wrong usage should not

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

out_console, console = Console(), Console(stderr=True)

GOES_ON = "stopped; the same command goes on where it was"


@contextmanager
def clear_errors(*, when_stopped: str = "stopped") -> Iterator[None]:
    """What the user can put right becomes one line for each problem and exit 2; Ctrl-C and SIGTERM one line and exit
    130.
    """
    from train.data.images import DataError
    from train.distributed import PeerFailed
    from train.recipe import RecipeError
    from train.sklearn_pickle import UnsafePickleError
    from triton_models.weights import WeightsError

    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as error:
        console.print(when_stopped, style="yellow", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(130) from error
    except PeerFailed as error:
        raise typer.Exit(2) from error
    except RecipeError as error:
        for problem in error.problems:
            console.print(f"recipe: {problem}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    except (DataError, WeightsError, UnsafePickleError, OSError) as error:
        console.print(f"{type(error).__name__}: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    finally:
        signal.signal(signal.SIGTERM, previous)


def require_new(folder: Path, *, but_for: tuple[str, ...] = ()) -> None:
    """Raises DataError where `folder` holds anything whose name does not begin with one of `but_for`."""
    from train.data.images import DataError

    if folder.exists() and any(not path.name.startswith(but_for) for path in folder.iterdir()):
        raise DataError(f"{folder} is not empty: name a new folder")


def say(line: str) -> None:
    """A line on stderr, as it is: not folded, no markup."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
