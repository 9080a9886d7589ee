"""`make mutate`: small faults planted in the core, one at a time; the tests must notice each (mutmut).

    python -m tests.mutation                       all of it (pyproject.toml, [tool.mutmut], says what)
    python -m tests.mutation "worker.offsets*"     the mutants whose names match

A mutant that no test notices either shows a test that is missing, or changes nothing that anybody could see: the latter
stand in mutants.toml, by function and changed lines, each with the reason. Exit 1 where a survivor is not explained
there, or an explanation has no survivor any more. mutmut keeps its work in mutants/ and goes on where it was stopped.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parents[1]
EXPLAINED = Path(__file__).with_name("mutants.toml")
MUTMUT = Path(sys.executable).with_name("mutmut")
UNNOTICED = ("survived", "no tests", "suspicious")


@dataclass(frozen=True)
class Change:
    """One mutant: the function it is in, and the lines taken out (`- …`) and put in (`+ …`), without indentation."""

    function: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([self.function, *(f"    {line}" for line in self.lines)])


def explained(path: Path = EXPLAINED) -> dict[Change, str]:
    """The reason of each survivor that is no gap."""
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("mutant", [])
    return {
        Change(entry["function"], tuple(line.strip() for line in entry["change"].strip().splitlines())): entry["why"]
        for entry in entries
    }


def change(name: str, shown: str) -> Change:
    """What mutmut shows of the mutant `name`, a unified diff."""
    lines = [line for line in shown.splitlines() if re.match(r"[-+](?![-+])", line)]
    return Change(_function(name), tuple(f"{line[0]} {line[1:].strip()}" for line in lines if line[1:].strip()))


def _function(name: str) -> str:
    """worker.offsets.xǁOffsetTrackerǁassign__mutmut_1 -> worker.offsets.OffsetTracker.assign"""
    module, _, rest = name.rpartition("__mutmut_")[0].rpartition(".")
    return f"{module}.{rest.removeprefix('x_').removeprefix('xǁ').replace('ǁ', '.')}"


def survivors() -> dict[str, str]:
    """Name -> status of each mutant that was tried and not noticed."""
    found = (line.strip().rpartition(": ") for line in _mutmut("results").splitlines() if ": " in line)
    return {name: status for name, _, status in found if status in UNNOTICED}


def _mutmut(*arguments: str) -> str:
    return subprocess.run([MUTMUT, *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def verdict(left: Sequence[Change], reasons: dict[Change, str], *, whole: bool) -> list[str]:
    """What is to be done: survivors without a reason and, after a `whole` run, reasons without a survivor."""
    told = [f"no test notices it, and nothing explains it:\n{one}" for one in left if one not in reasons]
    gone = [one for one in reasons if one not in left] if whole else []
    return told + [f"explained in {EXPLAINED.name}, but a test notices it now, or it is gone:\n{one}" for one in gone]


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Patterns of mutants; all without.")] = None,
    children: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> None:
    """Plant faults in the core, and see that the tests notice each."""
    command = [MUTMUT, "run", "--max-children", str(children), *(names or [])]
    subprocess.run(
        command, cwd=ROOT, check=True, env={**os.environ, "HYPOTHESIS_PROFILE": "mutants", "TEST_PATIENCE_S": "4"}
    )
    left = [change(name, _mutmut("show", name)) for name in survivors()]
    told = verdict(left, explained(), whole=not names)
    print("\n\n".join(told) or f"every mutant is noticed, but for {len(left)} that are explained")
    raise typer.Exit(1 if told else 0)


if __name__ == "__main__":
    typer.run(main)
