"""The commands of `train.main` that look at runs and evaluations together: compare, coverage, paper."""
# ruff: noqa: PLC0415 - scipy takes a second to import, and `--help` and wrong usage should not

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from train.terminal import clear_errors, console, out_console, say

study_app = typer.Typer()
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


@study_app.command()
def compare(
    results: Annotated[list[Path], typer.Argument(help="Two or more folders that evaluate wrote, on the same images.")],
    as_json: AsJson = False,
) -> None:
    """Differences between models on the same images, paired, with tests. Example: `compare results/first
    results/second`
    """
    from train.compare import compare as run
    from train.evaluate import finite

    with clear_errors():
        rows = finite(run(results))
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    columns = ["minus", "head", "images", "AUC", "p (Holm)", "AUC, by source", "bal. acc.", "p (Holm)"]
    table = Table("second", *columns, title="second minus first; 95 % by photograph")
    for row in rows:
        names = [f"{Path(row['second']).name} {row['group']}".strip(), Path(row["first"]).name]
        cells = [_difference(row["auc"]), _p(row["auc"]), _difference(row["auc_by_source"])]
        cells += [_difference(row["balanced_accuracy"]), _p(row["balanced_accuracy"])]
        table.add_row(*names, row["head"], str(row["images"]), *cells)
    out_console.print(table)


def _difference(entry: dict[str, Any]) -> str:
    interval = "" if entry["low"] is None else f" [{entry['low']:+.3f}, {entry['high']:+.3f}]"
    return f"{entry['difference']:+.3f}{interval}"


def _p(entry: dict[str, Any]) -> str:
    return "-" if entry["p_holm"] is None else f"{entry['p_holm']:.2g}"


@study_app.command()
def fuse(
    results: Annotated[
        list[Path], typer.Argument(help="Folders that evaluate wrote of each model, on the same images.")
    ],
    out: Annotated[Path, typer.Option(help="The policy to write (TOML).")],
    head: Annotated[str, typer.Option(help="Whose scores: linear, knn or svm.")] = "linear",
    fake_from: Annotated[float, typer.Option(help="Called fake from this probability on.")] = 0.9,
    real_below: Annotated[float, typer.Option(help="Called real below this probability.")] = 0.1,
    as_json: AsJson = False,
) -> None:
    """A rule over several detectors' scores, if it is better than the best of them; exit 1, and no file, if it is not.

    Example: `fuse results/code results/clip --out policy.toml`
    """
    from train.evaluate import finite
    from train.fusion import fuse as run

    with clear_errors():
        found = finite(run(results, out, head=head, fake_from=fake_from, real_below=real_below, say=say))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        out_console.print_json(json.dumps(found))
    gain = found["gain"]
    told = f"AUC {gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}] against {found['best_alone']} alone"
    if found["written"] is None:
        say(f"not written: {told}; the interval does not lie above zero, so ask that detector alone")
        raise typer.Exit(1)
    say(f"{told}; next: python -m worker policy check {out}")


@study_app.command()
def coverage(
    draws: Annotated[int, typer.Option(help="Samples of each population.", min=50)] = 500,
    processes: Annotated[int, typer.Option(help="0 = one per core.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """How often each interval covers its truth, by simulation; exit 1 where one does not hold. Minutes. Example:
    `coverage --draws 500`
    """
    from train.coverage import POPULATIONS, holds, simulate
    from train.progress import counting

    with clear_errors(), counting(console, "populations", len(POPULATIONS)) as advance:
        rows = simulate(draws, processes or os.cpu_count() or 1, advance)
    failed = [row for row in rows if not holds(row)]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        table = Table("population", "interval", "printed", "covers", title=f"{draws} draws")
        for row in rows:
            style = "red" if row in failed else None
            table.add_row(row["population"], row["interval"], str(row["printed"]), f"{row['covers']:.1%}", style=style)
        out_console.print(table)
    if failed:
        say(f"{len(failed)} of {len(rows)} intervals cover less or more than they say")
        raise typer.Exit(1)


@study_app.command()
def paper(
    folders: Annotated[list[Path], typer.Argument(help="Folders below which runs and evaluations lie.")],
    out: Annotated[Path, typer.Option(help="Folder for paper.html, the tables (CSV, LaTeX) and figures (PNG).")],
    data: Annotated[Path | None, typer.Option(help="Images for Figures 1 and 2.")] = None,
    expect: Annotated[str, typer.Option(help="Recipes that should be there: paper,ablation-local-96.")] = "",
) -> None:
    """Every table and figure from any number of runs and evaluations; what is not there is listed as missing.

    Example: `paper runs/ results/ --data d3_test --out paper`
    """
    from train.data.open import open_source
    from train.paper_page import write_paper

    told = ["--data", str(data)] if data else []
    told += ["--expect", expect] if expect else []
    command = shlex.join(["python", "-m", "train.main", "paper", *map(str, folders), *told, "--out", str(out)])
    with clear_errors():
        images = open_source(data, console=console).labelled() if data else None
        wanted = [name.strip() for name in expect.split(",") if name.strip()]
        for page in write_paper(folders, out, images=images, expected=wanted, command=command, say=say):
            out_console.print(str(page), soft_wrap=True, highlight=False, markup=False)
