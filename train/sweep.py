"""Runs of one recipe with some fields varied: ablations and seeds, one after the other, each in a folder of its own.

    python -m train.main sweep --set data.source=equal/train --vary "training.seed=[1, 2]" --vary "views.max_ops=[0, 2]"

The same command goes on where it was: finished runs are left alone, one that was stopped is resumed, one that diverged
is a row of the table too. Without a seed in its name a row is the mean of its seeds.
"""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console

from train.engine import TrainingDiverged, fit
from train.recipe import Recipe, RecipeError, load_recipe, value_to_toml
from train.run_folder import CHECKPOINT, RunFolder, read_metrics
from triton_models.files import replacing

ROWS, TABLE = "sweep.json", "sweep.csv"
SEED = "training.seed"
STOPPED = "interrupted"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.]+")


def variations(vary: Sequence[str]) -> list[dict[str, str]]:
    """Every combination of `section.field=[value, …]` as field -> value, both as text. Raises RecipeError."""
    fields: dict[str, list[str]] = {}
    for text in vary:
        name, _, values = text.partition("=")
        try:
            parsed = tomllib.loads(f"values = {values}")["values"]
        except tomllib.TOMLDecodeError:
            parsed = None
        if not name.strip() or not isinstance(parsed, list) or not parsed:
            raise RecipeError([f'--vary {text!r}: expected section.field=[value, …], e.g. "training.seed=[1, 2, 3]"'])
        if name.strip() in fields:
            raise RecipeError([f"--vary {name.strip()} is given twice: name all its values in one"])
        fields[name.strip()] = [value_to_toml(value) for value in parsed]
    return [dict(zip(fields, values, strict=True)) for values in product(*fields.values())]


def sweep(
    recipe: str, overrides: Sequence[str], vary: Sequence[str], runs: Path, *, say: Callable[[str], object] = str
) -> list[dict[str, Any]]:
    """Train what is not finished, below `runs`; returns one row a run and writes them as JSON and CSV.

    Stops behind a run that was told to. Raises RecipeError before anything is trained: all recipes are checked first.
    """
    varied = variations(vary)
    chosen = [load_recipe(recipe, [*overrides, *(f"{name}={value}" for name, value in one.items())]) for one in varied]
    rows: list[dict[str, Any]] = []
    for number, (fields, each) in enumerate(zip(varied, chosen, strict=True), 1):
        name = folder_name(fields)
        say(f"run {number} of {len(varied)}: {name}")
        rows.append({"run": name, **fields, **_train(each, runs / name)})
        _save(runs, rows)
        if rows[-1]["status"] == STOPPED:
            break
    return rows


def folder_name(fields: Mapping[str, str]) -> str:
    """A folder's name that says what is varied, without the sections: `temperature-0.05_seed-1`."""
    parts = [f"{name.rpartition('.')[2]}-{_UNSAFE.sub('-', value).strip('-')}" for name, value in fields.items()]
    return "_".join(parts)


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows that differ in their seed alone as one: mean and standard deviation of the best probe, and how many."""
    groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for row in rows:
        fields = tuple((name, str(value)) for name, value in row.items() if "." in name and name != SEED)
        values = groups.setdefault(fields, [])
        if isinstance(row.get("best_auc"), float):
            values.append(row["best_auc"])
    return [
        {
            **dict(fields),
            "seeds": len(values),
            "best_auc": round(mean(values), 4) if values else None,
            "sd": round(stdev(values), 4) if len(values) > 1 else None,
        }
        for fields, values in groups.items()
    ]


def _train(recipe: Recipe, run: Path) -> dict[str, Any]:
    done = run / "result.json"
    if done.exists() and RunFolder(run).recipe() == recipe:
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    resume = (run / CHECKPOINT).exists()
    if resume and RunFolder(run).recipe() != recipe:
        raise RecipeError([f"{run} holds a run with another recipe: name another folder with --runs"])
    try:
        result = fit(recipe, run, resume=resume, console=Console(stderr=True, quiet=True))
    except TrainingDiverged as error:
        found = {"status": "diverged", "why": str(error)}
    else:
        found = {"status": result.status, "steps": result.step, **_best(run)}
    if found["status"] != STOPPED:
        with replacing(done) as partial:
            partial.write_text(json.dumps(found) + "\n")
    return found


def _best(run: Path) -> dict[str, float]:
    """The best probe after training and its gain on the initialisation, with the interval where there is one."""
    probes = [line for line in read_metrics(run) if line["kind"] == "probe"]
    if not probes:
        return {}
    best = max(probes, key=lambda line: float(line["auc"]))
    found = {"initial_auc": probes[0]["auc"], "best_auc": best["auc"]}
    found |= {name: best[name] for name in ("gain", "gain_low", "gain_high") if name in best}
    return {name: round(float(value), 4) for name, value in found.items()}


def _save(runs: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(runs / ROWS) as partial:
        partial.write_text(json.dumps(list(rows), indent=2) + "\n")
    with replacing(runs / TABLE) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
