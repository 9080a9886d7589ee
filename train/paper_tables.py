"""The tables of `train.main paper`: cells over seeds, as CSV with every digit, LaTeX and HTML."""

from __future__ import annotations

import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from typing import Any

from train.compare import compare
from train.data.images import DataError
from train.evaluate import heads_of
from train.paper import Model, Result
from train.robustness import worst_first

METRICS = {
    "auc": "AUC",
    "average_precision": "AP",
    "balanced_accuracy": "balanced acc.",
    "tpr_at_1pct_fpr": "TPR at 1 % FPR",
    "ece": "ECE",
}
_LATEX = str.maketrans({sign: f"\\{sign}" for sign in "%_&#${}"} | {"±": r"$\pm$"})


@dataclass(frozen=True)
class Cell:
    """One value a seed; shown as their mean, with the standard deviation from two on."""

    values: tuple[float, ...] = ()
    text: str = ""  # shown instead

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    def shown(self) -> str:
        if self.text or not self.values:
            return self.text or "-"
        return f"{self.mean:.3f}" + (f" ± {self.deviation:.3f}" if len(self.values) > 1 else "")


@dataclass
class Table:
    """`rows` have a name and a cell for each of `columns`."""

    name: str  # of its files
    title: str
    first: str  # what the names of the rows are
    columns: list[str]
    rows: list[tuple[str, list[Cell]]] = field(default_factory=list)

    def write(self, folder: Path, command: str) -> None:
        """NAME.csv and NAME.tex."""
        with (folder / f"{self.name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            texts = [any(cells[index].text for _, cells in self.rows) for index in range(len(self.columns))]
            named = zip(self.columns, texts, strict=True)
            heads = [[name] if of else [f"{name} {part}" for part in ("mean", "sd", "seeds")] for name, of in named]
            writer.writerow([self.first, *chain.from_iterable(heads)])
            for name, cells in self.rows:
                parts = ([cell.text] if of else _parts(cell) for cell, of in zip(cells, texts, strict=True))
                writer.writerow([name, *chain.from_iterable(parts)])
        lines = [f"% {self.title}", f"% {command}", rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}", r"\toprule"]
        lines += [_row([self.first, *self.columns]), r"\midrule"]
        lines += [_row([name, *(cell.shown() for cell in cells)]) for name, cells in self.rows]
        (folder / f"{self.name}.tex").write_text("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n")


def _parts(cell: Cell) -> list[str]:
    if not cell.values:
        return ["", "", ""]
    return [repr(cell.mean), "" if math.isnan(cell.deviation) else repr(cell.deviation), str(len(cell.values))]


def _row(texts: Sequence[str]) -> str:
    return " & ".join(text.replace("\\", "/").translate(_LATEX) for text in texts) + r" \\"


def tables(models: Sequence[Model]) -> list[Table]:
    """All tables of one data set; a table without a value is left out."""
    measured = [model for model in models if model.results]
    made = [_training(models)]
    if measured:
        made += [*_protocol(measured), _metrics(measured), _generators(measured), _eras(measured)]
        made += [_robustness(measured), _differences(measured)]
    return [table for table in made if table.rows]


def _cell(model: Model, value: Callable[[Result], Any]) -> Cell:
    found = (value(result) for _, result in sorted(model.results.items()))
    return Cell(tuple(float(entry) for entry in found if entry is not None))


def _all(models: Sequence[Model]) -> list[Result]:
    return [result for model in models for result in model.results.values()]


def _training(models: Sequence[Model]) -> Table:
    columns = ["seeds", "probe AUC before", "best probe AUC", "gain", "steps"]
    table = Table("training", "Runs: the linear probe before and after training", "model", columns)
    for model in models:
        runs = [run for _, run in sorted(model.runs.items())]
        probed = [run.probes for run in runs if run.probes]
        if runs:
            steps = [max((line["step"] for line in run.metrics), default=0) for run in runs]
            before, best = Cell(tuple(found[0] for found in probed)), Cell(tuple(max(found) for found in probed))
            gain = Cell(tuple(max(found) - found[0] for found in probed))
            told = Cell(text=", ".join(sorted(model.runs)))
            table.rows.append((model.name, [told, before, best, gain, Cell(text=", ".join(map(str, steps)))]))
    return table


def _protocol(models: Sequence[Model]) -> list[Table]:
    """The authors' accuracies at 0.5, a table for each group: reals, then the fakes of each generator."""
    made = []
    for group in sorted({group for result in _all(models) for group in result.values["protocol"]}):
        names = sorted({name for result in _all(models) for name in result.values["protocol"].get(group, {})})
        title = f"Accuracy at 0.5, the authors' protocol, images: {group}"
        table = Table(f"protocol-{group}", title, "model, head", ["real", *names])
        for model in models:
            for head in _heads(model):
                of = partial(_accuracy, group=group, head=head)
                cells = [_cell(model, partial(of, names=names, kind="real"))]
                cells += [_cell(model, partial(of, names=[name], kind="fake")) for name in names]
                table.rows.append((f"{model.name}, {head}", cells))
        made.append(table)
    return made


def _heads(model: Model) -> list[str]:
    """Those that any of its results has, as they stand there."""
    return list(dict.fromkeys(head for result in _all([model]) for head in heads_of(result.values)))


def _accuracy(result: Result, *, group: str, names: Sequence[str], head: str, kind: str) -> Any:
    of_group = result.values["protocol"].get(group, {})
    return next((of_group[name].get(head, {}).get(kind) for name in names if name in of_group), None)


def _rows(result: Result) -> list[dict[str, Any]]:
    """Of the images cut and compressed alike, where these were measured."""
    rows: list[dict[str, Any]] = result.values.get("controlled", result.values["rows"])
    return rows


def _metric(result: Result, *, group: str, name: str, head: str, metric: str) -> Any:
    found = (row for row in _rows(result) if row["group"] == group and row["name"] == name)
    return next((row["metrics"].get(head, {}).get(metric, {}).get("value") for row in found), None)


def _named(models: Sequence[Model], kind: str) -> list[tuple[str, str]]:
    rows = (row for result in _all(models) for row in _rows(result))
    return sorted({(row["group"], row["name"]) for row in rows if row["kind"] == kind})


def _metrics(models: Sequence[Model]) -> Table:
    title = "All images, cut and compressed alike where measured"
    table = Table("metrics", title, "model, head", list(METRICS.values()))
    for group, name in _named(models, "all"):
        for model in models:
            for head in _heads(model):
                of = partial(_metric, group=group, name=name, head=head)
                cells = [_cell(model, partial(of, metric=metric)) for metric in METRICS]
                table.rows.append((", ".join(filter(None, [model.name, head, group])), cells))
    return table


def _generators(models: Sequence[Model]) -> Table:
    title = "AUC of the head linear by generator"
    table = Table("generators", title, "generator", [model.name for model in models])
    for group, name in [entry for kind in ("all", "family", "generator") for entry in _named(models, kind)]:
        of = partial(_metric, group=group, name=name, head="linear", metric="auc")
        table.rows.append((" ".join(filter(None, [group, name])), [_cell(model, of) for model in models]))
    return table


def _era(result: Result, *, name: str) -> Any:
    found = (row for row in result.values.get("temporal", []) if row["kind"] == "era" and row["name"] == name)
    return next((row["auc"].get("linear", {}).get("value") for row in found), None)


def _eras(models: Sequence[Model]) -> Table:
    title = "AUC of the head linear by the generators' date"
    table = Table("eras", title, "era", [model.name for model in models])
    rows = [row for result in _all(models) for row in result.values.get("temporal", [])]
    for name in dict.fromkeys(row["name"] for row in rows if row["kind"] == "era"):
        table.rows.append((name, [_cell(model, partial(_era, name=name)) for model in models]))
    return table


def of_tier(result: Result, *, kind: str, strength: str) -> Any:
    """AUC of the head linear there, None where it was not measured."""
    entry = result.values.get("robustness", {}).get(kind, {}).get(strength)
    return None if entry is None or "linear" not in entry else entry["linear"]["auc"]["value"]


def _robustness(models: Sequence[Model]) -> Table:
    """Worst first: by the mean over models."""
    table = Table("robustness", "AUC of the head linear, worst first", "images", [model.name for model in models])
    found = [row for result in _all(models) for row in worst_first(result.values.get("robustness", {}))]
    for kind, strength in sorted({(row["kind"], row["strength"]) for row in found}):
        cells = [_cell(model, partial(of_tier, kind=kind, strength=strength)) for model in models]
        table.rows.append(("as received" if kind == "none" else f"{kind}: {strength}", cells))
    table.rows.sort(key=lambda row: statistics.fmean(cell.mean for cell in row[1] if cell.values))
    return table


def _differences(models: Sequence[Model]) -> Table:
    """Of every two models, seed by seed on the same images, then over the seeds."""
    columns = ["AUC", "95 %", "p (Holm)", "balanced acc.", "95 % of it"]
    title = "Paired differences on the images as received, head linear"
    table = Table("differences", title, "second minus first, seed", columns)
    for first, second in combinations(models, 2):
        title = f"{second.name} - {first.name}"
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for seed in sorted({*first.results, *second.results}):
            pair = [model.results.get(seed) or model.results.get("") for model in (first, second)]
            for row in _paired([one.folder for one in pair if one]):
                auc, balanced = row["auc"], row["balanced_accuracy"]
                found[row["group"]].append((auc["difference"], balanced["difference"]))
                p = Cell(text="-" if math.isnan(auc["p_holm"]) else f"{auc['p_holm']:.2g}")
                cells = [Cell((auc["difference"],)), _ends(auc), p, Cell((balanced["difference"],)), _ends(balanced)]
                table.rows.append((" ".join(filter(None, [f"{title},", seed, row["group"]])), cells))
        for group, pairs in found.items():
            if len(pairs) > 1:
                none = Cell(text="-")
                of_auc, of_balanced = (Cell(values) for values in zip(*pairs, strict=True))
                cells = [of_auc, none, none, of_balanced, none]
                table.rows.append((" ".join(filter(None, [f"{title}, over seeds", group])), cells))
    return table


def _paired(folders: list[Path]) -> list[dict[str, Any]]:
    """The linear head's rows; none where there is nothing to pair, or other images."""
    try:
        return [row for row in compare(folders) if row["head"] == "linear"]
    except DataError:
        return []


def _ends(entry: dict[str, float]) -> Cell:
    return Cell(text="-" if math.isnan(entry["low"]) else f"{entry['low']:+.3f} to {entry['high']:+.3f}")
