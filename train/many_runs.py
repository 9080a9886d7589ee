"""The commands around training: many runs of it, and what it costs here."""
# ruff: noqa: PLC0415 - torch takes seconds to import, and `--help` and wrong usage should not

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from train.terminal import clear_errors, out_console, say


def add_commands(app: typer.Typer) -> None:
    """`sweep`, `bench` and `simulate`."""
    for command in (sweep, bench, simulate):
        app.command()(command)


def sweep(
    vary: Annotated[list[str], typer.Option(metavar="SECTION.FIELD=[VALUE, …]", help="Values of a field; repeatable.")],
    runs: Annotated[Path, typer.Option(help="Folder of the runs and of sweep.json, sweep.csv.")] = Path("runs/sweep"),
    recipe: Annotated[str, typer.Option(help="A TOML file, or the name of one in train/recipes.")] = "smoke",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Of all runs; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON only.")] = False,
) -> None:
    """A run for every combination of values; the same command goes on where it was.

    Example: `sweep --set data.source=equal/train --vary "training.seed=[1, 2]" --vary "loss.temperature=[0.05, 0.1]"`
    """
    from train.sweep import STOPPED, over_seeds
    from train.sweep import sweep as train_all

    with clear_errors():
        rows = train_all(recipe, overrides or [], vary, runs, say=say)
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        grouped = over_seeds(rows)
        table = Table(*grouped[0], title="best linear probe, over seeds")
        for row in grouped:
            table.add_row(*("" if value is None else str(value) for value in row.values()))
        out_console.print(table)
    if rows[-1]["status"] == STOPPED:
        say("stopped; the same command goes on where it was")
    else:
        say(f"the runs are in {runs}, their table is {runs}/sweep.csv")


def bench(
    data: Annotated[Path, typer.Option(help="Labelled images whose views are made.")],
    processes: Annotated[int, typer.Option(help="0 = one per core.", min=0)] = 0,
    records: Annotated[int, typer.Option(help="Records whose eight views are made by each process.", min=1)] = 40,
    train_steps: Annotated[int, typer.Option(help="Training steps to time afterwards; 0 = none.", min=0)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Views per second of the fast path against the reference. Example: `bench --data tests/data/images`"""
    from train.bench import measure

    with clear_errors():
        result = measure(data, processes=processes, records=records, train_steps=train_steps)
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        out_console.print_json(json.dumps(result))


def simulate(
    records: Annotated[int, typer.Option(help="As many as D3 has, unless told otherwise.", min=1)] = 2_306_629,
    ranks: Annotated[int, typer.Option(help="Training processes.", min=1)] = 4,
    workers: Annotated[int, typer.Option(help="Data processes of each.", min=0)] = 8,
    batches: Annotated[
        int, typer.Option(help="Of each rank; the second half comes again, as by a restart.", min=2)
    ] = 24,
    batch_size: Annotated[int, typer.Option(help="Records.", min=2)] = 256,
    shards_at_once: Annotated[int, typer.Option(help="As data.shards_at_once.", min=1)] = 16,
    resample: Annotated[bool, typer.Option(help="As data.resample.")] = False,
) -> None:
    """The input side of a full run on noise: memory, descriptors, mixing, restart. Example: `simulate --ranks 4`"""
    from train.simulate import Simulated
    from train.simulate import simulate as run

    with clear_errors():
        asked = Simulated(
            records, ranks, workers, batches, batch_size, shards_at_once=shards_at_once, resample=resample
        )
        out_console.print_json(json.dumps(run(asked)))
