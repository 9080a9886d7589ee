"""Every table and figure of a paper from runs and evaluations, numbers as the results files have them.

    python -m train.main paper runs/ results/ --data d3_test --out paper

Models are runs of one recipe that differ in their seed alone; cells are mean and standard deviation over seeds.
Everything is written as CSV (all digits), LaTeX and one HTML page, with the command that made it; what is not there is
listed as missing, with the command that would make it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.data.images import DataError
from train.evaluate import EMBEDDINGS, RESULTS, UNTRAINED
from train.recipe import Recipe, RecipeError, load_recipe
from train.run_folder import CHECKPOINT, METRICS, RECIPE, read_metrics


@dataclass(frozen=True)
class Run:
    """A folder that `fit` wrote."""

    folder: Path
    recipe: Recipe
    metrics: list[dict[str, Any]]

    @property
    def probes(self) -> list[float]:
        """AUC of each probe, the one before training first."""
        return [line["auc"] for line in self.metrics if line["kind"] == "probe"]


@dataclass(frozen=True)
class Result:
    """A folder that `evaluate` wrote: `values` is its results.json."""

    folder: Path
    values: dict[str, Any]

    @property
    def seed(self) -> str:
        return str(self.values["about"].get("seed", ""))

    @property
    def data(self) -> str:
        return str(self.values["about"].get("data", ""))


@dataclass
class Model:
    """What differs in the seed alone: its runs and its evaluations, by seed."""

    name: str
    runs: dict[str, Run] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)


def configuration(recipe: Recipe) -> str:
    """Eight digits that all runs of one recipe share, whatever their seed."""
    tree = dataclasses.asdict(recipe)
    tree["training"].pop("seed")
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:8]


def about_run(encoder: str) -> dict[str, str]:
    """Recipe, seed and configuration of the run whose `best` is `encoder`; empty where there is no run."""
    try:
        recipe = load_recipe(Path(encoder).parent / RECIPE)
    except RecipeError:
        return {}
    return {"recipe": recipe.name, "seed": str(recipe.training.seed), "configuration": configuration(recipe)}


def _folders(roots: Sequence[Path]) -> Iterator[Path]:
    for root in roots:
        if not root.is_dir():
            raise DataError(f"{root} is no folder: name folders with runs and results")
        yield root
        yield from sorted(path for path in root.rglob("*") if path.is_dir() and not path.name.startswith("."))


def collect(roots: Sequence[Path]) -> tuple[list[Run], list[Result]]:
    """Every run and evaluation below `roots`, each once. Raises DataError where there is none, or one is damaged."""
    runs: dict[Path, Run] = {}
    results: dict[Path, Result] = {}
    for folder in _folders(roots):
        place = folder.resolve()
        if (folder / RECIPE).is_file() and (folder / METRICS).is_file():
            runs[place] = Run(folder, load_recipe(folder / RECIPE), read_metrics(folder))
        if (folder / RESULTS).is_file():
            try:
                values = json.loads((folder / RESULTS).read_text())
            except ValueError as error:
                raise DataError(f"{folder / RESULTS} is no whole JSON ({error}): run `train.main evaluate`") from error
            if not {"about", "rows", "protocol", "backbone"} <= values.keys():
                raise DataError(f"{folder / RESULTS} is not what `train.main evaluate` writes")
            results[place] = Result(folder, values)
    if not runs and not results:
        raise DataError("no run (recipe.toml, metrics.jsonl) and no evaluation (results.json) below the folders named")
    return list(runs.values()), list(results.values())


def models_of(runs: Sequence[Run], results: Sequence[Result]) -> dict[str, list[Model]]:
    """Models by data set; runs that no evaluation names stand in each. Raises DataError for two evaluations of one
    seed on one data set.
    """
    recipes = {configuration(run.recipe): run.recipe for run in runs}
    names = _names(recipes)
    found: dict[str, dict[str, Model]] = {data: {} for data in sorted({result.data for result in results}) or [""]}
    for models in found.values():
        for run in runs:
            key = configuration(run.recipe)
            models.setdefault(key, Model(names[key])).runs[str(run.recipe.training.seed)] = run
    for result in results:
        about = result.values["about"]
        key = about.get("configuration") or result.values["backbone"] + about.get("model version", "")
        name = names.get(key) or about.get("recipe") or _of_backbone(result)
        model = found[result.data].setdefault(key, Model(name))
        if result.seed in model.results:
            other = model.results[result.seed].folder
            raise DataError(f"{other} and {result.folder} are the same model, seed and data: leave one out")
        model.results[result.seed] = result
    return {data: sorted(models.values(), key=lambda model: model.name) for data, models in found.items()}


def _of_backbone(result: Result) -> str:
    weights = result.values["about"].get("weights")
    return f"{result.values['backbone']} ({Path(weights).name})" if weights else str(result.values["backbone"])


def _names(recipes: dict[str, Recipe]) -> dict[str, str]:
    """A recipe's own name; where several share it, with what they differ in."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for key, recipe in recipes.items():
        by_name[recipe.name].append(key)
    names: dict[str, str] = {}
    for name, keys in by_name.items():
        flat = {key: _flat(recipes[key]) for key in keys}
        differs = [entry for entry in flat[keys[0]] if len({str(flat[key][entry]) for key in keys}) > 1]
        for key in keys:
            told = ", ".join(f"{entry.split('.')[-1]}={flat[key][entry]}" for entry in differs)
            names[key] = f"{name} ({told})" if told else name
    return names


def _flat(recipe: Recipe) -> dict[str, Any]:
    tree = dataclasses.asdict(recipe)
    tree["training"].pop("seed")
    sections = {name: value for name, value in tree.items() if isinstance(value, dict)}
    return {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}


def commands(models: Sequence[Model]) -> list[str]:
    """The commands that made runs and evaluations, as far as the folders tell."""
    told = []
    for model in models:
        for run in model.runs.values():
            try:
                environment = json.loads((run.folder / "environment.json").read_text())
            except (OSError, ValueError):
                continue
            told.append(shlex.join(["python", "-m", "train.main", *map(str, environment["command"][1:])]))
        for result in model.results.values():
            about = result.values["about"]
            of = ["--weights", about["weights"]] if "weights" in about else ["--backbone", result.values["backbone"]]
            fitted = ["--fit-on", about["heads fitted on"]] if "heads fitted on" in about else []
            robust = ["--robustness"] if "robustness" in result.values else []
            fitted += ["--no-pretrained"] if UNTRAINED in about else []
            where = ["--data", result.data, "--out", str(result.folder)]
            told.append(shlex.join(["python", "-m", "train.main", "evaluate", *of, *fitted, *where, *robust]))
    return told


def missing(models: Sequence[Model], data: str, expected: Sequence[str]) -> list[tuple[str, str]]:
    """(what is not there, the command that makes it): recipes in `expected` without a run, seeds that another model
    has, runs that did not reach an evaluation, evaluations without robustness or embeddings.
    """
    found: list[tuple[str, str]] = []
    train = "python -m train.main"
    seeds = sorted({seed for model in models for seed in (*model.runs, *model.results) if seed})
    for name in expected:
        if not any(model.name == name or model.name.startswith(f"{name} (") for model in models):
            told = f"{train} fit --recipe {name} --run runs/{name} --set data.source=DATA"
            found.append((f"{name}: no run", told))
    for model in models:
        trained = bool(model.runs) or any(model.results)
        for seed in seeds if trained else []:
            if seed not in model.runs and seed not in model.results:
                recipe = f"{next(iter(model.runs.values())).folder}/{RECIPE}" if model.runs else "RECIPE"
                told = f"{train} fit --recipe {recipe} --set training.seed={seed} --run runs/NEW"
                found.append((f"{model.name}: no run of seed {seed}", told))
            elif seed not in model.results:
                folder = model.runs[seed].folder
                weights, where = folder / "weights", f"--data {data or 'DATA'} --out results/{folder.name}"
                told = f"{train} evaluate --weights {weights} {where} --robustness"
                if not weights.is_dir():
                    told = f"{train} heads --encoder {folder / 'best'} --data FIT --out {weights} && {told}"
                if not (folder / CHECKPOINT).exists():
                    told = f"{train} fit --run {folder} --resume && {told}"
                found.append((f"{model.name}, seed {seed}: not measured on {data or 'any data'}", told))
        for seed, result in model.results.items():
            who = f"{model.name}, seed {seed}" if seed else model.name
            again = next(line for line in commands([Model("", {}, {seed: result})]))
            if "robustness" not in result.values:
                found.append((f"{who}: robustness", f"{again} --robustness"))
            if not (result.folder / EMBEDDINGS).is_file():
                found.append((f"{who}: {EMBEDDINGS}, for the maps", again))
    return found
