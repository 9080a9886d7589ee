"""The report: one self-contained HTML page with figures (also written as PNG), from an evaluation and the run that it
judges.

    python -m train.main report --results results/code --run runs/first --out report

No scripts and nothing fetched from outside, so that the page opens anywhere, also from a mail or on a phone.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from rich.console import Console

from train import figures
from train.data.images import DataError
from train.data.inspect import gather, summary
from train.data.records import Labelled
from train.evaluate import EMBEDDINGS, RESULTS, heads_of, leaks
from train.robustness import worst_first
from train.run_folder import RECIPE, read_metrics
from train.shortcuts import LOUD

PAGE = "report.html"
DPI = 150
SECTIONS = {
    "generators": "By generator",
    "protocol": "The authors' protocol",
    "curves": "Curves",
    "temporal": "By date of release",
    "robust": "Robustness",
    "embeddings": "Embeddings",
    "data": "Data shortcuts",
    "run": "Training",
}
_CAPTIONS = {
    "by_generator": "AUC of each head with its interval, against all reals of the group. Dotted: chance.",
    "tsne_label": "t-SNE of the embeddings, by label (the paper's Figure 1).",
    "tsne_generator": "The same map by generator; those with few images are together.",
    "roc": "ROC on all images as received. Dotted: chance.",
    "det": (
        "Detection error trade-off on all images, on normal deviates: straight lines are Gaussian scores; lower "
        "left is better."
    ),
    "histograms": "How the scores of each head are spread over the two classes.",
    "reliability": (
        "Is a score of 0.8 right in 80 % of cases? Dotted: perfectly calibrated. Points stand for 15 equal bins."
    ),
    "robustness": "AUC and its interval after what happens to images on their way. Dotted: the images as received.",
    "training": "Loss terms (faint: each step; line: running mean) and the AUC of the linear probe.",
    "shortcuts": "Properties of the files by label: the two colours should look alike.",
}
_SHOWN = frozenset({"backbone", "images", "intervals", "protocol", "rows"})  # of what evaluate writes
_SHOWN_OF_ROW = frozenset({"group", "name", "kind", "family", "fakes", "metrics"})
_TEMPLATE = Path(__file__).with_name("report.html.j2")
_METRIC_NAMES = {
    "auc": "AUC",
    "average_precision": "AP",
    "balanced_accuracy": "balanced acc.",
    "tpr_at_1pct_fpr": "TPR at 1 % FPR",
    "tpr_at_0.1pct_fpr": "TPR at 0.1 % FPR",
    "ece": "ECE",
}


def write_report(
    results_folder: Path,
    out: Path,
    *,
    run: Path | None = None,
    data: Sequence[Labelled] | None = None,
    console: Console | None = None,
) -> Path:
    """Write `out`/report.html and its figures; `run` adds curves and recipe, `data` the check for shortcuts.

    Raises DataError if `results_folder` holds no evaluation, or `run` no run.
    """
    if run is not None and not (run / RECIPE).exists():
        raise DataError(f"{run / RECIPE} is not there: --run names the folder that `train.main fit --run` was given")
    results = _read_results(results_folder)
    with np.load(results_folder / EMBEDDINGS) as arrays:
        stored = {name: arrays[name] for name in arrays.files}
    facts = summary(gather(data, console)) if data else None
    drawn = _draw(results, stored, read_metrics(run) if run else [], facts)
    out.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, dict[str, Any]] = {}
    for name, figure in drawn.items():
        path = out / f"{name}.png"
        figure.savefig(path, dpi=DPI)
        width, height = (round(inches * DPI) for inches in figure.get_size_inches())
        plt.close(figure)
        pictures[name] = {"data": base64.b64encode(path.read_bytes()).decode(), "width": width, "height": height}
    page = (
        Environment(autoescape=True)
        .from_string(_TEMPLATE.read_text())
        .render(
            results=results,
            leaks=leaks(results),
            loud=LOUD,
            worst_first=worst_first(results.get("robustness", {}), heads_of(results)[0]),
            facts=facts,
            heads=heads_of(results),
            metrics=_METRIC_NAMES,
            number=_number,
            sections=SECTIONS,
            pictures=pictures,
            captions=_CAPTIONS,
            descriptions=_descriptions(results),
            recipe=_read(run, RECIPE),
            environment=_read(run, "environment.json"),
        )
    )
    (out / PAGE).write_text(page)
    return out / PAGE


def _read_results(results_folder: Path) -> Any:
    """What `evaluate` wrote there. Raises DataError."""
    if not (results_folder / RESULTS).exists():
        raise DataError(
            f"{results_folder / RESULTS} is not there: run `train.main evaluate --out {results_folder}` first"
        )
    try:
        results = json.loads((results_folder / RESULTS).read_text())
    except ValueError as error:
        raise DataError(
            f"{results_folder / RESULTS} is no whole JSON ({error}): run `train.main evaluate` again"
        ) from error
    if not _is_evaluation(results):
        raise DataError(
            f"{results_folder / RESULTS} is not what `train.main evaluate` writes: run it again, and name its --out"
        )
    return results


def _is_evaluation(results: Any) -> bool:
    """Whether this has the parts that the page shows."""
    if not (isinstance(results, dict) and results.keys() >= _SHOWN and isinstance(results["rows"], list)):
        return False
    return all(isinstance(row, dict) and row.keys() >= _SHOWN_OF_ROW for row in results["rows"])


def _draw(
    results: Mapping[str, Any],
    stored: Mapping[str, np.ndarray],
    metrics: list[dict[str, Any]],
    facts: Mapping[str, Any] | None,
) -> dict[str, Figure]:
    labels, scores, heads = stored["labels"], stored["scores"], heads_of(results)
    drawn = figures.tsne(stored["embeddings"], labels, stored["generators"])
    if len(set(labels.tolist())) == 2:
        drawn |= {
            "roc": figures.roc(labels, scores, heads),
            "det": figures.det(labels, scores, heads),
            "reliability": figures.reliability(labels, scores, heads),
        }
    if results["rows"]:
        drawn["by_generator"] = figures.by_generator(results["rows"], heads)
    drawn["histograms"] = figures.histograms(labels, scores, heads)
    if "robustness" in results:
        drawn["robustness"] = figures.robustness(results["robustness"], heads)
    if any(line["kind"] == "step" for line in metrics):
        drawn["training"] = figures.training(metrics)
    if facts:
        drawn["shortcuts"] = figures.shortcuts(facts["counts"])
    return drawn


def _descriptions(results: Mapping[str, Any]) -> dict[str, str]:
    """What a figure shows, for those who do not see it: the caption and, where there are few, the numbers."""
    whole = [row for row in results["rows"] if row["kind"] == "all"]

    def told(metric: str) -> str:
        entries = [
            f"{row['group']} {head} {_number(row['metrics'][head][metric]['value'])}".strip()
            for row in whole
            for head in heads_of(results)
        ]
        return f"{_METRIC_NAMES[metric]}: {', '.join(entries)}."

    numbers = {
        "roc": told("auc"),
        "det": told("tpr_at_1pct_fpr"),
        "reliability": told("ece"),
        "histograms": told("balanced_accuracy"),
    }
    pointers = {
        "by_generator": "The tables below have the numbers.",
        "shortcuts": "The table above has the strength of each.",
    }
    return {
        name: " ".join(filter(None, [caption, numbers.get(name), pointers.get(name)]))
        for name, caption in _CAPTIONS.items()
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _read(run: Path | None, name: str) -> str | None:
    return (run / name).read_text() if run is not None and (run / name).exists() else None
