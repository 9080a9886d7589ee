"""The command line of what writes generated files: docs/, the chart's schema and README, the dashboards."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer


def main(module: str, files: Mapping[Path, str]) -> None:
    """Run `python -m <module> [--check]`: writes those of `files` (path -> content) that are not current; with --check
    it writes nothing, names them on stderr and exits with 1.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command(help="Write the generated files that are not current.")
    def command(
        check: Annotated[
            bool, typer.Option("--check", help="Write nothing; name what is not current, exit 1.")
        ] = False,
    ) -> None:
        old = stale(files)
        if not check:
            write(files)
            return
        for path in old:
            print(f"{path} is not current; run: python -m {module}", file=sys.stderr)
        raise typer.Exit(1 if old else 0)

    app(prog_name=f"python -m {module}")


def stale(files: Mapping[Path, str]) -> list[Path]:
    """The files that are missing or have another content than they should."""
    return [
        path for path, content in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != content
    ]


def write(files: Mapping[Path, str]) -> None:
    """Write those that are not current, and say so."""
    for path in stale(files):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
        print(f"wrote {path}")
